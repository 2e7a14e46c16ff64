"""Several cells of a sweep trained as one batched tensor program: for a GPU that one cell leaves idle.

Cells may differ in the settings marked `stacks`; everything that decides shapes, rows or the number of steps
must agree. Each cell is built exactly as alone, keeps its own parameters, optimiser state, learning rate and
random order, and its update is the one it would have made alone: the loss of one cell has no gradient in
another. What differs is the order of sums inside the products, so a stacked cell equals its single run within
rounding. A cell whose loss stops being finite drops out alone; trained by itself it tells why.

Needs the memory of K cells, and tokens (K, B, P + 1, D) that a single run does not keep. On a CPU, processes
with a thread each are faster.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from spaner.align.methods import method as methods
from spaner.align.methods.loop import Pairs, batch_numbers, check_finite, draws, pairs_of, passes
from spaner.align.methods.method import Stackable
from spaner.align.methods.step import adamw, set_rates, step_of
from spaner.align.methods.task import Task
from spaner.align.train.config import TrainConfig
from spaner.align.train.fit import finished
from spaner.align.train.run import Run
from spaner.align.train.select import Receipt
from spaner.align.train.task import scale_of
from spaner.device import device_of, precision_of
from spaner.errors import RunError
from spaner.progress import Progress


def stacked(config: TrainConfig) -> set[str]:
    """Settings in which cells trained as one may differ: those marked `stacks`."""
    fields = (f for part in config.parts for f in dataclasses.fields(part))
    return {f.name for f in fields if f.metadata.get("stacks")}


def shape(config: TrainConfig) -> str | None:
    """Equal for cells that can be trained as one on the same rows; None if the method, or its compiled step,
    trains alone."""
    if not issubclass(methods.method(config.method), Stackable) or config.open_grid():
        return None
    free = stacked(config)
    alike = str({name: value for name, value in config.to_json().items() if name not in free})
    return None if config.compile == "on" else alike


def fit_stack(data: Task, configs: Sequence[TrainConfig]) -> list[Run | None]:
    """`train.fit` for configurations of one `shape`; `Run.seconds` is a cell's share of the time.

    Returns:
        A run for every configuration, in order; None where the loss was not finite: `train.fit` tells why.

    Raises:
        SpanerError: as `fit`, for the first configuration that cannot be built.
    """
    device = device_of(configs[0].device)
    tasks = [dataclasses.replace(data, logit_scale=scale_of(c, data.encoders)) for c in configs]
    build = methods.method(configs[0].method).build
    models = [build(c, t.facts()).to(device) for c, t in zip(configs, tasks, strict=True)]
    started = time.perf_counter()
    histories = optimise_stack(models, pairs_of(data), configs, device)
    seconds = (time.perf_counter() - started) / len(configs)
    return [
        None if history is None else _finished(config, model, task, history, seconds)
        for config, model, task, history in zip(configs, models, tasks, histories, strict=True)
    ]


def _finished(
    config: TrainConfig, model: Any, task: Task, history: list[dict[str, float]], seconds: float
) -> Run:
    model.history = history
    return finished(config, model.cpu().eval().with_prior(task), task, Receipt("none"), seconds)


def optimise_stack(
    models: Sequence[Any],
    pairs: Pairs,
    settings: Sequence[TrainConfig],
    device: torch.device,
    progress: Progress | None = None,
) -> list[list[dict[str, float]] | None]:
    """`loop.optimise` for models of one shape on the same pairs, each with its own settings.

    Returns:
        For every model its history; None where `optimise` would have raised, the loss not being finite.

    Raises:
        RunError: fewer than two samples.
    """
    precision = precision_of(settings[0].precision, device, batch_numbers(pairs, settings[0]))
    program = _Program(models, settings, precision)
    drawn = (torch.stack(each) for each in zip(*(draws(pairs, s) for s in settings), strict=True))
    histories: list[list[dict[str, float]]] = [[] for _ in models]
    lost: set[int] = set()
    for epoch, (means, fraction) in enumerate(passes(pairs, drawn, settings[0], device, program.step), 1):
        for cell, values in enumerate(torch.stack(list(means.values()), 1).tolist()):
            entry = {
                "epoch": epoch,
                **dict(zip(means, values, strict=True)),
                "lr": settings[cell].lr * fraction,
            }
            histories[cell].append(entry)
            try:
                check_finite(entry, settings[cell])
            except RunError:
                lost.add(cell)
        if progress:
            mean = math.fsum(history[-1]["loss"] for history in histories) / len(histories)
            progress(epoch, settings[0].epochs, f"mean loss {mean:.4f}")
    return [None if cell in lost else history for cell, history in enumerate(histories)]


class _Program:
    """One step of K models: parameters stacked, losses side by side, an optimiser group for each."""

    def __init__(
        self, models: Sequence[Any], settings: Sequence[TrainConfig], precision: torch.dtype
    ) -> None:
        self.cell, self.settings = _Loss(models[0]), settings
        self.parameters = [dict(_Loss(model).named_parameters()) for model in models]
        like = next(models[0].parameters())
        numbers = [model.stacked_numbers() for model in models]
        self.numbers = {name: like.new_tensor([own[name] for own in numbers]) for name in numbers[0]}
        groups = [
            {
                "params": [parameter for parameter in own.values() if parameter.requires_grad],
                "lr": each.lr,
                "weight_decay": each.weight_decay,
            }
            for own, each in zip(self.parameters, settings, strict=True)
        ]
        self.optimizer = adamw(groups, settings[0].lr, settings[0].weight_decay, like.device)
        self.take = step_of(self.loss, self.optimizer, precision, settings[0].compile, like.device)

    def step(
        self, fraction: float, batch: dict[str, Float[Tensor, "K B D"]], labels: Int[Tensor, "K B"]
    ) -> dict[str, Float[Tensor, " K"]]:
        """Update every model once; the losses of each."""
        set_rates(self.optimizer, [each.lr * fraction for each in self.settings])
        return self.take(batch, labels)

    def loss(
        self, batch: dict[str, Float[Tensor, "K B D"]], labels: Int[Tensor, "K B"]
    ) -> dict[str, Float[Tensor, " K"]]:
        """The losses of every model."""
        stacked = {name: torch.stack([own[name] for own in self.parameters]) for name in self.parameters[0]}
        return torch.vmap(self._losses)(stacked, batch, labels, self.numbers)

    def _losses(self, parameters: dict[str, Tensor], *inputs: Any) -> dict[str, Float[Tensor, ""]]:
        return functional_call(self.cell, parameters, inputs)


class _Loss(nn.Module):
    """A model whose call is its loss, which is what `functional_call` can call."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, batch: dict[str, Tensor], labels: Tensor, numbers: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return self.model.loss(batch, labels, **numbers)
