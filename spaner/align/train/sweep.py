"""Ablations: every combination of some settings, each trained and scored from the same cache.

A *cell* is one resolved configuration. Its result is a JSON file named after what it depends on (settings
away from their default, and table hashes); running the sweep again runs only what is missing. A cell that
fails is recorded as failed and stops no other. `cells` runs them; here they are planned, named and summed up.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import spaner.cache
from spaner.align.score import captions
from spaner.align.score.evaluate import opened_cache
from spaner.align.score.intervals import Number
from spaner.align.score.tables import tested_table
from spaner.align.train.cells import Cell, Towers, run_cells
from spaner.align.train.config import TrainConfig, parts_of
from spaner.align.train.joint import check_named, modalities_of
from spaner.cache import files
from spaner.errors import RecipeError, RunError
from spaner.progress import Progress
from spaner.registry import nearest
from spaner.settings import axes

#: Axes that repeat an experiment instead of changing it: results are averaged over them.
REPEATS = ("seed", "draw_seed")

#: Settings of the first version, whose cells were named after all of them.
FIRST_SETTINGS = [
    "recipe",
    "method",
    "shots",
    "draw_seed",
    "templates",
    "seed",
    "prompt_length",
    "prompt_std",
    "aligner",
    "heads",
    "out_dim",
    "attend",
    "pool",
    "project",
    "init",
    "blend",
    "lam",
    "direction",
    "logit_scale",
    "targets",
    "epochs",
    "batch_size",
    "lr",
    "weight_decay",
    "precision",
    "device",
]


def sweep(
    cache: str | Path | spaner.cache.Cache,
    grid: Mapping[str, Sequence[Any]],
    base: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    *,
    workers: int | None = None,
    stack: int | None = None,
    on: str | None = None,
    progress: Progress | None = None,
    towers: Towers | None = None,
) -> list[dict[str, Any]]:
    """Train and score every combination of `grid`.

    Args:
        cache: a sealed cache, or its path.
        grid: setting -> values, e.g. `{"prompt_length": [1, 2, 4, 8], "seed": [1, 2, 3]}`.
        base: settings that all cells share; the recipe supplies the rest.
        out: folder for one JSON per cell; default `sweeps/<cache name>`. Cells finished there do not run
            again.
        workers: processes; default one per core on a CPU, one on a GPU.
        stack: most cells trained as one tensor program; default 1 on a CPU, 8 on a GPU. Cells are stacked
            only if they differ in settings marked `stacks`.
        on: `ray` or `ray:HOST:PORT`, to run on the nodes of a Ray cluster (needs `spaner[ray]`).
        progress: called with (cells done, cells, "cells").
        towers: builds the towers of methods that learn inside them, see `cells`.

    Returns:
        One result per cell in grid order: `config`, `varied`, `status` ("ok" or "failed"), `metrics`.

    Raises:
        RecipeError: a setting that cannot be swept, an empty list, or a value that no training would accept.
        RunError: a worker process died; finished cells are kept.
    """
    with opened_cache(cache) as opened:
        folder = (Path(out) if out is not None else Path("sweeps") / opened.path.stem).absolute()
        cells = plan(opened, grid, base or {}, folder)
        results = results_of(opened, cells, workers, stack, on, progress, towers)
        write(folder, results)
        return results


def results_of(
    cache: spaner.cache.Cache,
    cells: Sequence[Cell],
    workers: int | None = None,
    stack: int | None = None,
    on: str | None = None,
    progress: Progress | None = None,
    towers: Towers | None = None,
) -> list[dict[str, Any]]:
    """The result of every cell, in order; only those that no former call finished are run."""
    with files.writing(cells[0].file.parent, RunError, "--out"):
        cells[0].file.parent.mkdir(parents=True, exist_ok=True)
    missing = missing_of(cells)
    done = len(cells) - len(missing)
    if progress:
        progress(done, len(cells), "cells")
    for finished in _run(cache, missing, workers, stack, on, towers):
        done += finished
        if progress:
            progress(done, len(cells), "cells")
    return [json.loads(cell.file.read_text(encoding="utf-8")) for cell in cells]


def _run(
    cache: spaner.cache.Cache,
    cells: Sequence[Cell],
    workers: int | None,
    stack: int | None,
    on: str | None,
    towers: Towers | None,
) -> Iterator[int]:
    if on is None:
        return run_cells(cache, cells, workers, stack, towers)
    from spaner.align.train import remote

    return remote.run_cells(cache, cells, on, workers, stack, towers)


def plan(
    cache: spaner.cache.Cache,
    grid: Mapping[str, Sequence[Any]],
    base: Mapping[str, Any],
    folder: Path = Path("sweeps"),
) -> list[Cell]:
    """Resolve every combination before anything is trained, so that a bad value costs no time.

    Raises:
        RecipeError: as for `sweep`.
    """
    for name, values in grid.items():
        if not values:
            raise RecipeError(f"sweep: the list for {name} is empty; give at least one value")
    grid = {name: list(dict.fromkeys(values)) for name, values in grid.items()}
    identity, cells = identity_of(cache), []
    for combination in itertools.product(*grid.values()):
        varied = dict(zip(grid, combination, strict=True))
        settings = {**base, **varied}
        config = TrainConfig.from_recipe(settings.pop("recipe", "paper"), **settings)
        _check_axes(grid, config)
        check_named(config, "sweep")
        cells.append(Cell(config, varied, result_file(folder, config, identity | further(cache, config))))
    return cells


def _check_axes(grid: Mapping[str, Any], config: TrainConfig) -> None:
    known = sorted(axes(*parts_of(config.method)).values())
    for name in grid:
        if name not in known:
            raise RecipeError(
                f"sweep: found the setting {name!r}, expected one of {', '.join(known)}; "
                f"did you mean {nearest(name, known)}?"
            )


def identity_of(cache: spaner.cache.Cache, *, train: bool = True) -> dict[str, str]:
    """Everything in the cache that can change a cell's numbers; without `train`, those of a cache that is
    tested on alone."""
    tables = [name for name in cache.tables() if name.startswith("text/")]
    tested = tested_table(cache, None)
    said = [captions.table_of(cache, tested, name) for name in (captions.MODALITY, captions.NEGATED)]
    tables = [*(["image/train"] if train else []), tested, *filter(None, said), *tables]
    return {name: cache.table(name).manifest.sha256 for name in tables}


def further(cache: spaner.cache.Cache, config: TrainConfig) -> dict[str, str]:
    """The tables that train beside image and text; a missing one is training's to refuse."""
    names = [name for name in modalities_of(config) if name != "image"]
    if getattr(config, "texts", "class") == captions.MODALITY:
        names += [captions.MODALITY, captions.NEGATED]
    tables = [f"{name}/train" for name in names]
    return {name: cache.table(name).manifest.sha256 for name in tables if cache.has(name)}


