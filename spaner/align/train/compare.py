"""Methods side by side: the same rows, the same choosing, over shots and seeds, from one cache or several.

A row of a comparison is a method at K shots, averaged over seeds; a seed is that of the training and that of
the draw, which move together. Each cell is one of `cells`, in a folder of its own, run once and found again.
SPANER stands in it by its recipes, `paper` and `anchored`, or a recipe file. Nothing is printed or drawn
here.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import spaner.cache
from spaner import registry
from spaner.align.methods.method import METHODS, method
from spaner.align.score.intervals import Number
from spaner.align.score.negation import share_of
from spaner.align.train.cells import Cell, Towers
from spaner.align.train.config import RECIPES, TrainConfig
from spaner.align.train.sweep import (
    further,
    identity_of,
    missing_of,
    result_file,
    results_of,
    scores,
    summary,
)
from spaner.cache import files
from spaner.cluster import joined
from spaner.errors import RecipeError
from spaner.progress import Progress

SHOTS, SEEDS = (1, 2, 4, 8, 16), (1, 2, 3)
CAPTIONS = ("image_to_caption", "caption_to_image")


@dataclass(frozen=True)
class Comparison:
    """What the cells of one cache gave.

    `rows` are `summary`'s, one a method and number of shots: `method`, `shots`, `cells`, `failed`, `chosen`
    (who chose the settings), and a `Number` for each name of `numbers`.
    """

    name: str
    folder: Path
    results: list[dict[str, Any]]
    rows: list[dict[str, Any]]

    @property
    def told(self) -> list[dict[str, Any]]:
        """The rows as JSON types: a number as its mean and deviation."""
        return [{name: _pair(value) for name, value in row.items()} for row in self.rows]


def _pair(value: Any) -> Any:
    return (value.value, value.std or 0.0) if isinstance(value, Number) else value


def compare(
    caches: Sequence[str | Path],
    methods: Sequence[str] | None = None,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = SEEDS,
    out: str | Path | None = None,
    *,
    shift: Sequence[Path] = (),
    base_to_new: bool = False,
    base: Mapping[str, Any] | None = None,
    recipe_base: Mapping[str, Any] | None = None,
    workers: int | None = None,
    on: str | None = None,
    progress: Progress | None = None,
    towers: Towers | None = None,
) -> list[Comparison]:
    """Fit and score every method on every cache.

    Args:
        methods: names of methods, recipes of SPANER, or recipe files; default all that need the cache alone.
        out: folder of the cells; default `compare/<cache>`; of several caches each has a folder in it.
        shift: caches of shifted data with the classes of the one cache that is compared on.
        base_to_new: fit every method on the first half of the classes too, and ask it about the second.
        on: `ray` or `ray:HOST:PORT`, to run on the nodes of a Ray cluster.
        base: settings of all methods, such as `select`; `recipe_base`: of SPANER's recipes.
        towers: builds the towers of methods that learn inside them, see `cells`.

    Raises:
        RecipeError: an unknown name, an empty list, two caches of one name, or shift with several caches.
        RunError: a worker process died; finished cells are kept.
    """
    _check_lists({"cache": caches, "shots": shots, "seeds": seeds}, shift)
    who = entrants(methods)
    opened = [spaner.cache.open(Path(path)) for path in caches]
    names = [cache.path.stem for cache in opened]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RecipeError(
            f"compare: two caches are named {twice}; expected a name each; rename one of the folders"
        )
    root = Path(out) if out is not None else Path("compare")
    folders = [root if out is not None and len(opened) == 1 else root / name for name in names]
    plans = [
        plan(cache, who, shots, seeds, folder, shift, base or {}, recipe_base or {}, halves=base_to_new)
        for cache, folder in zip(opened, folders, strict=True)
    ]
    found = []
    # a cluster is joined once, whatever the number of caches
    with joined(on) if on and any(map(missing_of, plans)) else nullcontext():
        for cache, folder, cells in zip(opened, folders, plans, strict=True):
            results = results_of(cache, cells, workers, 1, on, progress=progress, towers=towers)
            found.append(Comparison(cache.dataset, folder, results, rows_of(results)))
            write(found[-1])
    return found


def _check_lists(lists: Mapping[str, Sequence[Any]], shift: Sequence[Path]) -> None:
    for name, values in lists.items():
        if not values:
            raise RecipeError(f"compare: the list for {name} is empty; give at least one value")
    if shift and len(lists["cache"]) > 1:
        raise RecipeError(
            f"compare: --shift with {len(lists['cache'])} caches; "
            "expected one, whose classes the shifted data have; type one command for each cache"
        )


def entrants(names: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """Name in the table -> settings that make it, in the order of the names.

    Raises:
        RecipeError: no name, or one that is neither a method nor a recipe; the line names the nearest.
    """
    known = registry.names(METHODS, "method")
    if names is None:
        rest = [n for n in known if n != "zero_shot" and not needs_tower(n)]
        names = ["zero_shot", *(n for n in rest if n != "spaner"), "spaner"]
    found: dict[str, dict[str, Any]] = {}
    for name in (part for n in names for part in (RECIPES if n == "spaner" else [n])):
        if name in RECIPES or name.endswith(".toml"):
            found[f"SPANER, {Path(name).stem}"] = {"recipe": name}
        elif name in known:
            found[name] = {"method": name}
        else:
            nearest = registry.nearest(name, [*known, *RECIPES])
            raise RecipeError(
                f"compare: no method or recipe {name!r}; "
                f"expected some of {', '.join([*known, *RECIPES])} or a .toml file; did you mean {nearest}?"
            )
    if not found:
        raise RecipeError("compare: the list for methods is empty; give at least one value")
    return found


def needs_tower(name: str) -> bool:
    """Whether a method learns through a tower, which is not in a cache."""
    return getattr(method(name), "needs_tower", False)


def plan(
    cache: spaner.cache.Cache,
    who: Mapping[str, Mapping[str, Any]],
    shots: Sequence[int],
    seeds: Sequence[int],
    folder: Path,
    shift: Sequence[Path],
    base: Mapping[str, Any],
    recipe_base: Mapping[str, Any],
    *,
    halves: bool = False,
) -> list[Cell]:
    """Every cell, shots by shots, before anything is fitted.

    Raises:
        RecipeError: a setting without meaning. CacheError: no cache at a path of `shift`.
    """
    identity, cells = _identity(cache, shift) | ({"base to new": "asked"} if halves else {}), []
    for k in dict.fromkeys(shots):
        for title, settings in who.items():
            own = {**base, **(recipe_base if "recipe" in settings else {}), **settings}
            recipe = own.pop("recipe", "paper")
            for seed in dict.fromkeys(seeds):
                config = TrainConfig.from_recipe(recipe, **own, shots=k, seed=seed, draw_seed=seed)
                varied = {"method": title, "shots": k, "seed": seed}
                file = result_file(folder.absolute(), config, identity | further(cache, config))
                cells.append(Cell(config, varied, file, tuple(path.absolute() for path in shift), halves))
    return cells


def _identity(cache: spaner.cache.Cache, shift: Sequence[Path]) -> dict[str, str]:
    """All tables that can change a number: validation rows and shifted data count too."""
    found = identity_of(cache)
    if cache.has("image/val"):
        found["image/val"] = cache.table("image/val").manifest.sha256
    for i, path in enumerate(shift):
        with spaner.cache.open(path) as other:
            found |= {f"shift {i} {name}": sha256 for name, sha256 in identity_of(other, train=False).items()}
    return found


def rows_of(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means and standard deviations over seeds, and who chose the settings."""
    rows = summary(results, numbers)
    for row in rows:
        same = [r for r in results if all(r["varied"][k] == row[k] for k in ("method", "shots"))]
        by = dict.fromkeys(r["selection"]["by"] for r in same if r["status"] == "ok" and "selection" in r)
        row["chosen"] = ", ".join(by)
    return rows


