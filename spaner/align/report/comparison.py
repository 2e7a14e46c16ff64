"""The figures of a comparison of methods, from the rows of `train.compare`.

    few_shot_drawing   text accuracy against shots, a line a method, bars one standard deviation over seeds
    gap_drawing        text accuracy against the gap to the raw class name
    shift_drawing      accuracy in the domain against the mean under shift

A method without the number that an axis needs is left out of that figure, which names it. Nothing is
measured here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spaner.align.report.drawing import Drawing, Key, write
from spaner.align.report.panel import Panel, labelled, shortened, span, ticks
from spaner.align.report.theme import colour
from spaner.align.score.intervals import Number

BESIDE = [(0, -11, "mid"), (0, 20, "mid"), (10, -8, "start"), (10, 16, "start")]
BESIDE += [(-10, -8, "end"), (-10, 16, "end"), (14, 4, "start"), (-14, 4, "end")]
"""Where a method's name may stand, seen from its mark."""

Rows = Sequence[Mapping[str, Any]]


def draw(rows: Rows, folder: Path) -> list[Path]:
    """The figures that the rows have numbers for; of several numbers of shots the largest stands for them
    all where an axis is something else."""
    done = [row for row in rows if row["cells"]]
    if not done:
        return []
    most = max(row["shots"] for row in done)
    last = [row for row in done if row["shots"] == most]
    drawings = [few_shot_drawing(done)] if len({row["shots"] for row in done}) > 1 else []
    drawings += [gap_drawing(last)] if any(row["gap"] for row in last) else []
    drawings += [shift_drawing(last)] if any(row["shift"] for row in last) else []
    return [file for drawing in drawings for file in write(drawing, folder)]


def few_shot_drawing(rows: Rows) -> Drawing:
    """Text accuracy against shots; zero-shot is faint, since it learns from none."""
    names = _names(rows)
    shots = sorted({row["shots"] for row in rows})
    lines = {name: sorted(_of(rows, name), key=lambda row: row["shots"]) for name in names}
    y = span([v for row in rows for mean, std in [_percent(row["text"])] for v in (mean - std, mean + std)])
    panel = Panel("Text retrieval", (shots[0] / 1.12, shots[-1] * 1.12), y, log=True, width=640, height=400)
    panel.axes([(k, str(k)) for k in shots], labelled(ticks(*y)), "shots a class", "accuracy (%)")
    for i, (name, line) in enumerate(lines.items()):
        points = [(row["shots"], *_percent(row["text"])) for row in line]
        panel.line(((k, mean) for k, mean, _ in points), i, ink=_ink(name))
        for k, mean, std in points:
            panel.bar((k, mean - std), (k, mean + std), i)
            tip = f"{name}, {k} shots\n{mean:.1f} ± {std:.1f} %"
            panel.mark(k, mean, i, tip, ink=_ink(name))
    legend = [Key(name, i, ink=_ink(name)) for i, name in enumerate(names)]
    return Drawing("shots", [panel], legend)


def gap_drawing(rows: Rows) -> Drawing:
    """Text accuracy against gap: the upper left is where one wants to be."""
    axes = ("gap: text − semantic (points)", "text accuracy (%)")
    return _scatter("gap", rows, ("gap", "text"), axes, "Accuracy against gap")


def shift_drawing(rows: Rows) -> Drawing:
    """Mean accuracy under shift against accuracy in the domain: the upper right is where one wants to be."""
    axes = ("accuracy in the domain (%)", "mean accuracy under shift (%)")
    return _scatter("shift", rows, ("text", "shift"), axes, "In the domain and under shift")


def _scatter(name: str, rows: Rows, keys: tuple[str, str], axes: tuple[str, str], title: str) -> Drawing:
    """A mark a method with its name; the legend has the names that found no place beside their marks."""
    shown = [row for row in rows if all(row[key] for key in keys)]
    names = _names(rows)
    places = [[_percent(row[key]) for key in keys] for row in shown]
    x, y = (span([v for at in places for m, s in [at[axis]] for v in (m - s, m + s)], 0.1) for axis in (0, 1))
    panel = Panel(f"{title}, {rows[0]['shots']} shots", x, y, width=640, height=400)
    panel.axes(labelled(ticks(*x)), labelled(ticks(*y)), *axes)
    for row, ((across, wide), (up, tall)) in zip(shown, places, strict=True):
        i = names.index(row["method"])
        panel.bar((across - wide, up), (across + wide, up), i)
        panel.bar((across, up - tall), (across, up + tall), i)
        tip = f"{row['method']}\n{across:.1f} ± {wide:.1f}, {up:.1f} ± {tall:.1f}"
        panel.mark(across, up, i, tip, kind="big")
        panel.keep_free(across, up, 8)
    legend = []
    for row, ((across, _), (up, _)) in zip(shown, places, strict=True):
        i = names.index(row["method"])
        if not panel.label(across, up, row["method"], "note", BESIDE, colour(i)):
            legend.append(Key(row["method"], i, line=False))
    if missing := [row["method"] for row in rows if row not in shown]:
        left_out = shortened(f"left out, without such a number: {', '.join(missing)}", 440, 11.5)
        panel.write(panel.width - panel.right, panel.top - 12, left_out, "tick", "end")
    return Drawing(name, [panel], legend)


def _of(rows: Rows, name: str) -> Rows:
    return [row for row in rows if row["method"] == name]


def _names(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def _ink(name: str) -> str:
    return "faint" if name == "zero_shot" else ""


def _percent(number: Number) -> tuple[float, float]:
    return 100 * number.value, 100 * (number.std or 0.0)
