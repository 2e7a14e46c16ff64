"""Image and text: Tables 1, 2 and 4 and Figures 4, 6, 7 and 8 of the paper, from one cache.

Each is a function (setup, opened cache, progress) -> `Outcome`; `reproduce` calls it. Every number is scored
by `evaluate`; here it is only collected, averaged over seeds and set beside the paper's row.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spaner import cache as caches
from spaner.align.paper import published
from spaner.align.paper.reproduce import Line, Outcome, Setup, Spread, cores, extract_command, found
from spaner.align.report.figures import cdf_figure, choice_figure, prompt_length_figure
from spaner.align.report.map_figures import confusion_figure
from spaner.align.score import confusion as confused
from spaner.align.score.evaluate import Frozen, evaluate, matches, tested_table
from spaner.align.train.sweep import summary, sweep
from spaner.errors import CacheError, SpanerError
from spaner.progress import Progress

PROMPT_LENGTHS = (1, 2, 4, 8)
FUSIONS = ("attention", "hyena")
TEMPLATE_SETS = ("vanilla", "hand_crafted", "mined", "ensemble")
WIDTHS = (0.25, 0.5, 1, 2)
"""Widths E of Figure 7, as shares of the embedding width D: 128 … 1024 for ViT-B/16."""
SHIFTED = ("imagenet-v2", "imagenet-sketch", "imagenet-a", "imagenet-r")

Score = Callable[[Mapping[str, Any]], dict[str, float]]
"""From the result of `evaluate` to the numbers of a line."""


def accuracy(setup: Setup, cache: caches.Cache, progress: Progress) -> Outcome:
    """Table 1: text and semantic retrieval, and the gap between them."""

    def score(metrics: Mapping[str, Any]) -> dict[str, float]:
        return {kind: metrics[kind]["accuracy"] for kind in ("text", "semantic")} | {"gap": metrics["gap"]}

    columns = {"text": "percent", "semantic": "percent", "gap": "percent"}
    return _scored("Table 1: retrieval accuracy (%)", columns, score, setup, cache, progress)


def positive_cosine(setup: Setup, cache: caches.Cache, progress: Progress) -> Outcome:
    """Table 2: the average cosine to the own class, and what shows a collapse beside it."""
    names = {
        "cosine": "positive_cosine",
        "margin": "margin",
        "negative": "negative_cosine",
        "centred": "centred_cosine",
    }

    def score(metrics: Mapping[str, Any]) -> dict[str, float]:
        return {
            f"{kind}_{key}": metrics[kind][name]
            for kind in ("text", "semantic")
            for key, name in names.items()
        }

    columns = {f"{kind}_{key}": "cosine" for kind in ("text", "semantic") for key in names}
    outcome = _scored("Table 2: average positive cosine", columns, score, setup, cache, progress)
    outcome.notes.append("a high cosine beside a margin near 0 is a collapsed space")
    return outcome


def _scored(
    title: str, columns: dict[str, str], score: Score, setup: Setup, cache: caches.Cache, progress: Progress
) -> Outcome:
    """The frozen encoder and the runs of every recipe, scored on the cache's own test table."""
    trained = cores(setup, cache, progress)
    metrics = {recipe: [run.metrics or {} for _, run in runs] for recipe, runs in trained.items()}
    frozen = metrics["paper"][0]["zero_shot"]
    systems = {"paper": metrics["paper"], "anchored": metrics["anchored"]}
    values = {_name(recipe): [score(each) for each in found] for recipe, found in systems.items()}
    if frozen:
        values = {"frozen encoder": [score(frozen)]} | values
    return Outcome(
        title=title,
        columns=columns,
        lines=[line(name, each, columns) for name, each in values.items()],
        why_not=why_not(setup, cache),
        facts={"metrics": metrics},
        runs=[runs[0][0] for runs in trained.values()],
    )


def line(name: str, values: Sequence[Mapping[str, float]], columns: Mapping[str, str]) -> Line:
    """Means over repetitions, and the published row of that system on ImageNet."""
    paper = {"frozen encoder": "ZS CLIP", _name("paper"): "SPANER"}.get(name)
    rows = {row["name"]: row for row in published.benchmark("imagenet")["rows"]}
    beside = {key: rows[paper][key] for key in columns if key in rows[paper]} if paper else {}
    ours = {key: Spread.of(each[key] for each in values) for key in values[0]}
    return Line(name, ours, paper if beside else None, beside)


