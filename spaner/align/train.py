"""One training loop for every gradient-trained method: features in memory, batches by index, nothing else.

An epoch shows every sample and view once, each with a text of its class in a random template. Order and
templates are drawn for a whole epoch at a time from a CPU generator seeded by (seed), so a run is the same
bits every time on one machine, and the host waits for the device once an epoch. AdamW; the learning rate
falls to zero along a cosine, step by step. A last short batch is kept; a single sample left over joins the
batch before it, since alone it has no negatives.

Differs from the reference in: nothing. It reads a Task and never sees a test row.
"""

import math
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from spaner import cache as caches
from spaner.align import methods
from spaner.align.checkpoint import Run
from spaner.align.config import TrainConfig
from spaner.align.data import Task, task
from spaner.align.evaluate import opened_cache
from spaner.cache.errors import RecipeError, RunError

Progress = Callable[[int, int, str], None]


def fit(
    data: caches.Cache | Task | str | Path,
    config: TrainConfig | None = None,
    progress: Progress | None = None,
    **overrides: Any,
) -> Run:
    """Train on a cache, its path, or a Task.

    Args:
        data: what to train on. Only training rows and texts are read.
        config: resolved settings; default the recipe "paper", or `recipe=` among the overrides.
        progress: called after every epoch with (epochs done, epochs, text).
        **overrides: settings by name, instead of `config`.

    Raises:
        RecipeError: a setting without meaning, or both `config` and `overrides`. RunError: the loss is not
        finite. CacheError, Mismatch, Corrupt: see `data.task`.
    """
    if config is None:
        config = TrainConfig.from_recipe(overrides.pop("recipe", "paper"), **overrides)
    elif overrides:
        raise RecipeError(f"fit: got config and {', '.join(overrides)}; put every setting into the config")
    if not isinstance(data, Task):
        data = task(opened_cache(data), config)
    device = device_of(config.device)
    model = methods.method(config.method).build(config, data.widths, data.logit_scale).to(device)
    started = time.perf_counter()
    history = _train(model, data, config, device, progress)
    return Run(
        config=config,
        model=model.cpu().eval(),
        dataset=data.dataset,
        class_names=data.class_names,
        widths=data.widths,
        logit_scale=data.logit_scale,
        encoders=data.encoders,
        draw=data.draw.to_json(),
        tables=data.tables,
        history=history,
        seconds=time.perf_counter() - started,
        versions={"spaner": version("spaner"), "torch": torch.__version__},
    )


def device_of(name: str) -> torch.device:
    """The device of that name; "auto" takes CUDA, then Apple's MPS, then the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise RecipeError(
            f"device is {name!r}, which torch cannot use here; use device=cpu or device=auto"
        ) from None
    return device


def _train(
    model: nn.Module, data: Task, config: TrainConfig, device: torch.device, progress: Progress | None
) -> list[dict[str, float]]:
    """Run all epochs; the mean of every named loss per epoch."""
    x, text = data.x.flatten(0, 1).to(device), data.text.flatten(0, 1).to(device)
    labels = data.labels.repeat_interleave(data.x.shape[1])
    bounds = _batch_bounds(len(x), config.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, weight_decay=config.weight_decay, fused=True)
    rates = _cosine(config.lr, config.epochs * len(bounds))
    generator = torch.Generator().manual_seed(config.seed)
    history = []
    for epoch in range(1, config.epochs + 1):
        order = torch.randperm(len(x), generator=generator)
        texts = labels * data.text.shape[1] + torch.randint(
            data.text.shape[1], labels.shape, generator=generator
        )
        index = torch.stack([order, texts[order], labels[order]]).to(device)
        sums: dict[str, Tensor] = {}
        rate = config.lr
        for start, stop in bounds:
            rate = next(rates)
            rows, columns, classes = index[:, start:stop]
            batch = {data.modality: x[rows], "text": text[columns]}
            terms = _step(model, optimizer, rate, batch, classes, precision_of(config.precision, device))
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach() * (stop - start)
        means = torch.stack(list(sums.values())).div(len(x)).tolist()  # the epoch's one synchronisation
        history.append({"epoch": epoch, **dict(zip(sums, means, strict=True)), "lr": rate})
        _check_finite(history[-1], config)
        if progress:
            progress(epoch, config.epochs, f"loss {history[-1]['loss']:.4f}")
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


def precision_of(name: str, device: torch.device) -> torch.dtype:
    """The arithmetic of a setting; "auto" is bfloat16 where the processor multiplies it faster, else
    float32."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.float32


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


def _check_finite(means: dict[str, float], config: TrainConfig) -> None:
    if not all(map(math.isfinite, means.values())):
        raise RunError(
            f"the loss is {means['loss']} in epoch {means['epoch']:.0f} of {config.epochs}; "
            f"expected a finite number; "
            f"lower lr (now {config.lr:g}) or logit_scale, or use precision=float32"
        )
