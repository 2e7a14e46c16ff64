"""Image and text: Tables 1, 2 and 4 and Figures 4, 6, 7 and 8 of the paper, from one cache.

Each is a function (setup, opened cache, progress) -> `Reproduction`; `reproduce` calls it. Every number is
scored by `evaluate` and becomes a row as in a report; here rows are collected, averaged over seeds and set
beside the paper's.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spaner import cache as caches
from spaner.align.paper.reproduce import (
    RECIPES,
    Reproduction,
    Setup,
    cores,
    extract_command,
    found,
    rows_beside,
    table_of,
)
from spaner.align.report import published
from spaner.align.report import sweep as report_sweep
from spaner.align.report.charts import choice_drawing, cosine_drawing, length_drawing
from spaner.align.report.drawing import write
from spaner.align.report.maps import confusion_drawing
from spaner.align.report.origin import FROZEN
from spaner.align.report.table import OURS, Cell, Column, ReportTable, Row
from spaner.align.report.tables import ACCURACY, COSINE, accuracy_numbers, cosine_numbers, shift_numbers
from spaner.align.score import confusion as confused
from spaner.align.score.evaluate import Frozen, evaluate, matches, tested_table
from spaner.align.score.intervals import Number
from spaner.align.train.sweep import sweep
from spaner.errors import CacheError, SpanerError
from spaner.progress import Progress

PROMPT_LENGTHS = (1, 2, 4, 8)
FUSIONS = ("attention", "hyena")
TEMPLATE_SETS = ("vanilla", "hand_crafted", "mined", "ensemble")
WIDTHS = (0.25, 0.5, 1, 2)
"""Widths E of Figure 7, as shares of the embedding width D: 128 … 1024 for ViT-B/16."""
SHIFTED = ("imagenet-v2", "imagenet-sketch", "imagenet-a", "imagenet-r")

SYSTEMS = {
    FROZEN: "ZS CLIP",
    "SPANER, paper": "SPANER",
    "clip_adapter": "CLIP-Adapter",
    "cocoop": "CoCoOp",
    "coop": "CoOp",
    "maple": "MaPLe",
    "mma": "MMA",
}
"""Our row -> the paper's row of that system."""

Numbers = Callable[[Mapping[str, Any]], dict[str, Cell]]
"""From the result of `evaluate` to a row."""


def accuracy(setup: Setup, cache: caches.Cache, progress: Progress) -> Reproduction:
    """Table 1: text and semantic retrieval, and the gap between them."""
    columns = [column for column in ACCURACY if column.key in ("text", "semantic", "gap")]
    return _scored("Table 1: retrieval accuracy (%)", columns, accuracy_numbers, setup, cache, progress)


def positive_cosine(setup: Setup, cache: caches.Cache, progress: Progress) -> Reproduction:
    """Table 2: the average cosine to the own class, and what shows a collapse beside it."""
    made = _scored("Table 2: average positive cosine", COSINE, cosine_numbers, setup, cache, progress)
    made.notes.append("a high cosine beside a margin near 0 is a collapsed space")
    return made


def _scored(
    title: str,
    columns: list[Column],
    numbers: Numbers,
    setup: Setup,
    cache: caches.Cache,
    progress: Progress,
) -> Reproduction:
    """The frozen encoder and the runs of every recipe, scored on the cache's own test table."""
    trained = cores(setup, cache, progress)
    metrics = {recipe: [run.metrics or {} for _, run in runs] for recipe, runs in trained.items()}
    frozen = metrics["paper"][0]["zero_shot"]
    rows = {_name(recipe): [numbers(each) for each in runs] for recipe, runs in metrics.items()}
    if frozen:
        rows = {FROZEN: [numbers(frozen)]} | rows
    why = why_not(setup, cache)
    return Reproduction(
        tables=[_table(setup, title, columns, rows, why)],
        why_not=why,
        facts={"metrics": metrics},
        runs=[runs[0][0] for runs in trained.values()],
    )


def _table(
    setup: Setup,
    title: str,
    columns: Sequence[Column],
    systems: Mapping[str, Sequence[Mapping[str, Cell]]],
    why: Sequence[str],
) -> ReportTable:
    """A row per system, the published row of that system on ImageNet below it."""
    rows: list[Row] = []
    for name, repeated in systems.items():
        paper = SYSTEMS.get(name, "")
        shown = [{column.key: each.get(column.key) for column in columns} for each in repeated]
        rows += rows_beside(setup, name, shown, paper, published.values("imagenet", paper), why)
    return table_of(setup, title, columns, rows)


def _name(who: str) -> str:
    return f"SPANER, {who}" if who in RECIPES else who


