"""ModGap: a contrastive loss, and two terms that close the gap between modalities without a collapse.

Source: Grassucci et al., "Closing the Modality Gap Aligns Group-Wise Semantics" (ICLR 2026), its loss for two
modalities, extended here to M as the mean over pairs:

    L = InfoNCE + lambda_1 mean |a - b|^2 + lambda_2 log mean_{i != j} exp(-2 |c_i - c_j|^2)

with c the centre of a sample's vectors at unit length, c = n((a + b) / 2). The second term draws the vectors
of a sample together (for unit vectors 2 - 2 cos), the third keeps samples apart (uniformity of the centres).

Needs unit vectors of two modalities or more. Knows no encoder, prompt or cache. The temperature 0.1 is the
paper's; both weights are 1 unless told otherwise, which is our choice.

Added: missing rows. A pair counts the samples that have both, a centre is that of the vectors which are
there.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from spaner.align.methods.losses import modality_pairs, pairs


def loss(
    z: Sequence[Float[Tensor, "B E"]],
    present: Bool[Tensor, "M B"] | None = None,
    *,
    temperature: float = 0.1,
    together: float = 1.0,
    apart: float = 1.0,
) -> Float[Tensor, ""]:
    """L of a batch; `together` and `apart` are lambda_1 and lambda_2."""
    contrast = pairs(z, 1 / temperature, present)
    return contrast + together * distance(z, present) + apart * spread(centres(z, present), present)


def distance(
    z: Sequence[Float[Tensor, "B E"]], present: Bool[Tensor, "M B"] | None = None
) -> Float[Tensor, ""]:
    """Mean squared distance of a sample's vectors: over its samples within a pair, then over pairs."""
    total, counted = z[0].new_zeros(()), z[0].new_zeros(())
    for i, j in modality_pairs(len(z)):
        squared = (z[i] - z[j]).square().sum(1)
        both = torch.ones_like(squared) if present is None else (present[i] & present[j]).to(squared.dtype)
        total = total + (squared * both).sum() / both.sum().clamp(min=1)
        counted = counted + both.any()
    return total / counted.clamp(min=1)


def centres(
    z: Sequence[Float[Tensor, "B E"]], present: Bool[Tensor, "M B"] | None = None
) -> Float[Tensor, "B E"]:
    """The direction of the sum of the vectors that are there."""
    stacked = torch.stack(list(z))
    if present is not None:
        stacked = stacked * present[..., None].to(stacked.dtype)
    return F.normalize(stacked.sum(0), dim=1)


def spread(
    c: Float[Tensor, "B E"], present: Bool[Tensor, "M B"] | None = None, *, t: float = 2.0
) -> Float[Tensor, ""]:
    """log of the mean over different samples of exp(-t |c_i - c_j|^2); 0 when all coincide. Samples without
    any vector are left out."""
    there = torch.ones(len(c), dtype=torch.bool, device=c.device) if present is None else present.any(0)
    different = there[:, None] & there & ~torch.eye(len(c), dtype=torch.bool, device=c.device)
    exponent = (-t * (2 - 2 * c @ c.T)).masked_fill(~different, -torch.inf)
    mean = exponent.flatten().logsumexp(0) - different.sum().clamp(min=1).log()
    return torch.where(different.any(), mean, torch.zeros_like(mean))
