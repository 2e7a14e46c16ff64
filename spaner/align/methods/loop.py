"""The optimisation loop: features in memory, batches by index, nothing else.

An epoch shows every sample once, each with a random partner of its class. Order and partners are drawn for a
whole epoch at a time from a CPU generator, so a run is the same bits every time on one machine, and the host
waits for the device once an epoch. AdamW; the learning rate falls to zero along a cosine, step by step. A
last short batch is kept; a single sample left over joins the batch before it, since alone it has no
negatives.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spaner.align.methods.step import adamw, set_rates, step_of
from spaner.align.methods.task import Companion, Task
from spaner.device import keep_freed_memory, precision_of, threads
from spaner.errors import RunError
from spaner.progress import Progress
from spaner.settings import check, option

Step = Callable[[float, dict[str, Tensor], Tensor], dict[str, Tensor]]
"""(share of the initial learning rate, batch, labels) -> named losses, after one update."""


@dataclass(frozen=True)
class Loop:
    """The loop's settings, for methods that are trained by it."""

    epochs: int = option(30, "Passes over all rows and views.", low=1, axis="epoch_counts")
    batch_size: int = option(256, "Samples per step B.", low=2)
    lr: float = option(
        1e-3, "AdamW's initial learning rate; falls to zero along a cosine.", low=1e-12, stacks=True
    )
    weight_decay: float = option(0.01, "Weight decay.", low=0, stacks=True)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Pool:
    """Rows of a further modality: sample i has `x[start[i] : start[i] + count[i]]` to draw from.

    A sample with count 0 lacks the modality: its row in a batch is zeros, which no embedding is.
    """

    modality: str
    x: Float[Tensor, "R W"]
    start: Int[Tensor, " M"]
    count: Int[Tensor, " M"]

    def partners(self, generator: torch.Generator) -> Int[Tensor, " M"]:
        """A row for every sample; where it has none, the one behind the last."""
        chance = torch.rand(len(self.count), generator=generator, dtype=torch.float64)
        return torch.where(self.count > 0, self.start + (chance * self.count).long(), len(self.x))

    def rows(self) -> Float[Tensor, "R1 W"]:
        """`x`, and the row of zeros behind it."""
        return torch.cat([self.x, self.x.new_zeros(1, self.x.shape[1])])


@dataclass(frozen=True)
class Pairs:
    """Samples, and for each class a run of rows in a pool from which a sample's partner is drawn.

    The partners of class c are `pool[start[c] : start[c] + count[c]]`; every class of `labels` has some.
    `others` are the pools of further modalities that are trained together with these two; where `partner` is
    None, there is no pool beside them.
    """

    modality: str
    x: Float[Tensor, "M D"]
    labels: Int[Tensor, " M"]
    partner: str | None
    pool: Float[Tensor, "R W"]
    start: Int[Tensor, " C"]
    count: Int[Tensor, " C"]
    others: tuple[Pool, ...] = ()

    def partners(self, generator: torch.Generator) -> Int[Tensor, " M"]:
        """A row of the pool for every sample, uniform over the partners of its class; 0 without a pool."""
        if self.partner is None:
            return torch.zeros_like(self.labels)
        count = self.count[self.labels]
        chance = torch.rand(len(self.labels), generator=generator, dtype=torch.float64)
        return self.start[self.labels] + (chance * count).long()


def pairs_of(task: Task) -> Pairs:
    """Every view of every sample, and the texts of its class in all templates as its partners."""
    classes, templates = task.text.shape[:2]
    return Pairs(
        modality=task.modality,
        x=task.x.flatten(0, 1),
        labels=task.labels.repeat_interleave(task.x.shape[1]),
        partner="text" if classes else None,
        pool=task.text.flatten(0, 1),
        start=torch.arange(classes) * templates,
        count=torch.full((classes,), templates),
        others=tuple(_pool(name, each, task) for name, each in task.companions.items()),
    )


def _pool(modality: str, companion: Companion, task: Task) -> Pool:
    """All views of a sample's own rows, or of every row of its class."""
    rows, views = companion.samples, companion.samples.x.shape[1]
    if companion.start is not None and companion.count is not None:
        x, start, count = rows.x, companion.start * views, companion.count * views
    else:
        x, of_class = rows.x[rows.labels.argsort(stable=True)], torch.bincount(rows.labels) * views
        count, start = of_class[task.labels], (of_class.cumsum(0) - of_class)[task.labels]
    each = task.x.shape[1]
    return Pool(modality, x.flatten(0, 1), start.repeat_interleave(each), count.repeat_interleave(each))