def why_not(setup: Setup, cache: caches.Cache) -> list[str]:
    """Why numbers of this cache cannot stand beside the paper's ImageNet rows."""
    table, train = cache.table(tested_table(cache, None)), cache.table("image/train")
    reasons = published.reasons(
        published.benchmark("imagenet"),
        dataset=cache.dataset,
        encoder=table.manifest.encoder,
        shots=setup.settings().get("shots"),
        draw=train.rows,
        rows=int(table.ok.sum()),
    )
    return reasons + ([f"{setup.epochs} epochs, not the recipe's"] if setup.epochs else [])


# --- Table 4 ---


def domain_shift(setup: Setup, cache: caches.Cache, progress: Progress) -> Reproduction:
    """Table 4: text retrieval on shifted test sets, trained on this cache."""
    shifted, missing = shifted_caches(setup)
    trained = cores(setup, cache, progress)
    columns = [Column(name, name, "percent") for name in ("text", *shifted)]
    rows: dict[str, list[dict[str, Cell]]] = {}
    for recipe, runs in trained.items():
        for _, run in runs:
            own = {"text": run.metrics or {}} | {name: evaluate(run, each) for name, each in shifted.items()}
            frozen = {name: metrics["zero_shot"] for name, metrics in own.items()}
            if all(frozen.values()):
                rows.setdefault(FROZEN, [shift_numbers(frozen)])
            rows.setdefault(_name(recipe), []).append(shift_numbers(own))
    for each in shifted.values():
        each.close()
    why = why_not(setup, cache)
    return Reproduction(
        tables=[_table(setup, "Table 4: text retrieval under domain shift (%)", columns, rows, why)],
        why_not=why,
        missing=missing,
        notes=["the first column is the training domain"],
        runs=[runs[0][0] for runs in trained.values()],
    )


def shifted_caches(setup: Setup) -> tuple[dict[str, caches.Cache], list[str]]:
    """Shifted test sets by name, and a line for each of ImageNet's that is not there.

    Raises:
        CacheError: none is there; a data set other than ImageNet has none of its own.
    """
    if setup.shift:
        opened = [found(path, path.name, "a shifted test set") for path in setup.shift]
        known = [cache.dataset for cache in opened]
        return {c.dataset if known.count(c.dataset) == 1 else c.path.stem: c for c in opened}, []
    if setup.dataset != "imagenet":
        raise CacheError(
            f"table4 does not exist for {setup.dataset}: "
            "found no shifted test sets of it, expected one or more caches made by the same encoder; "
            "name each with --shift CACHE"
        )
    places = {name: Path("cache") / name for name in SHIFTED}
    commands = {name: f"`{extract_command(name, path)}`" for name, path in places.items()}
    missing = [
        f"no cache at {path}; type {commands[name]}" for name, path in places.items() if not path.exists()
    ]
    if len(missing) == len(SHIFTED):
        raise CacheError(
            f"table4 needs shifted test sets: found none of {', '.join(map(str, places.values()))}, "
            f"expected one or more; type {commands[SHIFTED[0]]} for the first"
        )
    return {name: caches.open(path) for name, path in places.items() if path.exists()}, missing


# --- Figures 4 and 8: the rows behind the means ---


def cosine_curves(setup: Setup, cache: caches.Cache, progress: Progress) -> Reproduction:
    """Figure 4: how the cosines to the own class are distributed, frozen and aligned."""
    trained, table = cores(setup, cache, progress, setup.seeds[:1]), tested_table(cache, None)
    spaces: dict[str, Any] = {_name(recipe): runs[0][1] for recipe, runs in trained.items()}
    if len({cache.table(name).dim for name in (table, "text/vanilla", "text/classname")}) == 1:
        spaces = {FROZEN: Frozen()} | spaces
    matched = {name: matches(space, cache, table) for name, space in spaces.items()}
    cosines = {
        kind: {name: each[kind].positive for name, each in matched.items()} for kind in ("text", "semantic")
    }
    means: dict[str, list[dict[str, Cell]]] = {
        name: [{f"{kind}_cosine": Number(float(cosines[kind][name].mean())) for kind in cosines}]
        for name in spaces
    }
    columns = [column for column in COSINE if column.key.endswith("_cosine")]
    title, why = "Figure 4: cosine to the own class (curves in the figure, means here)", why_not(setup, cache)
    return Reproduction(
        tables=[_table(setup, title, columns, means, why)],
        why_not=why,
        facts={
            "quantiles": {kind: {n: quantiles(v) for n, v in each.items()} for kind, each in cosines.items()}
        },
        runs=[runs[0][0] for runs in trained.values()],
        figures=write(cosine_drawing(setup.artifact, cosines), setup.out),
    )


def quantiles(values: np.ndarray) -> list[float]:
    """The 0th, 1st … 100th percentile: a cumulative distribution in 101 numbers."""
    return np.quantile(values, np.linspace(0, 1, 101)).astype(float).tolist()


