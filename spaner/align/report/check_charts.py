"""The figures of the three checks, from what their commands wrote.

    scale_drawing      what more modalities find and cost, a line for each way to the same space
    prompt_drawing     what accuracy loses without the shared prompt, a row a variant
    transfer_drawing   what a run gains on its frozen encoder elsewhere, a row for each run and data set

Rows are differences with their 95 % intervals: one that crosses the line at 0 says that nothing was shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spaner.align.report.drawing import Drawing, keys
from spaner.align.report.measured import KINDS
from spaner.align.report.panel import Panel, labelled, shortened, span, ticks
from spaner.align.report.theme import HANDS
from spaner.align.train.ablate import REFERENCE

WAYS = {"joint": "trained together", "extended": "joined one by one"}
ROW = 30.0
"""Pixels a row of differences takes."""
NAMES = 212.0
"""Pixels that the names of rows take."""


@dataclass(frozen=True)
class Difference:
    """A row of differences, in points: what it is called, whose colour it has, its mean and interval."""

    name: str
    index: int
    mean: float
    low: float
    high: float


def scale_drawing(name: str, told: Mapping[str, Any]) -> Drawing:
    """Four panels over the number of modalities: accuracy, recall between them, time of training, memory."""
    lines = [(way, title) for way, title in WAYS.items() if any(row["way"] == way for row in told["rows"])]

    def of(column: str, factor: float = 1.0) -> list[list[tuple[int, float, float]]]:
        return [_line(told["rows"], way, column, factor) for way, _ in lines]

    recall = [*of("trained", 100), _line(told["rows"], "extended", "emergent", 100)]
    labels = [title for _, title in lines]
    pairs = [*(f"{title}: compared by a loss" for title in labels), "joined one by one: emergent"]
    panels = [
        _counted("Text retrieval", "accuracy (%)", dict(zip(labels, of("text", 100), strict=True))),
        _counted("Between modalities", "mean recall@1 (%)", dict(zip(pairs, recall, strict=True))),
        _counted("Time of training", "seconds", dict(zip(labels, of("seconds"), strict=True)), zero=True),
        _counted("Memory of a step", "MB", dict(zip(labels, of("megabytes"), strict=True)), zero=True),
    ]
    return Drawing(name, panels, keys([*labels, "emergent pairs: no loss compared the two"]))


def _line(
    rows: Iterable[Mapping[str, Any]], way: str, column: str, factor: float
) -> list[tuple[int, float, float]]:
    """(modalities, mean, deviation over seeds) where there is such a number."""
    return [
        (row["modalities"], factor * row[column][0], factor * row[column][1])
        for row in rows
        if row["way"] == way and row[column] is not None
    ]


def _counted(
    title: str, unit: str, lines: Mapping[str, Sequence[tuple[int, float, float]]], *, zero: bool = False
) -> Panel:
    """Lines over the number of modalities with bars of one deviation; with `zero` the axis starts at 0."""
    every = [point for line in lines.values() for point in line]
    counts = sorted({count for count, _, _ in every}) or [2]
    low, high = span([v for _, mean, std in every for v in (mean - std, mean + std)] or [0.0])
    y = (0.0, high) if zero else (low, high)
    panel = Panel(title, (counts[0] - 0.3, counts[-1] + 0.3), y)
    panel.described = f"{title}: {unit} over the number of modalities"
    panel.axes([(k, str(k)) for k in counts], labelled(ticks(*y)), "modalities", unit)
    for i, (name, line) in enumerate(lines.items()):
        panel.line(((count, mean) for count, mean, _ in line), i)
        for count, mean, std in line:
            panel.bar((count, mean - std), (count, mean + std), i)
            panel.mark(count, mean, i, f"{name}, {count} modalities\n{mean:.1f} ± {std:.1f} {unit}")
    return panel


def prompt_drawing(name: str, told: Mapping[str, Any]) -> Drawing:
    """What the reference is better by, for each variant and kind of retrieval."""
    variants = [row for row in told["rows"] if row["variant"] != REFERENCE]
    found = {
        kind: [_difference(row["variant"], 0, row[f"{kind}_lost"]) for row in variants] for kind in KINDS
    }
    return _differences(name, found, "points lost against the reference")


def transfer_drawing(name: str, told: Mapping[str, Any]) -> Drawing:
    """What runs gain on the frozen encoder of each data set that they were asked about; a colour a run."""
    asked = [row for row in told["rows"] if row.get("gains")]
    runs = list(dict.fromkeys(row["run"] for row in asked))
    datasets = list(dict.fromkeys(row["dataset"] for row in asked))
    asked = sorted(asked, key=lambda row: datasets.index(row["dataset"]))
    found = {
        kind: [
            _difference(row["dataset"], runs.index(row["run"]), row["gains"][kind])
            for row in asked
            if kind in row["gains"]
        ]
        for kind in KINDS
    }
    return _differences(name, found, "points gained on the frozen encoder", runs)


def _difference(name: str, index: int, sure: Mapping[str, float]) -> Difference:
    return Difference(name, index, 100 * sure["mean"], 100 * sure["low"], 100 * sure["high"])


def _differences(
    name: str, found: Mapping[str, Sequence[Difference]], axis: str, things: Sequence[str] = ()
) -> Drawing:
    """A panel for each kind that has rows; all panels have one axis. `things` are what colours stand for."""
    shown = {kind: rows for kind, rows in found.items() if rows}
    x = span([0.0, *(v for rows in shown.values() for row in rows for v in (row.low, row.high))], 0.06)
    panels = [_forest(KINDS[kind], rows, x, axis, things) for kind, rows in shown.items()]
    return Drawing(name, panels, keys(things, lines=False) if len(things) > 1 else ())


def _forest(
    title: str, rows: Sequence[Difference], x: tuple[float, float], axis: str, things: Sequence[str]
) -> Panel:
    """A row a difference: its name, its interval, its mean, and the line at 0."""
    height = 84 + ROW * len(rows)
    panel = Panel(title, x, (len(rows), 0), height=height, width=560, left=NAMES, right=16, top=34)
    panel.described = f"{title}: {axis}, {', '.join(row.name for row in rows)}"
    panel.axes(labelled(ticks(*x)), [], axis)
    panel.upright(0.0)
    for i, row in enumerate(rows):
        at = panel.at(x[0], i + 0.5)[1]
        panel.write(8, at + 4, shortened(row.name, NAMES - 16, HANDS["label"].size), "label")
        panel.bar((row.low, i + 0.5), (row.high, i + 0.5), row.index)
        who = f"{row.name}, {things[row.index]}" if things else row.name
        tip = f"{who}\n{row.mean:+.1f} points (95 %: {row.low:+.1f} … {row.high:+.1f})"
        ink = "faint" if row.low <= 0 <= row.high else ""
        panel.mark(row.mean, i + 0.5, row.index, tip, kind="big", ink=ink)
    return panel
