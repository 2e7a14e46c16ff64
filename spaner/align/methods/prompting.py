"""What prompt learners share: the tower that they are handed, class vectors from a context, steps of descent.

`align` never imports `extract`: a tower arrives as an argument and is known by the protocol `Tower` alone.
All tensors of one call lie on one device and have one type. Nothing here is learned by itself.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Rows = Int[Tensor, " B"]


class Prompted(Protocol):
    """Names with room for M vectors: (B, M, W) -> (B, C, D); with `per_class`, context i belongs to name
    i."""

    def __call__(
        self, context: Float[Tensor, "B M W"], *, per_class: bool = False
    ) -> Float[Tensor, "B C D"]: ...


class Tower(Protocol):
    """A frozen text tower through which gradients go (`extract.encoders.text_tower.PromptTower`).

    Attributes:
        width: of a token's vector.
        sha256: of the encoder's weights.
    """

    @property
    def width(self) -> int: ...

    sha256: str

    def context_of(self, text: str) -> Float[Tensor, "M W"]:
        """The vectors of the words' tokens."""
        ...

    def prompted(
        self,
        names: Sequence[str],
        length: int,
        position: str = "end",
        *,
        block_rows: int | None = None,
        recompute: bool = False,
    ) -> Prompted:
        """Names with room for `length` vectors."""
        ...


def spoken(names: Iterable[str]) -> list[str]:
    """Names as the published code writes them: underscores are spaces."""
    return [name.replace("_", " ") for name in names]


def class_vectors(prompted: Prompted, context: Float[Tensor, "*C M W"]) -> Float[Tensor, "C D"]:
    """Unit vectors of all names in one context, or each in its own (three axes)."""
    own = context.ndim == 3
    return F.normalize(prompted(context if own else context[None], per_class=own)[0], dim=1)


def descend(
    parameters: Iterable[Tensor],
    loss: Callable[[Rows], Float[Tensor, ""]],
    rates: Iterable[float],
    batches: Iterable[Rows],
    **sgd: Any,
) -> Iterator[Float[Tensor, ""]]:
    """A step of SGD per rate and batch; yields the batch's loss before the step."""
    optimizer = torch.optim.SGD(parameters, lr=0.0, **sgd)
    for rate, rows in zip(rates, batches, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        value = loss(rows)
        value.backward()
        optimizer.step()
        yield value.detach()


def dassl_cosine(
    lr: float, epochs: int, per_epoch: int, *, warmup: int = 1, warmup_lr: float = 1e-5
) -> list[float]:
    """The rate as Dassl steps it, once an epoch: `warmup` epochs at a constant, then a cosine over *all*
    epochs that starts late, so that the last epoch ends above zero."""
    rates = [
        warmup_lr if epoch < warmup else lr * (1 + math.cos(math.pi * (epoch - warmup) / epochs)) / 2
        for epoch in range(epochs)
    ]
    return [rate for rate in rates for _ in range(per_epoch)]
