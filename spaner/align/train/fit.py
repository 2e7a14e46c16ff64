"""From a cache to a run: load the task, fit the method, choose what is open, and write down the facts.

`fit` reads training, validation and text rows only and never sees a test row; `train` scores the run
afterwards and keeps it in a folder.
"""

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from spaner import cache as caches
from spaner.align.methods import method as methods
from spaner.align.methods.loop import batch_numbers, pairs_of
from spaner.align.methods.task import Task, Tools
from spaner.align.score import calibration
from spaner.align.score.evaluate import asks_by_name, evaluate, evaluate_modalities, opened_cache
from spaner.align.train.config import TrainConfig
from spaner.align.train.joint import trained_together
from spaner.align.train.run import Run
from spaner.align.train.select import Receipt, fit_chosen
from spaner.align.train.task import task
from spaner.device import device_of, precision_of
from spaner.errors import RecipeError
from spaner.progress import Progress


def fit(
    data: caches.Cache | Task | str | Path,
    config: TrainConfig | None = None,
    progress: Progress | None = None,
    *,
    text_tower: Any = None,
    pictures: Any = None,
    sentences: Any = None,
    **overrides: Any,
) -> Run:
    """Fit a method on a cache, its path, or a Task.

    Args:
        data: what to learn from. Only training, validation and text rows are read.
        config: resolved settings; default the recipe "paper", or `recipe=` among the overrides.
        progress: called after every epoch with (epochs done, epochs, text).
        text_tower: a frozen text tower with gradients, for methods that learn prompts.
        pictures: the images as tokens of the image tower, for methods that learn inside it.
        sentences: the words of captions, for methods that read them: table -> a sentence for each row.
        **overrides: settings by name, instead of `config`.

    Raises:
        RecipeError: a setting without meaning, or both `config` and `overrides`. RunError: the loss is not
        finite. CacheError, Mismatch, Corrupt: see `task.task`.
    """
    config = resolved(config, overrides)
    tools = Tools(device_of(config.device), progress, text_tower, pictures, sentences)
    if isinstance(data, Task):
        return _fit(data, config, tools)
    with opened_cache(data) as opened:
        run = _fit(task(opened, config), config, tools)
        run.cache = opened.path
        return run


def train(
    cache: caches.Cache | str | Path,
    config: TrainConfig,
    out: str | Path | None = None,
    progress: Progress | None = None,
    *,
    text_tower: Any = None,
    pictures: Any = None,
    sentences: Any = None,
) -> tuple[Run, Path]:
    """Fit, save, score, and save the scores: a failing evaluation does not lose the training.

    Args:
        out: the run folder; default `runs/<cache>-<name of the run>`.
        text_tower, pictures, sentences: see `fit`.
    """
    with opened_cache(cache) as opened:
        beside = {"text_tower": text_tower, "pictures": pictures, "sentences": sentences}
        run = fit(opened, config, progress, **beside)
        folder = run.save(out or Path("runs") / f"{opened.path.stem}-{run.name}")
        run.metrics = scored(run, opened, device=run.config.device)
        return run, run.save(folder)


def scored(run: Run, cache: caches.Cache, split: str | None = None, device: str = "auto") -> dict[str, Any]:
    """`evaluate`, and for a run of three modalities or without text `evaluate_modalities` as "modalities",
    where rows have partners: classes, or without these samples that were paired by id.

    Raises:
        As the two.
    """
    metrics = evaluate(run, cache, split, device=device)
    many = len(run.widths) > 2 or not asks_by_name(run)
    if many and (len(set(cache.class_names)) > 1 or getattr(run.config, "pair", "class") == "id"):
        metrics["modalities"] = evaluate_modalities(run, cache, trained_together(run))
    return metrics


def resolved(config: TrainConfig | None, overrides: dict[str, Any]) -> TrainConfig:
    """The configuration, or the one that the overrides make.

    Raises:
        RecipeError: both were given.
    """
    if config is None:
        return TrainConfig.from_recipe(overrides.pop("recipe", "paper"), **overrides)
    if overrides:
        raise RecipeError(f"fit: got config and {', '.join(overrides)}; put every setting into the config")
    return config


def _fit(data: Task, config: TrainConfig, tools: Tools) -> Run:
    started = time.perf_counter()
    model, chosen, receipt = fit_chosen(methods.method(config.method), data, config, tools)
    return finished(chosen, model, data, receipt, time.perf_counter() - started)


def finished(config: TrainConfig, model: Any, data: Task, receipt: Receipt, seconds: float) -> Run:
    """The run of a method that has been fitted to `data`."""
    return Run(
        config=config,
        model=model,
        dataset=data.dataset,
        class_names=data.class_names,
        widths=data.widths,
        logit_scale=data.logit_scale,
        encoders=data.encoders,
        draw=data.draw.to_json(),
        tables=data.tables,
        history=model.history,
        seconds=seconds,
        selection=receipt.to_json(),
        temperature=_temperature(model, data),
        versions={
            "spaner": version("spaner"),
            "torch": torch.__version__,
            "arithmetic": _arithmetic(config, data),
        },
    )


def _temperature(model: Any, data: Task) -> float | None:
    """What turns the method's logits into probabilities on the validation rows; None where there are none,
    or where the method changed the tower that made them."""
    if data.validation is None or "text" not in data.queries or isinstance(model, methods.Adapted):
        return None
    with torch.inference_mode():
        logits = model.scores(data.validation.x[:, 0], data.query("text")).float().cpu().numpy()
    return calibration.temperature(logits, data.validation.labels.numpy())


def _arithmetic(config: TrainConfig, data: Task) -> str:
    """What the loop computed in; closed forms say float32, the type of their inputs."""
    if not issubclass(methods.method(config.method), methods.Stackable):  # `loop` alone knows other types
        return "float32"
    found = precision_of(config.precision, device_of(config.device), batch_numbers(pairs_of(data), config))
    return str(found).removeprefix("torch.")