def _name(recipe: str) -> str:
    return f"SPANER, {recipe}"


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


def domain_shift(setup: Setup, cache: caches.Cache, progress: Progress) -> Outcome:
    """Table 4: text retrieval on shifted test sets, trained on this cache."""
    shifted, missing = shifted_caches(setup)
    trained = cores(setup, cache, progress)
    columns = {"text": "percent"} | dict.fromkeys(shifted, "percent")
    values: dict[str, list[dict[str, float]]] = {}
    for recipe, runs in trained.items():
        for _, run in runs:
            own = {"text": run.metrics or {}} | {name: evaluate(run, each) for name, each in shifted.items()}
            frozen = {name: metrics["zero_shot"] for name, metrics in own.items()}
            if all(frozen.values()):
                values.setdefault("frozen encoder", [_text(frozen)])
            values.setdefault(_name(recipe), []).append(_text(own))
    for each in shifted.values():
        each.close()
    return Outcome(
        title="Table 4: text retrieval under domain shift (%)",
        columns=columns,
        lines=[line(name, each, columns) for name, each in values.items()],
        why_not=why_not(setup, cache),
        missing=missing,
        notes=["the first column is the training domain"],
        facts={"values": values},
        runs=[runs[0][0] for runs in trained.values()],
    )


def _text(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {name: each["text"]["accuracy"] for name, each in metrics.items()}


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
            f"table4 does not exist for {setup.dataset}: found no shifted test sets of it, expected one or "
            "more "
            "caches made by the same encoder; name each with --shift CACHE"
        )
    places = {name: Path("cache") / name for name in SHIFTED}
    commands = {name: f"`{extract_command(name, path)}`" for name, path in places.items()}
    missing = [
        f"no cache at {path}; type {commands[name]}" for name, path in places.items() if not path.exists()
    ]
    if len(missing) == len(SHIFTED):
        raise CacheError(
            f"table4 needs shifted test sets: found none of {', '.join(map(str, places.values()))}, "
            "expected one "
            f"or more; type {commands[SHIFTED[0]]} for the first"
        )
    return {name: caches.open(path) for name, path in places.items() if path.exists()}, missing


# --- Figures 4 and 8: the rows behind the means ---


def cosine_curves(setup: Setup, cache: caches.Cache, progress: Progress) -> Outcome:
    """Figure 4: how the cosines to the own class are distributed, frozen and aligned."""
    trained, table = cores(setup, cache, progress, setup.seeds[:1]), tested_table(cache, None)
    spaces: dict[str, Any] = {_name(recipe): runs[0][1] for recipe, runs in trained.items()}
    if len({cache.table(name).dim for name in (table, "text/vanilla", "text/classname")}) == 1:
        spaces = {"frozen encoder": Frozen()} | spaces
    found = {name: matches(space, cache, table) for name, space in spaces.items()}
    cosines = {
        kind: {name: each[kind].positive for name, each in found.items()} for kind in ("text", "semantic")
    }
    columns = {"text_cosine": "cosine", "semantic_cosine": "cosine"}
    means = {
        name: {f"{kind}_cosine": float(cosines[kind][name].mean()) for kind in cosines} for name in spaces
    }
    return Outcome(
        title="Figure 4: cosine to the own class (curves in the figure, means here)",
        columns=columns,
        lines=[line(name, [each], columns) for name, each in means.items()],
        why_not=why_not(setup, cache),
        facts={
            "quantiles": {kind: {n: quantiles(v) for n, v in each.items()} for kind, each in cosines.items()}
        },
        runs=[runs[0][0] for runs in trained.values()],
        figures=cdf_figure(cosines, _figure(setup)),
    )


def quantiles(values: np.ndarray) -> list[float]:
    """The 0th, 1st … 100th percentile: a cumulative distribution in 101 numbers."""
    return np.quantile(values, np.linspace(0, 1, 101)).astype(float).tolist()


def _figure(setup: Setup) -> Path:
    setup.out.mkdir(parents=True, exist_ok=True)
    return setup.out / f"{setup.artifact}.png"


