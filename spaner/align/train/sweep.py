"""Ablations: every combination of some settings, each trained and scored from the same cache.

A *cell* is one resolved configuration. On a CPU cells run side by side in processes with one thread each, so
a cell's numbers do not depend on how many run at once; on a GPU cells of one shape are trained as one tensor
program (`align.stack`). The training features are loaded once and shared between processes as memory-mapped
arrays; the frozen encoder is scored once. A finished cell is a JSON file named after what it depends on
(settings and table hashes); running the sweep again runs only what is missing. A cell that fails is recorded
as failed and stops no other.
"""

import csv
import dataclasses
import hashlib
import itertools
import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch

import spaner.cache
from spaner.align.score.evaluate import evaluate, tested_table, zero_shot
from spaner.align.train.config import TrainConfig
from spaner.align.train.fit import fit
from spaner.align.train.run import Run
from spaner.align.train.stack import fit_stack, shape
from spaner.align.train.task import Task, scale_of, task
from spaner.device import device_of
from spaner.errors import RecipeError, RunError, SpanerError
from spaner.progress import Progress

#: What a sweep may vary: option of the command -> setting.
AXES = {
    "recipes": "recipe",
    "aligners": "aligner",
    "prompt_lengths": "prompt_length",
    "lams": "lam",
    "out_dims": "out_dim",
    "template_sets": "templates",
    "logit_scales": "logit_scale",
    "blends": "blend",
    "lrs": "lr",
    "shots": "shots",
    "draw_seeds": "draw_seed",
    "seeds": "seed",
}

#: Axes that repeat an experiment instead of changing it: results are averaged over them.
REPEATS = ("seed", "draw_seed")

#: Settings that decide which rows and templates are loaded.
SELECTION = ("shots", "draw_seed", "templates")

#: Cells trained as one on a GPU, unless the caller says otherwise.
STACK = 8


@dataclass(frozen=True)
class Cell:
    """One configuration of a sweep, the settings that vary in it, and the name of its result file."""

    config: TrainConfig
    varied: dict[str, Any]
    key: str