def result_file(folder: Path, config: TrainConfig, identity: dict[str, str]) -> Path:
    """The result file of a cell; one that the first version named is still found under that name."""
    first = _first_name(config)
    if first is not None and (old := folder / "cells" / _named([first, identity])).exists():
        return old
    return folder / "cells" / _named([config.identity(), identity])


def _first_name(config: TrainConfig) -> dict[str, Any] | None:
    """What the first version made the name of; None where the cell has a setting that it did not know."""
    every, told = config.to_json(), config.identity()
    if set(told) - set(FIRST_SETTINGS) or set(FIRST_SETTINGS) - set(every):
        return None
    return {name: every[name] for name in FIRST_SETTINGS}


def _named(decided: Any) -> str:
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:16] + ".json"


def missing_of(cells: Sequence[Cell]) -> list[Cell]:
    """Those that no former call finished."""
    return [cell for cell in cells if not _finished(cell.file)]


def _finished(file: Path) -> bool:
    """A file that is damaged or half-written by another program counts as missing: its cell runs again."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        return result["status"] == "ok" and bool(scores(result))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def summary(
    results: Sequence[Mapping[str, Any]], numbers: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Mean and standard deviation over the repeats (seeds, draws) of every other combination.

    Args:
        results: of cells.
        numbers: what to average, by name, of a cell that succeeded; default `scores`.

    Returns:
        One row per combination: its settings, `cells` (how many succeeded), `failed`, and for each name
        of `numbers` a `Number` over the cells that have it, or None where no cell has.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    numbers = numbers or scores
    for result in results:
        settings = {k: v for k, v in result["varied"].items() if k not in REPEATS}
        groups.setdefault(json.dumps(settings), []).append(result)
    return [{**json.loads(settings), **_mean_row(members, numbers)} for settings, members in groups.items()]


def _mean_row(
    members: list[Mapping[str, Any]], numbers: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    metrics = [numbers(m) for m in members if m["status"] == "ok"]
    row: dict[str, Any] = {"cells": len(metrics), "failed": len(members) - len(metrics)}
    for name in metrics[0] if metrics else ():
        row[name] = Number.over(value for m in metrics if (value := m[name]) is not None)
    return row


def scores(result: Mapping[str, Any]) -> dict[str, float | None]:
    """The headline numbers of one successful cell; None where the method has no such number, or the cache no
    classes."""
    metrics = result["metrics"]
    text, semantic = metrics["text"] or {}, metrics["semantic"] or {}
    return {
        "text": text.get("accuracy"),
        "semantic": semantic.get("accuracy"),
        "gap": metrics["gap"],
        "text_cosine": text.get("positive_cosine"),
        "semantic_cosine": semantic.get("positive_cosine"),
        "margin": semantic.get("margin"),
    }


def write(folder: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """All cells as `sweep.json` and `sweep.csv` in `folder`."""
    files.write_result(folder / "sweep.json", json.dumps(list(results), indent=2))
    rows = [
        {**r["varied"], "status": r["status"], **(scores(r) if r["status"] == "ok" else {})} for r in results
    ]
    files.write_rows(folder / "sweep.csv", rows)