def confusion(setup: Setup, cache: caches.Cache, progress: Progress) -> Outcome:
    """Figure 8: the most confused classes of text retrieval, and the most confused pairs by name."""
    trained, table = cores(setup, cache, progress, setup.seeds[:1]), tested_table(cache, None)
    names = list(cache.class_names)
    found = {_name(recipe): matches(runs[0][1], cache, table)["text"] for recipe, runs in trained.items()}
    matrix = confused.confusion_matrix(found[_name("paper")], names)
    worst = confused.most_confused_classes(matrix)
    pairs = confused.most_confused_pairs(matrix, names)
    columns = {"text": "percent"}
    lines = [line(name, [{"text": float(each.credit.mean())}], columns) for name, each in found.items()]
    shown = [[f"{p['a']} / {p['b']}", *(str(p[key]) for key in ("a_as_b", "b_as_a", "rows"))] for p in pairs]
    figures = []
    if len(worst):
        figures = confusion_figure(matrix[np.ix_(worst, worst)], [names[c] for c in worst], _figure(setup))
    return Outcome(
        title="Figure 8: most confused classes (paper recipe)",
        columns=columns,
        lines=lines,
        why_not=why_not(setup, cache),
        notes=[f"most confused: {', '.join(names[c] for c in worst) or 'none'}"],
        listing=[["most confused pair", "first as second", "second as first", "rows"], *shown],
        facts={"pairs": pairs, "classes": [names[c] for c in worst]},
        runs=[runs[0][0] for runs in trained.values()],
        figures=figures,
    )


# --- Figures 6 and 7: sweeps ---


def prompt_lengths(setup: Setup, cache: caches.Cache, progress: Progress) -> Outcome:
    """Figure 6: prompt length x fusion."""
    grid = {"prompt_length": list(PROMPT_LENGTHS), "aligner": list(FUSIONS), "seed": list(setup.seeds)}
    outcome, finished = _swept("Figure 6: prompt length and fusion (%)", grid, setup, cache, progress)
    outcome.figures = prompt_length_figure(finished, _figure(setup))
    return outcome


def templates_and_widths(setup: Setup, cache: caches.Cache, progress: Progress) -> Outcome:
    """Figure 7: template sets x width of the shared space."""
    there = [name for name in TEMPLATE_SETS if cache.has(f"text/{name}")]
    width = cache.table("image/train").dim
    dims = [round(share * width) for share in WIDTHS]
    grid = {"templates": there, "out_dim": dims, "seed": list(setup.seeds)}
    outcome, finished = _swept("Figure 7: template sets and width E (%)", grid, setup, cache, progress)
    lacking = [name for name in TEMPLATE_SETS if name not in there]
    if lacking:
        command = extract_command(cache.dataset, setup.cache, "text")
        outcome.missing = [
            f"text/{', text/'.join(lacking)} not in {setup.cache}; type `{command} --templates "
            f"{','.join(lacking)}`"
        ]
    outcome.figures = choice_figure(finished, _figure(setup))
    return outcome


def _swept(
    title: str, grid: dict[str, list[Any]], setup: Setup, cache: caches.Cache, progress: Progress
) -> tuple[Outcome, list[dict[str, Any]]]:
    """Every cell of the grid with the paper's recipe; the finished ones.

    Raises:
        SpanerError: no cell finished; the first reason.
    """
    folder = setup.out / "sweep"
    cells = sweep(cache, grid, setup.settings(), folder, workers=setup.workers, progress=progress)
    finished = [cell for cell in cells if cell["status"] == "ok"]
    if not finished:
        raise SpanerError(f"{setup.artifact}: all {len(cells)} cells failed, first: {cells[0]['reason']}")
    columns = {"text": "percent", "semantic": "percent", "gap": "percent"}
    varied = [name for name in grid if name != "seed"]
    lines = [
        Line(
            ", ".join(f"{name.replace('_', ' ')} {row[name]}" for name in varied),
            {key: Spread(row[key][0], row[key][1], row["cells"]) for key in columns},
        )
        for row in summary(cells)
        if row["cells"]
    ]
    failed = [cell for cell in cells if cell["status"] == "failed"]
    missing = [f"{len(failed)} of {len(cells)} cells failed, first: {failed[0]['reason']}"] if failed else []
    notes = ["the paper draws this figure and prints no numbers to set beside these"]
    facts = {"cells": cells}
    why = why_not(setup, cache)
    return Outcome(title, columns, lines, why, missing, notes, facts=facts, sweep=folder), finished