def sweep(
    cache: str | Path | spaner.cache.Cache,
    grid: Mapping[str, Sequence[Any]],
    base: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    *,
    workers: int | None = None,
    stack: int | None = None,
    backend: str = "loky",
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Train and score every combination of ``grid``.

    Args:
        cache: a sealed cache, or its path.
        grid: setting -> values, e.g. ``{"prompt_length": [1, 2, 4, 8], "seed": [1, 2, 3]}``.
        base: settings that all cells share; the recipe supplies the rest.
        out: folder for one JSON per cell; default ``sweeps/<cache name>``. Cells finished there do not run
        again.
        workers: processes; default one per core on a CPU, one on a GPU.
        stack: most cells trained as one tensor program; default 1 on a CPU, 8 on a GPU. Cells that differ in
            more than `stack.STACKED` are never stacked.
        backend: joblib's backend: ``loky`` (this machine) or ``ray`` (a cluster; needs ``spaner[ray]``).
        progress: called with (cells done, cells, "cells").

    Returns:
        One result per cell in grid order: ``config``, ``varied``, ``status`` ("ok" or "failed"), ``metrics``.

    Raises:
        RecipeError: a setting that cannot be swept, an empty list, or a value that no training would accept.
        RunError: a worker process died; finished cells are kept.
    """
    opened = cache if isinstance(cache, spaner.cache.Cache) else spaner.cache.open(cache)
    cells = plan(opened, grid, base or {})
    folder = (Path(out) if out is not None else Path("sweeps") / opened.path.stem).absolute()
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    missing = [cell for cell in cells if not _finished(_file(folder, cell))]
    done = len(cells) - len(missing)
    if progress:
        progress(done, len(cells), "cells")
    for finished in _run(opened, missing, folder, workers, stack, backend):
        done += finished
        if progress:
            progress(done, len(cells), "cells")
    results = [json.loads(_file(folder, cell).read_text()) for cell in cells]
    write(folder, results)
    return results


def plan(cache: spaner.cache.Cache, grid: Mapping[str, Sequence[Any]], base: Mapping[str, Any]) -> list[Cell]:
    """Resolve every combination before anything is trained, so that a bad value costs no time.

    Raises:
        RecipeError: as for :func:`sweep`.
    """
    for name, values in grid.items():
        if name not in AXES.values():
            raise RecipeError(
                f"sweep: found the setting {name!r}, expected one of {', '.join(AXES.values())}"
            )
        if not values:
            raise RecipeError(f"sweep: the list for {name} is empty; give at least one value")
    grid = {name: list(dict.fromkeys(values)) for name, values in grid.items()}
    identity = _identity(cache)
    cells = []
    for combination in itertools.product(*grid.values()):
        varied = dict(zip(grid, combination, strict=True))
        settings = {**base, **varied}
        config = TrainConfig.from_recipe(settings.pop("recipe", "paper"), **settings)
        text = json.dumps([config.to_json(), identity], sort_keys=True)
        cells.append(Cell(config, varied, hashlib.sha256(text.encode()).hexdigest()[:16]))
    return cells


def _identity(cache: spaner.cache.Cache) -> dict[str, str]:
    """Everything in the cache that can change a cell's numbers."""
    tables = [name for name in cache.tables() if name.startswith("text/")]
    return {
        name: cache.table(name).manifest.sha256
        for name in ["image/train", tested_table(cache, None), *tables]
    }


def _file(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.key}.json"


def _finished(file: Path) -> bool:
    """A file that is damaged or half-written by another program counts as missing: its cell runs again."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        return result["status"] == "ok" and bool(scores(result))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _run(
    cache: spaner.cache.Cache,
    cells: list[Cell],
    folder: Path,
    workers: int | None,
    stack: int | None,
    backend: str,
) -> Iterator[int]:
    """Run the cells, yielding how many were finished, whenever some were."""
    if not cells:
        return
    _register(backend)
    on_cpu = all(device_of(cell.config.device).type == "cpu" for cell in cells)
    stacks = list(_stacks(cells, stack or (1 if on_cpu else STACK)))
    workers = workers or ((os.cpu_count() or 1) if on_cpu else 1)
    frozen = _frozen(cache)
    jobs = (
        joblib.delayed(_run_cells)(cache.path.absolute(), members, folder, arrays, frozen)
        for _, group in itertools.groupby(stacks, lambda members: _selection(members[0]))
        for first, *rest in [list(group)]
        for arrays in [_arrays(cache, first[0].config)]
        for members in [first, *rest]
    )
    try:
        for finished in _pool(min(workers, len(stacks)), backend)(jobs):
            yield finished or 0
    except BrokenProcessPool:
        raise RunError(
            f"a worker process of the sweep died (out of memory?) with {workers} at work; finished cells are "
            f"kept in {folder}; run the same command again with --workers 1"
        ) from None


def _pool(workers: int, backend: str) -> joblib.Parallel:
    """Processes that live as long as the sweep, and map arrays of more than a megabyte instead of copying."""
    return joblib.Parallel(
        workers, backend=backend, return_as="generator_unordered", mmap_mode="c", max_nbytes="1M"
    )


def _selection(cell: Cell) -> str:
    return json.dumps([getattr(cell.config, name) for name in SELECTION])


def _stacks(cells: list[Cell], most: int) -> Iterator[list[Cell]]:
    """Cells that are trained as one, at most `most` each; those with the same training rows in sequence."""
    groups: dict[tuple[str, str | None], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((_selection(cell), shape(cell.config)), []).append(cell)
    for (_, alike), members in sorted(groups.items(), key=lambda item: item[0][0]):
        size = 1 if alike is None else most
        yield from (members[start : start + size] for start in range(0, len(members), size))


def _frozen(cache: spaner.cache.Cache) -> dict[str, Any] | None:
    """The frozen encoder's own result, the same for all cells; what prevents it is reported by every cell."""
    try:
        with _one_thread():
            return zero_shot(cache)
    except SpanerError:
        return None


def _register(backend: str) -> None:
    if backend != "ray":
        return
    try:
        from ray.util.joblib import register_ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise RecipeError('backend "ray" is not installed; type: pip install "spaner[ray]"') from None
    register_ray()


def _arrays(cache: spaner.cache.Cache, config: TrainConfig) -> dict[str, Any] | SpanerError:
    """The task with NumPy arrays in place of tensors, which joblib shares between processes by memory map."""
    try:
        loaded = task(cache, dataclasses.replace(config, logit_scale=1.0))  # each cell has its own
    except SpanerError as error:
        return error
    fields = {f.name: getattr(loaded, f.name) for f in dataclasses.fields(loaded)}
    return {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in fields.items()}


def _run_cells(
    cache: Path,
    cells: list[Cell],
    folder: Path,
    arrays: dict[str, Any] | SpanerError,
    frozen: dict[str, Any] | None,
) -> int:
    """Train and score cells that are trained as one, on one thread; write each result atomically."""
    with _one_thread():
        for cell, run in zip(cells, _runs(cells, arrays), strict=True):
            result = {"varied": cell.varied, "config": cell.config.to_json(), **_result(run, cache, frozen)}
            file = _file(folder, cell)
            part = file.with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps(result, indent=2), encoding="utf-8")
            part.replace(file)
    return len(cells)