def optimise(
    model: nn.Module, pairs: Pairs, settings: Any, device: torch.device, progress: Progress | None = None
) -> list[dict[str, float]]:
    """Minimise `model.loss` over its parameters that take a gradient.

    `settings` has the fields of `Loop`, `seed`, `precision` and `compile`.

    Returns:
        The mean of every named loss and the last learning rate, per epoch.

    Raises:
        RunError: fewer than two samples, or a loss that is not finite.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = adamw(trained, settings.lr, settings.weight_decay, device)
    numbers = batch_numbers(pairs, settings)
    precision = precision_of(settings.precision, device, numbers)
    loss: Any = model.loss
    take = step_of(loss, optimizer, precision, settings.compile, device)

    def step(fraction: float, batch: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        crew.look()
        set_rates(optimizer, [settings.lr * fraction])
        return take(batch, labels)

    history = []
    with threads(numbers, device) as crew:
        for means, fraction in passes(pairs, draws(pairs, settings), settings, device, step):
            values = dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))  # waits here
            history.append({"epoch": len(history) + 1, **values, "lr": settings.lr * fraction})
            check_finite(history[-1], settings)
            if progress:
                progress(len(history), settings.epochs, f"loss {history[-1]['loss']:.4f}")
    return history


def batch_numbers(pairs: Pairs, settings: Any) -> int:
    """How many numbers a batch of one modality holds: it decides what is worth which arithmetic."""
    return min(len(pairs.x), settings.batch_size) * pairs.x.shape[1]


def draws(pairs: Pairs, settings: Any) -> Iterator[Int[Tensor, "R M"]]:
    """For every epoch the row of a sample, its partner's row in the pool, its class, and its rows in the
    other pools, in order of use."""
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.epochs):
        order = torch.randperm(len(pairs.x), generator=generator)
        partners = pairs.partners(generator)
        others = [pool.partners(generator)[order] for pool in pairs.others]
        yield torch.stack([order, partners[order], pairs.labels[order], *others])


def passes(
    pairs: Pairs, drawn: Iterable[Int[Tensor, "*K R M"]], settings: Any, device: torch.device, step: Step
) -> Iterator[tuple[dict[str, Float[Tensor, "*K"]], float]]:
    """Take all steps of every epoch; after each epoch the means of the losses and the last share of the rate.

    `drawn` is what `draws` gives, for one model or stacked for K of them. Yields tensors on the device.

    Raises:
        RunError: fewer than two samples, or an accelerator without enough memory.
    """
    try:
        yield from _passes(pairs, drawn, settings, device, step)
    except torch.OutOfMemoryError:
        raise RunError(
            f"the memory of {device} is full; lower batch_size (now {settings.batch_size}), "
            "train fewer cells of a sweep at once (--stack 1), or use device=cpu"
        ) from None


def _passes(
    pairs: Pairs, drawn: Iterable[Int[Tensor, "*K R M"]], settings: Any, device: torch.device, step: Step
) -> Iterator[tuple[dict[str, Float[Tensor, "*K"]], float]]:
    x, pool = pairs.x.to(device), pairs.pool.to(device)
    others = {other.modality: other.rows().to(device) for other in pairs.others}
    bounds = batch_bounds(len(x), settings.batch_size)
    fractions = _cosine(1.0, settings.epochs * len(bounds))
    keep_freed_memory(device)
    for order in drawn:
        index, fraction = order.to(device), 1.0
        sums: dict[str, Tensor] = {}
        for start, stop in bounds:
            fraction = next(fractions)
            rows, columns, labels, *further = index[..., start:stop].unbind(-2)
            batch = {pairs.modality: gather(x, rows)}
            batch |= {} if pairs.partner is None else {pairs.partner: gather(pool, columns)}
            batch |= {
                name: gather(own, places) for (name, own), places in zip(others.items(), further, strict=True)
            }
            for name, value in step(fraction, batch, labels).items():
                sums[name] = sums.get(name, 0) + value * (stop - start)
        yield {name: total / len(x) for name, total in sums.items()}, fraction


def gather(x: Float[Tensor, "M D"], rows: Int[Tensor, "*K B"]) -> Float[Tensor, "*K B D"]:
    """`x[rows]`, four times as fast on a CPU."""
    return x.index_select(0, rows.flatten()).view(*rows.shape, -1)


def batch_bounds(samples: int, batch_size: int) -> list[tuple[int, int]]:
    """(start, stop) of the batches. A single sample left over joins the batch before it."""
    if samples < 2:
        raise RunError(
            f"training needs at least 2 samples, found {samples}; draw more shots or check the cache"
        )
    starts = list(range(0, samples, batch_size))
    if samples - starts[-1] == 1 and len(starts) > 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], samples], strict=True))


def _cosine(lr: float, steps: int) -> Iterator[float]:
    return (lr * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps))


def check_finite(means: dict[str, float], settings: Any) -> None:
    if not all(map(math.isfinite, means.values())):
        raise RunError(
            f"the loss is {means['loss']} in epoch {means['epoch']:.0f} of {settings.epochs}; "
            f"expected a finite number; "
            f"lower lr (now {settings.lr:g}) or logit_scale, or use precision=float32"
        )