def confusion(setup: Setup, cache: caches.Cache, progress: Progress) -> Reproduction:
    """Figure 8: the most confused classes of text retrieval, and the most confused pairs by name."""
    trained, table = cores(setup, cache, progress, setup.seeds[:1]), tested_table(cache, None)
    names = list(cache.class_names)
    matched = {_name(recipe): matches(runs[0][1], cache, table)["text"] for recipe, runs in trained.items()}
    matrix = confused.confusion_matrix(matched[_name("paper")], names)
    worst = confused.most_confused_classes(matrix)
    pairs = confused.most_confused_pairs(matrix, names)
    rows: dict[str, list[dict[str, Cell]]] = {
        name: [{"text": Number(float(each.credit.mean()))}] for name, each in matched.items()
    }
    title, why = "Figure 8: most confused classes (paper recipe)", why_not(setup, cache)
    return Reproduction(
        tables=[_table(setup, title, ACCURACY[:1], rows, why), _pairs(pairs)],
        why_not=why,
        notes=[f"most confused: {', '.join(names[c] for c in worst) or 'none'}"],
        facts={"pairs": pairs, "classes": [names[c] for c in worst]},
        runs=[runs[0][0] for runs in trained.values()],
        figures=write(confusion_drawing(setup.artifact, {"text": matrix}, names), setup.out),
    )


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> ReportTable:
    columns = [
        Column("a_as_b", "first as second", "count"),
        Column("b_as_a", "second as first", "count"),
        Column("rows", "rows", "count"),
    ]
    rows = [
        Row(f"{pair['a']} / {pair['b']}", OURS, {column.key: Number(pair[column.key]) for column in columns})
        for pair in pairs
    ]
    return ReportTable("pairs", "Most confused pairs", columns, [("", rows)], first="most confused pair")


# --- Figures 6 and 7: sweeps ---


def prompt_lengths(setup: Setup, cache: caches.Cache, progress: Progress) -> Reproduction:
    """Figure 6: prompt length x fusion."""
    grid = {"prompt_length": list(PROMPT_LENGTHS), "aligner": list(FUSIONS), "seed": list(setup.seeds)}
    made, finished = _swept("Figure 6: prompt length and fusion (%)", grid, setup, cache, progress)
    made.figures = write(length_drawing(setup.artifact, finished), setup.out)
    return made


def templates_and_widths(setup: Setup, cache: caches.Cache, progress: Progress) -> Reproduction:
    """Figure 7: template sets x width of the shared space."""
    there = [name for name in TEMPLATE_SETS if cache.has(f"text/{name}")]
    width = cache.table("image/train").dim
    dims = [round(share * width) for share in WIDTHS]
    grid = {"templates": there, "out_dim": dims, "seed": list(setup.seeds)}
    made, finished = _swept("Figure 7: template sets and width E (%)", grid, setup, cache, progress)
    lacking = [name for name in TEMPLATE_SETS if name not in there]
    if lacking:
        command = extract_command(cache.dataset, setup.cache, "text")
        made.missing = [
            f"text/{', text/'.join(lacking)} not in {setup.cache}; "
            f"type `{command} --templates {','.join(lacking)}`"
        ]
    made.figures = write(choice_drawing(setup.artifact, finished), setup.out)
    return made


def _swept(
    title: str, grid: dict[str, list[Any]], setup: Setup, cache: caches.Cache, progress: Progress
) -> tuple[Reproduction, list[dict[str, Any]]]:
    """Every cell of the grid with the paper's recipe; the finished ones.

    Raises:
        SpanerError: no cell finished; the first reason.
    """
    folder = setup.out / "sweep"
    where = {"workers": setup.workers, "on": setup.on}
    cells = sweep(cache, grid, setup.settings(), folder, **where, progress=progress)
    finished = [cell for cell in cells if cell["status"] == "ok"]
    if not finished:
        raise SpanerError(f"{setup.artifact}: all {len(cells)} cells failed, first: {cells[0]['reason']}")
    swept = report_sweep.Sweep(setup.artifact, setup.artifact, cells)
    rows = report_sweep.table(swept, settings=[name for name in grid if name != "seed"]).rows
    failed = [cell for cell in cells if cell["status"] == "failed"]
    missing = [f"{len(failed)} of {len(cells)} cells failed, first: {failed[0]['reason']}"] if failed else []
    made = Reproduction(
        tables=[table_of(setup, title, report_sweep.COLUMNS, rows)],
        why_not=why_not(setup, cache),
        missing=missing,
        notes=["the paper draws this figure and prints no numbers to set beside these"],
        facts={"cells": cells},
        sweep=folder,
    )
    return made, finished
