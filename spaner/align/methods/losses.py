"""Contrastive losses of SPANER as pure functions: vectors in, a scalar out.

Paper: SPANER, Algorithm 1 and the loss of eqs. 4-6: L = L_align(f_1, f_2) + lambda L_CA(z_1, z_2), where both
terms are the function `contrastive` below.

Differs from the reference in: nothing by default. `targets="class"` is an addition: in a batch with several
samples of one class, the paper's diagonal targets push apart pairs that belong together; see
`collision_rate`. `pairs` is the same loss over all pairs of any number of modalities, rows missing at will;
with two modalities it is `contrastive`, bit for bit. `masked_cross_entropy` serves the objectives beside it
(`gram`, `symile`, `pmrl`), which know nothing else of this file.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

ABSENT = -1e9
"""The logit of what is missing. It is finite: a row in which all is missing has a slope, which counts for
nothing."""


def contrastive(
    a: Float[Tensor, "B E"],
    b: Float[Tensor, "B E"],
    logit_scale: float | Float[Tensor, ""],
    *,
    direction: Literal["both", "first", "second"] = "both",
    labels: Int[Tensor, " B"] | None = None,
    present: Bool[Tensor, " B"] | None = None,
) -> Float[Tensor, ""]:
    """Cross entropy over logit_scale * cos(a, b); row i of `a` belongs to row i of `b`.

    Args:
        a: vectors of the first modality, of any length.
        b: vectors of the second.
        logit_scale: 1 / temperature.
        direction: who asks. "first": each a among all b; "second": each b among all a; "both": the mean.
        labels: classes of the pairs. Given, every pair of equal class is a positive and the target is spread
            evenly over them (multi-positive); absent, only the diagonal is.
        present: pairs that exist; the others neither ask nor are asked. Absent: all. 0 where none exists.

    Example: a = b = the 2 x 2 identity, scale 1 -> log(1 + exp(-1)) = 0.3133.
    """
    logits = F.linear(logit_scale * F.normalize(a, dim=1), F.normalize(b, dim=1))
    return _asked(logits, direction, labels, present)


def _asked(
    logits: Float[Tensor, "B B"],
    direction: Literal["both", "first", "second"] = "both",
    labels: Int[Tensor, " B"] | None = None,
    present: Bool[Tensor, " B"] | None = None,
) -> Float[Tensor, ""]:
    asked = {"first": (1,), "second": (0,), "both": (1, 0)}[direction]  # the axis of the candidates
    total = sum((_cross_entropy(logits, axis, labels, present) for axis in asked), logits.new_zeros(()))
    return total / len(asked)


def pairs(
    vectors: Sequence[Float[Tensor, "B E"]],
    logit_scale: float | Float[Tensor, ""],
    present: Bool[Tensor, "M B"] | None = None,
    **options: Any,
) -> Float[Tensor, ""]:
    """Mean of `contrastive` over all pairs of modalities; row i of all of them is one sample.

    Args:
        vectors: one tensor a modality, of any length.
        present: which rows exist. A pair compares the samples that have both, and a pair without two such
            samples is left out of the mean.
        options: `direction` and `labels` of `contrastive`.
    """
    if len(vectors) > 2 and options.get("labels") is None and options.get("direction", "both") == "both":
        return pairs_in_blocks(vectors, logit_scale, present)
    unit = [F.normalize(each, dim=1) for each in vectors]  # once, not once a pair
    scaled = [logit_scale * each for each in unit[:-1]]
    both = [None if present is None else present[i] & present[j] for i, j in modality_pairs(len(vectors))]
    terms = [
        _asked(F.linear(scaled[i], unit[j]), present=rows, **options)
        for (i, j), rows in zip(modality_pairs(len(vectors)), both, strict=True)
    ]
    total = sum(terms[1:], terms[0])
    if present is None:
        return total / len(terms)
    counted = torch.stack([rows.sum() > 1 for rows in both if rows is not None]).sum()
    return total / counted.clamp(min=1)


def pairs_in_blocks(
    vectors: Sequence[Float[Tensor, "B E"]],
    logit_scale: float | Float[Tensor, ""],
    present: Bool[Tensor, "M B"] | None,
) -> Float[Tensor, ""]:
    """`pairs` with both directions, where each modality meets all later ones in one product.

    -log softmax of the diagonal is logsumexp minus the diagonal: nothing of the size of the logits is kept
    beside them. What is missing gets `ABSENT` as its logit and the weight 0.
    """
    unit = F.normalize(torch.stack(list(vectors)), dim=2)
    total, counted = unit.new_zeros(()), unit.new_zeros(())
    for i in range(len(vectors) - 1):
        logits = torch.matmul(logit_scale * unit[i], unit[i + 1 :].mT)  # (R, B, B)
        right = logits.diagonal(dim1=1, dim2=2)
        if present is None:
            cost = logits.logsumexp(2) + logits.logsumexp(1) - 2 * right
            total, counted = total + cost.mean(1).sum() / 2, counted + len(logits)
            continue
        both = present[i] & present[i + 1 :]  # (R, B)
        logits = logits.masked_fill(~(both[:, None] & both[:, :, None]), ABSENT)
        cost = (logits.logsumexp(2) + logits.logsumexp(1) - 2 * right).masked_fill(~both, 0)
        total = total + (cost.sum(1) / both.sum(1).clamp(min=1)).sum() / 2
        counted = counted + (both.sum(1) > 1).sum()
    return total / counted.clamp(min=1)


def modality_pairs(modalities: int) -> list[tuple[int, int]]:
    """All unordered pairs, (0, 1) first."""
    return list(combinations(range(modalities), 2))


def masked_cross_entropy(
    logits: Float[Tensor, "B K"],
    rows: Bool[Tensor, " B"] | None,
    *,
    columns: Bool[Tensor, "B K"] | None = None,
    targets: Int[Tensor, " B"] | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean over `rows` of the cross entropy of their logits, as if the other rows and columns were not there.

    Args:
        rows: which rows ask; absent: all.
        columns: what each row may answer; absent: the rows that ask, or everything where all do.
        targets: the right column; absent: the diagonal.
        label_smoothing: this share of the target is spread evenly over the columns.
    """
    if targets is None:
        targets = torch.arange(len(logits), device=logits.device)
    if rows is None:
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    allowed = rows.expand(len(logits), -1) if columns is None else columns
    log_p = logits.masked_fill(~allowed, -torch.inf).log_softmax(1)
    cost = -log_p.gather(1, targets[:, None])[:, 0]
    if label_smoothing:
        even = log_p.masked_fill(~allowed, 0).sum(1) / allowed.sum(1).clamp(min=1)
        cost = (1 - label_smoothing) * cost - label_smoothing * even
    return cost.masked_fill(~rows, 0).sum() / rows.sum().clamp(min=1)