def _runs(cells: list[Cell], arrays: dict[str, Any] | SpanerError) -> list[Run | SpanerError]:
    """A run for each cell, or what prevented it."""
    if isinstance(arrays, SpanerError):
        return [arrays] * len(cells)
    fields: dict[str, Any] = {
        k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in arrays.items()
    }
    data = Task(**fields)
    try:
        if len(cells) > 1:
            return [*fit_stack(data, [cell.config for cell in cells])]
        config = cells[0].config
        return [fit(dataclasses.replace(data, logit_scale=scale_of(config, data.encoders)), config)]
    except SpanerError as error:
        return [error] if len(cells) == 1 else [_runs([cell], arrays)[0] for cell in cells]


def _result(run: Run | SpanerError, cache: Path, frozen: dict[str, Any] | None) -> dict[str, Any]:
    try:
        if isinstance(run, SpanerError):
            raise run
        return {"status": "ok", "metrics": evaluate(run, cache, frozen=frozen), "facts": run.facts()}
    except SpanerError as error:
        return {"status": "failed", "reason": str(error)}


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def summary(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the repeats (seeds, draws) of every other combination.

    Returns:
        One row per combination: its settings, ``cells`` (how many succeeded), ``failed``, and for each name
        of func:`scores` a pair (mean, std). The standard deviation is the sample's (n − 1); 0 for one cell.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        settings = {k: v for k, v in result["varied"].items() if k not in REPEATS}
        groups.setdefault(json.dumps(settings), []).append(result)
    return [{**json.loads(settings), **_mean_row(members)} for settings, members in groups.items()]


def _mean_row(members: list[Mapping[str, Any]]) -> dict[str, Any]:
    metrics = [scores(m) for m in members if m["status"] == "ok"]
    row: dict[str, Any] = {"cells": len(metrics), "failed": len(members) - len(metrics)}
    for name in metrics[0] if metrics else ():
        values = [m[name] for m in metrics]
        row[name] = (statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
    return row


def scores(result: Mapping[str, Any]) -> dict[str, float]:
    """The headline numbers of one successful cell."""
    text, semantic = result["metrics"]["text"], result["metrics"]["semantic"]
    return {
        "text": text["accuracy"],
        "semantic": semantic["accuracy"],
        "gap": result["metrics"]["gap"],
        "text_cosine": text["positive_cosine"],
        "semantic_cosine": semantic["positive_cosine"],
        "margin": semantic["margin"],
    }


def write(folder: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """All cells as ``sweep.json`` and ``sweep.csv`` in ``folder``."""
    (folder / "sweep.json").write_text(json.dumps(list(results), indent=2))
    rows = [
        {**r["varied"], "status": r["status"], **(scores(r) if r["status"] == "ok" else {})} for r in results
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "sweep.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
