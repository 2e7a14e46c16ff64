"""Contrastive losses of SPANER as pure functions: vectors in, a scalar out.

Paper: SPANER, Algorithm 1 and the loss of eqs. 4-6: L = L_align(f_1, f_2) + lambda L_CA(z_1, z_2), where both
terms are the function `contrastive` below.

Differs from the reference in: nothing by default. `targets="class"` is an addition: in a batch with several
samples of one class, the paper's diagonal targets push apart pairs that belong together; see
`collision_rate`.
"""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def contrastive(
    a: Float[Tensor, "B E"],
    b: Float[Tensor, "B E"],
    logit_scale: float | Float[Tensor, ""],
    *,
    direction: Literal["both", "image", "text"] = "both",
    labels: Int[Tensor, " B"] | None = None,
) -> Float[Tensor, ""]:
    """Cross entropy over logit_scale * cos(a, b); row i of `a` belongs to row i of `b`.

    Args:
        a: vectors of the first modality (image), of any length.
        b: vectors of the second (text).
        logit_scale: 1 / temperature.
        direction: who asks. "image": each a among all b; "text": each b among all a; "both": the mean.
        labels: classes of the pairs. Given, every pair of equal class is a positive and the target is spread
            evenly over them (multi-positive); absent, only the diagonal is.

    Example: a = b = the 2 x 2 identity, scale 1 -> log(1 + exp(-1)) = 0.3133.
    """
    logits = F.linear(logit_scale * F.normalize(a, dim=1), F.normalize(b, dim=1))
    asked = {"image": (1,), "text": (0,), "both": (1, 0)}[direction]  # the axis of the candidates
    return sum((_cross_entropy(logits, axis, labels) for axis in asked), logits.new_zeros(())) / len(asked)


def _cross_entropy(
    logits: Float[Tensor, "B B"], axis: int, labels: Int[Tensor, " B"] | None
) -> Float[Tensor, ""]:
    log_p = logits.log_softmax(axis)
    if labels is None:
        return -log_p.diagonal().mean()
    same = (labels[:, None] == labels).to(log_p.dtype)
    return -((same * log_p).sum(axis) / same.sum(axis)).mean()


def collision_rate(labels: Int[Tensor, " B"]) -> Float[Tensor, ""]:
    """Share of samples that have another sample of their class in the batch: wrong negatives of diagonal
    targets."""
    same = labels[:, None] == labels
    return (same.sum(1) > 1).float().mean()
