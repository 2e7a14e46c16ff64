"""The optimisation loop: features in memory, batches by index, nothing else.

An epoch shows every sample once, each with a random partner of its class. Order and partners are drawn for a
whole epoch at a time from a CPU generator, so a run is the same bits every time on one machine, and the host
waits for the device once an epoch. AdamW; the learning rate falls to zero along a cosine, step by step. A
last short batch is kept; a single sample left over joins the batch before it, since alone it has no
negatives.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spaner.align.device import keep_freed_memory, precision_of, threads
from spaner.cache.errors import RunError

Progress = Callable[[int, int, str], None]


class Settings(Protocol):
    """What the loop reads of a configuration."""

    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def precision(self) -> str: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Pairs:
    """Samples, and for each class a run of rows in a pool from which a sample's partner is drawn.

    The partners of class c are ``pool[start[c] : start[c] + count[c]]``; every class of ``labels`` has some.
    """

    modality: str
    x: Float[Tensor, "M D"]
    labels: Int[Tensor, " M"]
    partner: str
    pool: Float[Tensor, "R W"]
    start: Int[Tensor, " C"]
    count: Int[Tensor, " C"]

    def partners(self, generator: torch.Generator) -> Int[Tensor, " M"]:
        """A row of the pool for every sample, uniform over the partners of its class."""
        count = self.count[self.labels]
        chance = torch.rand(len(self.labels), generator=generator, dtype=torch.float64)
        return self.start[self.labels] + (chance * count).long()


def optimise(
    model: nn.Module, pairs: Pairs, settings: Settings, device: torch.device, progress: Progress | None = None
) -> list[dict[str, float]]:
    """Minimise ``model.loss`` over its parameters that take a gradient.

    Returns:
        The mean of every named loss and the last learning rate, per epoch.

    Raises:
        RunError: fewer than two samples, or a loss that is not finite.
    """
    x, pool = pairs.x.to(device), pairs.pool.to(device)
    bounds = _batch_bounds(len(x), settings.batch_size)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, settings.lr, weight_decay=settings.weight_decay, fused=True)
    rates = _cosine(settings.lr, settings.epochs * len(bounds))
    precision = precision_of(settings.precision, device)
    generator = torch.Generator().manual_seed(settings.seed)
    history = []
    keep_freed_memory(device)
    with threads(min(len(x), settings.batch_size) * x.shape[1], device):
        for epoch in range(1, settings.epochs + 1):
            order = torch.randperm(len(x), generator=generator)
            partners = pairs.partners(generator)
            index = torch.stack([order, partners[order], pairs.labels[order]]).to(device)
            sums: dict[str, Tensor] = {}
            rate = settings.lr
            for start, stop in bounds:
                rate = next(rates)
                rows, columns, labels = index[:, start:stop]
                batch = {pairs.modality: x[rows], pairs.partner: pool[columns]}
                for name, value in _step(model, optimizer, rate, batch, labels, precision).items():
                    sums[name] = sums.get(name, 0) + value.detach() * (stop - start)
            means = torch.stack(list(sums.values())).div(len(x)).tolist()  # the epoch's one synchronisation
            history.append({"epoch": epoch, **dict(zip(sums, means, strict=True)), "lr": rate})
            _check_finite(history[-1], settings)
            if progress:
                progress(epoch, settings.epochs, f"loss {history[-1]['loss']:.4f}")
    return history


def _step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    rate: float,
    batch: dict[str, Tensor],
    labels: Int[Tensor, " B"],
    precision: torch.dtype,
) -> dict[str, Tensor]:
    """One optimiser step at the given learning rate; the batch's losses."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    with torch.autocast(labels.device.type, torch.bfloat16, enabled=precision is torch.bfloat16):
        terms = model.loss(batch, labels)
    terms["loss"].backward()
    optimizer.step()
    return terms


def _batch_bounds(samples: int, batch_size: int) -> list[tuple[int, int]]:
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


def _check_finite(means: dict[str, float], settings: Settings) -> None:
    if not all(map(math.isfinite, means.values())):
        raise RunError(
            f"the loss is {means['loss']} in epoch {means['epoch']:.0f} of {settings.epochs}; "
            f"expected a finite number; "
            f"lower lr (now {settings.lr:g}) or logit_scale, or use precision=float32"
        )