def _cross_entropy(
    logits: Float[Tensor, "B B"],
    axis: int,
    labels: Int[Tensor, " B"] | None,
    present: Bool[Tensor, " B"] | None,
) -> Float[Tensor, ""]:
    if present is not None:
        logits = logits if axis == 1 else logits.T
        if labels is None:
            return masked_cross_entropy(logits, present)
        return _masked_class_entropy(logits, labels, present)
    log_p = logits.log_softmax(axis)
    if labels is None:
        return -log_p.diagonal().mean()
    same = (labels[:, None] == labels).to(log_p.dtype)
    return -((same * log_p).sum(axis) / same.sum(axis)).mean()


def _masked_class_entropy(
    logits: Float[Tensor, "B B"], labels: Int[Tensor, " B"], present: Bool[Tensor, " B"]
) -> Float[Tensor, ""]:
    """Targets spread over the present samples of a row's class; rows ask along axis 1."""
    log_p = logits.masked_fill(~present, -torch.inf).log_softmax(1).masked_fill(~present, 0)
    same = ((labels[:, None] == labels) & present).to(log_p.dtype)
    cost = -(same * log_p).sum(1) / same.sum(1).clamp(min=1)
    return cost.masked_fill(~present, 0).sum() / present.sum().clamp(min=1)


def collision_rate(labels: Int[Tensor, " B"]) -> Float[Tensor, ""]:
    """Share of samples that have another sample of their class in the batch: wrong negatives of diagonal
    targets."""
    same = labels[:, None] == labels
    return (same.sum(1) > 1).float().mean()
