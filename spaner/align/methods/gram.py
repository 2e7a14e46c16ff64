"""GRAM: modalities of one sample span a small volume, those of different samples a large one.

Source: Cicchetti et al., "Gramian Multimodal Representation Learning and Alignment" (ICLR 2025); equations
checked against ispamm/GRAM b70c5c2, utils/volume.py and the loss lines of model/gram.py. With a_i the anchor
(the first modality) of sample i and r_j the other modalities of sample j, all of them together,

    V_ij = sqrt |det Gram(a_i, r_j)|
    L    = 1/2 [CE(-V / tau) + CE(-V^T / tau)],    targets on the diagonal, smoothed by 0.1

Needs unit vectors of three modalities or more; with two, V is the sine of the angle and the loss still means
something. Knows no encoder, prompt or cache.

Mended: where two vectors coincide the determinant is 0 and its root has no finite slope; below `FLAT` the
volume is constant. Not mended, because it is the method: V is 0 whenever *two* of the vectors coincide,
whatever the third does, so GRAM cannot see a modality that lies apart from two equal ones.

Added: missing rows. A missing vector counts as orthogonal to all others, which leaves the determinant that of
the vectors which are there. A sample takes part when its anchor and one other modality are.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spaner.align.methods.losses import masked_cross_entropy

FLAT = 1e-12
"""Determinants below this have volume sqrt(FLAT) and no slope."""


def volumes(
    anchor: Float[Tensor, "B E"],
    others: Sequence[Float[Tensor, "B E"]],
    present: Bool[Tensor, "M B"] | None = None,
) -> Float[Tensor, "B B"]:
    """V_ij of the anchor of sample i and the other modalities of sample j.

    Args:
        anchor: unit vectors of the first modality.
        others: unit vectors of the others, one tensor a modality.
        present: which rows exist, the anchor's first; absent: all.

    Example: three orthogonal vectors span 1, three in one plane 0.
    """
    stacked = torch.stack(list(others))  # (M - 1, B, E)
    to_anchor = torch.einsum("ie,mje->ijm", anchor, stacked)
    among = torch.einsum("mje,nje->jmn", stacked, stacked)
    own = (anchor * anchor).sum(1)
    if present is not None:
        there = present[1:].T.to(anchor.dtype)  # (B, M - 1)
        to_anchor = to_anchor * there
        lone = torch.diag_embed(1 - there)
        among = among * there[:, :, None] * there[:, None, :] + lone
    determinant = torch.linalg.det(_bordered(own, to_anchor, among)).abs()
    return determinant.clamp(min=FLAT).sqrt()


def loss(
    z: Sequence[Float[Tensor, "B E"]],
    present: Bool[Tensor, "M B"] | None = None,
    *,
    temperature: float | Float[Tensor, ""] = 0.07,
    label_smoothing: float = 0.1,
) -> Float[Tensor, ""]:
    """L of a batch; `z[0]` is the anchor. Temperature and smoothing are the reference's (0.07 is where its
    learned temperature starts). 0 where fewer than two samples take part."""
    used = None if present is None else present[0] & present[1:].any(0)
    logits = -volumes(z[0], z[1:], present) / temperature
    forth = masked_cross_entropy(logits, used, label_smoothing=label_smoothing)
    back = masked_cross_entropy(logits.T, used, label_smoothing=label_smoothing)
    return (forth + back) / 2


def _bordered(
    own: Float[Tensor, " B"], to_anchor: Float[Tensor, "B B R"], among: Float[Tensor, "B R R"]
) -> Float[Tensor, "B B M M"]:
    """The Gram matrix of (a_i, r_j) for all i and j: that of r_j, bordered by the products with a_i."""
    samples, others = len(own), to_anchor.shape[2]
    corner = own[:, None, None, None].expand(samples, samples, 1, 1)
    top = torch.cat([corner, to_anchor[:, :, None, :]], dim=3)
    rest = among[None].expand(samples, samples, others, others)
    return torch.cat([top, torch.cat([to_anchor[..., None], rest], dim=3)], dim=2)
