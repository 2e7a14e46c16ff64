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

from spaner.align.methods.descent import dassl_cosine
from spaner.align.methods.task import Task, Tools
from spaner.errors import Mismatch, RunError

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

    @property
    def device(self) -> torch.device: ...

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


def tower_of(method: str, task: Task, tools: Tools) -> Tower:
    """The tower that was handed in, if it is that of the task's texts.

    Raises:
        RunError: none was. Mismatch: it has other weights.
    """
    tower, spec = tools.text_tower, task.encoders["text"]
    if tower is None:
        raise RunError(
            f"method {method} needs a text tower beside the cache, and none was handed in; expected that of "
            f"{spec.name!r}; type `spaner train --method {method}`, or pass text_tower= to fit"
        )
    if tower.sha256 != spec.weights_sha256:
        raise Mismatch(
            f"the text tower's weights are {tower.sha256[:12]}, the cache's texts were embedded with "
            f"{spec.weights_sha256[:12]} ({spec.name}, {spec.weights}); hand in the tower of that encoder: "
            "`--text-model` and `--text-weights`"
        )
    return tower


def dassl_plan(task: Task, settings: Any) -> tuple[list[float], list[Rows], int]:
    """Rates, batches and batches per epoch: every row once an epoch in one of its views, numbered view * N
    + row; a last short batch is left out, as there."""
    rows, views = task.x.shape[:2]
    generator = torch.Generator().manual_seed(settings.seed)
    count = max(1, rows // settings.batch_size)
    batches = []
    for _ in range(settings.epochs):
        order = torch.randperm(rows, generator=generator)
        view = torch.randint(views, (rows,), generator=generator)
        batches += (view * rows + order).split(settings.batch_size)[:count]
    return dassl_cosine(settings.lr, settings.epochs, count), batches, count


def by_epoch(
    losses: Iterable[Tensor], rates: Sequence[float], per_epoch: int, tools: Tools
) -> list[dict[str, float]]:
    """Take every step; the mean loss and the last rate of each epoch.

    Raises:
        RunError: the mean is not finite.
    """
    history, seen, epochs = [], [], len(rates) // per_epoch
    for value in losses:
        seen.append(value)
        if len(seen) < per_epoch:
            continue
        mean, epoch = float(torch.stack(seen).mean()), len(history) + 1
        if not math.isfinite(mean):
            raise RunError(
                f"the loss is {mean} in epoch {epoch} of {epochs}; expected a finite number; lower lr "
                f"(now {max(rates):g})"
            )
        history.append({"epoch": epoch, "loss": mean, "lr": rates[epoch * per_epoch - 1]})
        seen = []
        if tools.progress:
            tools.progress(epoch, epochs, f"loss {mean:.4f}")
    return history


def view_first(task: Task, tower: Tower) -> tuple[Float[Tensor, "M D"], Int[Tensor, " N"]]:
    """All views as one pool (view 0 of every row, then view 1 ...) and the rows' labels, where the tower
    is."""
    return task.x.transpose(0, 1).flatten(0, 1).to(tower.device), task.labels.to(tower.device)