def numbers(result: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of a cell that succeeded; None where the method has no such number."""
    if "numbers" in result:
        return dict(result["numbers"])
    found, text = scores(result), result["metrics"]["text"] or {}
    return {
        **{name: found[name] for name in ("text", "semantic", "gap")},
        "cosine": found["text_cosine"],
        "margin": found["margin"],
        "ece": text.get("ece"),
        "nll": text.get("nll"),
        "ece_fitted": text.get("ece_fitted"),
        "nll_fitted": text.get("nll_fitted"),
        "shift": mean([each["text"] for each in result.get("shift", ())]),
        **{way: _recall(result, way) for way in CAPTIONS},
        "negation": share_of(result["metrics"]),
        "H": ((result.get("base_to_new") or {}).get("text") or {}).get("H"),
        "parameters": result["parameters"],
        "seconds": result["facts"]["seconds"],
    }


def _recall(result: Mapping[str, Any], way: str) -> float | None:
    """Recall@1 between images and captions, where the cache has captions and the method reads them."""
    said = result["metrics"].get("captions")
    return said and said[way]["recall@1"]


def mean(values: Sequence[float | None]) -> float | None:
    """None where a value is missing, or all are."""
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there and len(there) == len(values) else None


def average(found: Sequence[Comparison], folder: Path) -> Comparison:
    """Over data sets, seed by seed: the spread is that of the average. A cell that failed anywhere is
    missing."""
    averaged = []
    for members in zip(*(comparison.results for comparison in found), strict=True):
        told = {"varied": members[0]["varied"]}
        if any(member["status"] != "ok" for member in members):
            averaged.append(told | {"status": "failed", "reason": "failed on a data set"})
            continue
        each = [numbers(member) for member in members]
        over = {name: mean([one[name] for one in each]) for name in each[0]}
        averaged.append(told | {"status": "ok", "numbers": over, "selection": members[0]["selection"]})
    comparison = Comparison(f"average of {len(found)}", folder, averaged, rows_of(averaged))
    write(comparison)
    return comparison


def refused(found: Comparison) -> list[str]:
    """Why a method has no number under shift or for new classes, a line each."""
    told = {
        f"{result['varied']['method']} on {each['dataset']}: {each['reason']}"
        for result in found.results
        for each in result.get("shift", ())
        if "reason" in each
    }
    return sorted(told) + sorted(
        {
            f"{result['varied']['method']} on new classes: {result['base_to_new']['reason']}"
            for result in found.results
            if result.get("base_to_new", {}).get("reason")
        }
    )


def write(found: Comparison) -> None:
    """Rows and cells as `compare.json`, rows as `compare.csv`, in the folder."""
    told = {"data": found.name, "rows": found.told, "cells": found.results}
    files.write_result(found.folder / "compare.json", json.dumps(told, indent=2) + "\n")
    files.write_rows(found.folder / "compare.csv", [_flat(row) for row in found.told])


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    flat = {}
    for name, value in row.items():
        flat |= {name: value[0], f"{name}_std": value[1]} if isinstance(value, tuple) else {name: value}
    return flat
