"""Training: every sample and view once an epoch, each with a text of its class in a random template.

Differs from the reference in: nothing. It reads a Task and never sees a test row; the loop itself is in
`align.loop`.
"""

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from spaner import cache as caches
from spaner.align.methods import method as methods
from spaner.align.methods.loop import Pairs, batch_numbers, optimise
from spaner.align.score.evaluate import opened_cache
from spaner.align.train.config import TrainConfig
from spaner.align.train.run import Run
from spaner.align.train.task import Task, task
from spaner.device import device_of, precision_of
from spaner.errors import RecipeError
from spaner.progress import Progress


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
    history = optimise(model, pairs(data), config, device, progress)
    return finished(config, model, data, history, time.perf_counter() - started)


def finished(
    config: TrainConfig, model: Any, data: Task, history: list[dict[str, float]], seconds: float
) -> Run:
    """The run of a model that has been trained on `data`."""
    arithmetic = precision_of(config.precision, device_of(config.device), batch_numbers(pairs(data), config))
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
        seconds=seconds,
        versions={
            "spaner": version("spaner"),
            "torch": torch.__version__,
            "arithmetic": str(arithmetic).removeprefix("torch."),
        },
    )


def pairs(data: Task) -> Pairs:
    """Every view of every sample, and the texts of its class in all templates as its partners."""
    classes, templates = data.text.shape[:2]
    return Pairs(
        modality=data.modality,
        x=data.x.flatten(0, 1),
        labels=data.labels.repeat_interleave(data.x.shape[1]),
        partner="text",
        pool=data.text.flatten(0, 1),
        start=torch.arange(classes) * templates,
        count=torch.full((classes,), templates),
    )
