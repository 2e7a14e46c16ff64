"""PMRL: the modalities of one sample share one direction; no modality is the anchor.

Source: Liu et al., "Principled Multimodal Representation Learning" (TPAMI 2026); equations checked against
Xiaohao-Liu/PMRL c3997e9, utils/eigen.py and the loss lines of model/pmrl.py. With sigma the singular values
of the matrix [z_1 … z_M] of one sample, the largest first, and u its first left singular vector,

    L_intra = CE(sigma / tau_1, 0)             the first value takes all: the vectors are one line
    L_inter = CE(U U^T / tau_2, diagonal)      samples lie on different lines
    L       = L_intra + L_inter

Needs unit vectors of two modalities or more. Knows no encoder, prompt or cache.

Mended: the sign of u is the linear algebra library's whim in the reference, so the same batch has several
losses; here u points to the side of the sum of its vectors. Singular values come from the M x M Gram matrix,
which is exact enough (1e-12 in float64) and independent of the width. The slope of u is the closed form for
the first eigenvector, which stays finite where *smaller* values coincide, as they do for missing modalities.

Added: missing rows. A vector that is missing leaves the matrix; a sample with fewer than two takes no part.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spaner.align.methods.losses import masked_cross_entropy

FLAT = 1e-12
"""Squares of singular values below this count as this: the root has no finite slope at 0."""

NEAR = 1e-4
"""Eigenvalues count as at least this far apart: at equal ones no direction is the first, and u no slope."""


def directions(
    z: Sequence[Float[Tensor, "B E"]], present: Bool[Tensor, "M B"] | None = None
) -> tuple[Float[Tensor, "B M"], Float[Tensor, "B E"]]:
    """Singular values of every sample, the largest first, and its first left singular vector u.

    u points to the side of the sum of the vectors; where they cancel, to that of the first of them. A missing
    modality has the singular value 0 (root of `FLAT`), at the end of the row.
    """
    matrix = torch.stack(list(z), dim=2)  # (B, E, M)
    if present is not None:
        matrix = matrix * present.T[:, None, :].to(matrix.dtype)
    gram = matrix.mT @ matrix
    eigenvalues, vectors = torch.linalg.eigh(gram.detach())
    squares = (vectors * (gram @ vectors)).sum(1)  # the eigenvalues once more, now with their slope v dG v
    values = squares.flip(1).clamp(min=FLAT).sqrt()
    u = (matrix @ _first_eigenvector(gram, eigenvalues, vectors)[..., None])[..., 0]
    return values, u / values[:, :1]


def intra(
    values: Float[Tensor, "B M"], present: Bool[Tensor, "M B"] | None = None, *, temperature: float = 0.05
) -> Float[Tensor, ""]:
    """L_intra of singular values, the largest first."""
    first = torch.zeros(len(values), dtype=torch.long, device=values.device)
    if present is None:
        return masked_cross_entropy(values / temperature, None, targets=first)
    place = torch.arange(values.shape[1], device=values.device)
    there = place < present.sum(0)[:, None]
    return masked_cross_entropy(values / temperature, present.sum(0) > 1, columns=there, targets=first)


def inter(
    u: Float[Tensor, "B E"], used: Bool[Tensor, " B"] | None = None, *, temperature: float = 0.1
) -> Float[Tensor, ""]:
    """L_inter of the samples' directions."""
    return masked_cross_entropy(u @ u.T / temperature, used)


def loss(
    z: Sequence[Float[Tensor, "B E"]],
    present: Bool[Tensor, "M B"] | None = None,
    *,
    tau_intra: float = 0.05,
    tau_inter: float = 0.1,
) -> Float[Tensor, ""]:
    """L of a batch, with the reference's temperatures."""
    values, u = directions(z, present)
    used = None if present is None else present.sum(0) > 1
    return intra(values, present, temperature=tau_intra) + inter(u, used, temperature=tau_inter)


def _first_eigenvector(
    gram: Float[Tensor, "B M M"], eigenvalues: Float[Tensor, "B M"], vectors: Float[Tensor, "B M M"]
) -> Float[Tensor, "B M"]:
    """The eigenvector v of the largest eigenvalue, sum v ≥ 0, with the slope dv = (lambda - G)^+ dG v.

    The term that carries the slope is 0 in value, since G v = lambda v.
    """
    largest, v = eigenvalues[:, -1:], vectors[..., -1]
    earlier = torch.arange(v.shape[1], 0, -1, dtype=v.dtype, device=v.device)
    lean = torch.where(v.sum(1).abs() > NEAR, v.sum(1), v @ earlier)
    v = torch.where(lean[:, None] < 0, -v, v)
    others, distance = vectors[..., :-1], (largest - eigenvalues[:, :-1]).clamp(min=NEAR)
    residual = (gram @ v[..., None])[..., 0] - largest * v
    along = (others.mT @ residual[..., None])[..., 0] / distance
    return v + (others @ along[..., None])[..., 0]
