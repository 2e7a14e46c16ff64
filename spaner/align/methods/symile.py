"""Symile: one product over all modalities, so that what only all of them together tell is learned too.

Source: Saporta et al., "Contrasting with Symile: Simple Model-Agnostic Representation Learning for Unlimited
Modalities" (NeurIPS 2024); equations checked against rajesh-lab/symile d12e2c8, symile/loss.py. With the
multilinear inner product of M vectors, MIP(z_1, …, z_M) = sum_d prod_m z_m[d], and each modality the anchor
once,

    logits_ij = scale · MIP(anchor_i, others of the tuple j)
    L         = mean over anchors of CE(logits, diagonal)

A tuple j ≠ i is a negative: the others, each from another sample. `negatives="n"` gives B - 1 of them a row,
`negatives="all"` every combination, B^(M-1), which only tiny batches can pay.

Needs vectors of two modalities or more, usually of unit length. Knows no encoder, prompt or cache. Pairs are
blind to XOR: two modalities that are independent alone and determine the third together. Symile is not. But
the product of M unit vectors shrinks by sqrt(D) for every modality beyond the second, so the scale has to
grow with it (`scale_for`).

Differs from the reference in: it shuffles each other modality by chance at every call, where now and then a
negative holds a true pair; here, modality m moves on by a step of its own, so none does and nothing is drawn
(batches arrive in random order already). `permutations` hands in any shuffle. Missing rows are added: a tuple
counts when all of its vectors are there.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spaner.align.methods.losses import masked_cross_entropy


def loss(
    z: Sequence[Float[Tensor, "B E"]],
    present: Bool[Tensor, "M B"] | None = None,
    *,
    scale: float | Float[Tensor, ""],
    negatives: Literal["n", "all"] = "n",
    permutations: Int[Tensor, "A B"] | None = None,
) -> Float[Tensor, ""]:
    """L of a batch.

    Args:
        z: the vectors, one tensor a modality.
        present: which rows exist; absent: all.
        scale: 1 / temperature, see `scale_for`.
        permutations: one row for every (anchor, other), anchor 0 with 1 … M-1, anchor 1 with 0, 2 …; row k
            says which sample's vector stands at each place. Default: `shifts`.

    Example: z = two copies of the 2 x 2 identity, scale 1 -> log(1 + exp(-1)) = 0.3133.
    """
    total, count = z[0].new_zeros(()), len(z)
    for anchor in range(count):
        others = [m for m in range(count) if m != anchor]
        there = None if present is None else present[[anchor, *others]]
        vectors = [z[m] for m in others]
        if negatives == "all":
            found = combined(z[anchor], vectors, there)
        else:
            if permutations is None:
                orders = shifts(count - 1, len(z[0]), z[0].device)
            else:
                orders = permutations[anchor * (count - 1) : (anchor + 1) * (count - 1)]
            found = shuffled(z[anchor], vectors, orders, there)
        logits, rows, columns = found
        total = total + masked_cross_entropy(scale * logits, rows, columns=columns)
    return total / count


def shuffled(
    anchor: Float[Tensor, "B E"],
    others: Sequence[Float[Tensor, "B E"]],
    orders: Int[Tensor, "R B"],
    present: Bool[Tensor, "M B"] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Products (B, B) of every anchor with B shuffled tuples, the true tuple on the diagonal; and which
    rows and which entries count (`present`: the anchor's rows first)."""
    own = _product(others)
    logits = anchor @ _product([x[order] for x, order in zip(others, orders, strict=True)]).T
    diagonal = torch.eye(len(anchor), dtype=torch.bool, device=anchor.device)
    logits = torch.where(diagonal, (anchor * own).sum(1)[:, None], logits)
    if present is None:
        return logits, None, None
    complete = present.all(0)
    whole = torch.stack([there[order] for there, order in zip(present[1:], orders, strict=True)]).all(0)
    return logits, complete, torch.where(diagonal, complete, whole)


def combined(
    anchor: Float[Tensor, "B E"],
    others: Sequence[Float[Tensor, "B E"]],
    present: Bool[Tensor, "M B"] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As `shuffled`, with all B^(M-1) tuples as columns: all combinations of shifts, the unshifted first, so
    that the true tuple of row i is in column i."""
    size, places = len(others), torch.arange(len(anchor), device=anchor.device)
    steps = places.new_zeros(1, 0)
    if size > 1:  # one of the others stays where it is
        steps = torch.cartesian_prod(*[places] * (size - 1)).view(-1, size - 1)
    fixed = max(size - 2, 0)
    steps = torch.cat([steps[:, :fixed], steps.new_zeros(len(steps), 1), steps[:, fixed:]], dim=1)
    orders = ((places - steps[:, :, None]) % len(anchor)).transpose(0, 1).flatten(1)
    logits = anchor @ _product([x[order] for x, order in zip(others, orders, strict=True)]).T
    if present is None:
        return logits, None, None
    whole = torch.stack([there[order] for there, order in zip(present[1:], orders, strict=True)]).all(0)
    return logits, present.all(0), whole.expand(len(anchor), -1)


def shifts(others: int, batch: int, device: torch.device | str = "cpu") -> Int[Tensor, "R B"]:
    """Row r moves its modality on by r + 1 places, so that no two vectors of a tuple come from one sample (as
    long as the batch holds more samples than there are modalities)."""
    places = torch.arange(batch, device=device)
    return torch.stack([(places + shift) % batch for shift in range(1, others + 1)])


def scale_for(scale: float | Float[Tensor, ""], width: int, modalities: int) -> float | Float[Tensor, ""]:
    """The scale at which the product of `modalities` random unit vectors spreads as far as the cosine of two
    does at `scale`: times width^((M-2)/2)."""
    return scale * width ** ((modalities - 2) / 2)


def _product(vectors: Sequence[Float[Tensor, "B E"]]) -> Float[Tensor, "B E"]:
    product = vectors[0]
    for other in vectors[1:]:
        product = product * other
    return product
