"""CoCoOp: CoOp whose context bends to every image, by a small network on the image's embedding.

    v_m(x) = v_m + W2 relu(W1 x + b1) + b2,   t_k(x) = n(tower([start] v1(x) ... vM(x) [name k] . [end]))

Zhou et al. 2022 (arXiv:2203.05557), after KaiyangZhou/CoOp ff61507: hidden width D / 16, M = 4 from "a
photo of a", SGD 0.002, ten epochs, batches of one image. One pass of the text tower per image; names run
once per image, the prefix too. The network reads the final embedding, so images come from the cache.

Differs from the authors' code in: float32 instead of float16; one of the cached views an epoch; larger
batches are an option (all contexts of a batch in one pass of the tower).
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from spaner.align.methods.prompting import Prompted, descend


class MetaNet(nn.Module):
    """From a unit embedding to what is added to every context vector."""

    def __init__(self, dim: int, hidden: int, width: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B W"]:
        """ReLU between two linear maps."""
        return self.linear2(self.linear1(x).relu())


class ConditionalContext(nn.Module):
    """Context vectors (M, W), and the network that adds one vector, made from an embedding, to each of
    them."""

    def __init__(self, context: Float[Tensor, "M W"], dim: int) -> None:
        super().__init__()
        self.ctx = nn.Parameter(context)
        hidden, width = max(1, dim // 16), context.shape[1]
        self.meta_net = MetaNet(dim, hidden, width)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B M W"]:
        """One context per embedding of unit length."""
        return self.ctx + self.meta_net(x)[:, None]


def conditional_scores(
    prompted: Prompted, context: ConditionalContext, x: Float[Tensor, "B D"], scale: float
) -> Float[Tensor, "B C"]:
    """Scaled cosines of every embedding to the names in its own context."""
    text = F.normalize(prompted(context(x)), dim=2)
    return scale * torch.einsum("bd,bcd->bc", x, text)


def train_conditional(
    prompted: Prompted,
    context: ConditionalContext,
    x: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    *,
    scale: float,
    rates: Iterable[float],
    batches: Iterable[Int[Tensor, " B"]],
    weight_decay: float = 5e-4,
    momentum: float = 0.9,
) -> Iterator[Float[Tensor, ""]]:
    """Train context and network in place, a step for every loss that is taken; `x` has unit length."""

    def loss(rows: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        logits = conditional_scores(prompted, context, x[rows], scale)
        return F.cross_entropy(logits, labels[rows % len(labels)])

    parameters = context.parameters()
    return descend(parameters, loss, rates, batches, weight_decay=weight_decay, momentum=momentum)
