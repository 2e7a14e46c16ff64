"""The charts of a report, each described once: plain numbers in, a `Drawing` out.

    accuracy_drawing   frozen encoder and runs with their intervals
    cosine_drawing     cosines to the own class, one curve a space (the paper's Figures 4 and 5)
    loss_drawing       the losses over the epochs of a run
    length_drawing     accuracy over prompt length, one line per kind of fusion (Figure 6)
    choice_drawing     accuracy by two settings: template set and width of the shared space (Figure 7)

Accuracies come in as fractions and are drawn in percent. Nothing is computed here but means and deviations
over repeated cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from spaner.align.report.drawing import Drawing, keys
from spaner.align.report.measured import KINDS
from spaner.align.report.panel import Panel, labelled, shortened, span, ticks
from spaner.align.report.table import bounds, text
from spaner.align.report.theme import colour
from spaner.align.score.intervals import Number
from spaner.align.train.sweep import REPEATS
from spaner.errors import DatasetError

LOSSES = {"loss": "total", "align": "alignment, on f", "ca": "cross-attention, on z"}
WORDS = {
    "aligner": "",
    "recipe": "",
    "templates": "",
    "prompt_length": "P = ",
    "out_dim": "E = ",
    "lam": "λ = ",
    "shots": "shots: ",
    "logit_scale": "scale ",
    "blend": "β = ",
}
"""How a setting is written before its value."""

SHARES = np.linspace(0, 1, 121)
MARKED = np.linspace(0, 1, 21)
"""Shares of rows through which a cumulative curve goes, and at which it can be pointed at."""


def accuracy_drawing(name: str, found: Mapping[str, Mapping[str, Number]]) -> Drawing:
    """A panel per kind of retrieval: a dot and its 95 % interval for each space.

    Args:
        found: kind -> space -> accuracy, with its interval where one is known.
    """
    every = [n for each in found.values() for n in each.values()]
    x = span([100 * v for n in every for v in (n.value, n.low, n.high) if v is not None], 0.12)
    panels = []
    for kind, shown in found.items():
        if not shown:
            continue
        panel = Panel(KINDS[kind], x, (len(shown), 0), height=76 + 46 * len(shown), left=8, right=8, top=30)
        panel.described = f"{KINDS[kind]}: accuracy of {', '.join(shown)}"
        panel.axes(labelled(ticks(*x)), [], "accuracy (%)")
        for i, (space, number) in enumerate(shown.items()):
            _accuracy(panel, i, space, number)
        panels.append(panel)
    return Drawing(name, panels)


def _accuracy(panel: Panel, i: int, space: str, number: Number) -> None:
    base, value = panel.at(panel.x[0], i + 0.34)[1], text(number, "percent")
    panel.write(8, base, shortened(space, panel.width - 80, 12.5), "label")
    panel.write(panel.width - 8, base, value, "strong", "end")
    panel.line([(panel.x[0], i + 0.68), (panel.x[1], i + 0.68)], 0, "grid")
    sure = bounds(number, "percent")
    if number.low is not None and number.high is not None:
        panel.bar((100 * number.low, i + 0.68), (100 * number.high, i + 0.68), i, "band")
    tip = f"{space}, {panel.title.lower()}\n{value} %" + (f"  (95 %: {sure})" if sure else "")
    panel.mark(100 * number.value, i + 0.68, i, tip, kind="big")


def cosine_drawing(
    name: str, cosines: Mapping[str, Mapping[str, Float[np.ndarray, " N"]]], title: str = ""
) -> Drawing:
    """A panel per kind, a curve per space: the share of test rows below each cosine, the mean marked.

    Args:
        cosines: e.g. {"text": {"frozen": …, "aligned": …}, "semantic": {…}}; one value per test row.
    """
    values = [each for spaces in cosines.values() for each in spaces.values()]
    x = span([float(v) for each in values for v in (each.min(), each.max())], 0.03)
    spaces = list(dict.fromkeys(space for each in cosines.values() for space in each))
    panels = []
    for kind, each in cosines.items():
        panel = Panel(KINDS.get(kind, kind), x, (0, 1))
        panel.described = f"{panel.title}: cumulative distribution of cosines, {', '.join(each)}"
        percents = [(share, f"{100 * share:.0f}") for share in (0, 0.25, 0.5, 0.75, 1)]
        panel.axes(labelled(ticks(*x)), percents, "cosine to the own class", "% of rows")
        for space, found in each.items():
            _curve(panel, np.asarray(found), space, spaces.index(space))
        _means(panel, {space: np.asarray(found) for space, found in each.items()}, spaces)
        panels.append(panel)
    return Drawing(name, panels, keys(spaces), title)


def _curve(panel: Panel, values: np.ndarray, space: str, i: int) -> None:
    panel.line(zip(np.quantile(values, SHARES).tolist(), SHARES.tolist(), strict=True), i)
    for share, at in zip(MARKED.tolist(), np.quantile(values, MARKED).tolist(), strict=True):
        tip = f"{space}\n{100 * share:.0f} % of rows have a cosine ≤ {at:.3f}"
        panel.mark(at, share, i, tip, kind="ghost")


def _means(panel: Panel, found: Mapping[str, np.ndarray], spaces: Sequence[str]) -> None:
    """A mark on each curve, and the numbers in a line above the plot, as many as there is room for."""
    x = panel.width - panel.right
    for space, values in reversed(list(found.items())):
        i, mean = spaces.index(space), float(values.mean(dtype=np.float64))
        panel.mark(mean, float((values <= mean).mean()), i, f"{space}\nmean cosine {mean:.3f}", kind="big")
        if x > panel.left + 110:
            panel.write(x, panel.top - 12, f"{mean:.3f}", "tick", "end", ink=colour(i))
            x -= 46
    panel.write(x, panel.top - 12, "mean", "tick", "end")


def loss_drawing(name: str, title: str, history: Sequence[Mapping[str, float]]) -> Drawing:
    """The loss and its two terms over the epochs.

    Args:
        history: one entry per epoch with `epoch`, `loss` and, where there are any, `align` and `ca`.
    """
    shown = {key: label for key, label in LOSSES.items() if key in history[0]}
    epochs = [entry["epoch"] for entry in history]
    top = max(entry[key] for key in shown for entry in history)
    panel = Panel(title, (min(epochs), max(max(epochs), min(epochs) + 1)), (0, 1.06 * top or 1), height=270)
    panel.described = f"Losses of {title} over the epochs"
    whole = [value for value in ticks(*panel.x) if value == int(value)]
    panel.axes(labelled(whole), labelled(ticks(*panel.y, 4)), "epoch", "cross entropy (nats)")
    every = max(1, len(history) // 25)
    for i, (key, label) in enumerate(shown.items()):
        panel.line(((entry["epoch"], entry[key]) for entry in history), i)
        for entry in [*history[:-1:every], history[-1]]:
            tip = f"{label}, epoch {entry['epoch']:.0f}\n{entry[key]:.3f} nats"
            kind = "point" if entry is history[-1] else "ghost"
            panel.mark(entry["epoch"], entry[key], i, tip, kind=kind)
    return Drawing(name, [panel], keys(list(shown.values())))


def length_drawing(name: str, cells: Sequence[Mapping[str, Any]]) -> Drawing:
    """A panel per kind: mean accuracy over prompt length, a band of one standard deviation over seeds,
    zero-shot dashed.

    Args:
        cells: results with `config`, `metrics` and, where they come from a sweep, `varied` and `status`;
            failed cells are left out. Every other varied setting (fusion, recipe …) gives a line of its own.

    Raises:
        DatasetError: no cell succeeded.
    """
    lines = grouped(finished(cells), along="prompt_length")
    lengths = sorted({length for members in lines.values() for length in members})
    stats = {kind: [_points(members, kind) for members in lines.values()] for kind in KINDS}
    levels = {kind: _frozen_level(cells, kind) for kind in KINDS}
    every = [v for ls in stats.values() for line in ls for _, m, s in line for v in (m - s, m + s)]
    y = span([*every, *(level for level in levels.values() if level is not None)])
    panels = []
    for kind, title in KINDS.items():
        panel = Panel(title, (lengths[0] / 1.15, lengths[-1] * 1.15), y, log=True)
        panel.described = f"{title}: accuracy over prompt length"
        panel.axes([(v, str(v)) for v in lengths], labelled(ticks(*y)), "prompt length P", "accuracy (%)")
        for i, (system, line) in enumerate(zip(lines, stats[kind], strict=True)):
            _spread_line(panel, line, i, system or "SPANER")
        level = levels[kind]
        if level is not None:
            panel.level(level, f"frozen encoder {level:.1f}", [line[-1][1] for line in stats[kind]])
        panels.append(panel)
    return Drawing(name, panels, keys(list(lines)) if len(lines) > 1 else ())


def _points(members: Mapping[Any, list], kind: str) -> list[tuple[float, float, float]]:
    return [(length, *percent(members[length], kind)) for length in sorted(members)]


def _spread_line(panel: Panel, line: Sequence[tuple[float, float, float]], i: int, system: str) -> None:
    low = [(p, mean - std) for p, mean, std in reversed(line)]
    panel.area([*((p, mean + std) for p, mean, std in line), *low], i)
    panel.line(((p, mean) for p, mean, _ in line), i)
    for p, mean, std in line:
        panel.mark(p, mean, i, f"{system}, P = {p}\n{mean:.1f} ± {std:.1f} %", kind="big")


def _frozen_level(cells: Sequence[Mapping[str, Any]], kind: str) -> float | None:
    frozen = [c["metrics"]["zero_shot"] for c in finished(cells) if c["metrics"].get("zero_shot")]
    return 100 * float(np.mean([each[kind]["accuracy"] for each in frozen])) if frozen else None


def choice_drawing(
    name: str, cells: Sequence[Mapping[str, Any]], across: str = "templates", within: str = "out_dim"
) -> Drawing:
    """A panel per kind: a group per value of `across`, in it a mark per value of `within`.

    Marks with error bars instead of the paper's bars: the differences are a point or two, which bars that
    start at zero hide and bars that do not exaggerate.

    Raises:
        DatasetError: no cell succeeded.
    """
    done = finished(cells)
    groups = list(dict.fromkeys(cell["config"][across] for cell in done))
    choices = sorted({cell["config"][within] for cell in done}, key=lambda v: (v is None, v))
    means = {kind: _choices(done, kind, (across, groups), (within, choices)) for kind in KINDS}
    y = span([v for found in means.values() for *_, m, s in found for v in (m - s, m + s)], 0.14)
    width = max(420.0, 60 + 34.0 * len(groups) * len(choices))
    panels = []
    for kind, title in KINDS.items():
        panel = Panel(title, (-0.5, len(groups) - 0.5), y, width=width)
        panel.described = f"{title}: accuracy by {across} and {within}"
        names = [(float(g), word(across, group)) for g, group in enumerate(groups)]
        panel.axes(names, labelled(ticks(*y)), "", "accuracy (%)")
        for g, i, mean, std in means[kind]:
            x = g + (i - (len(choices) - 1) / 2) * 0.76 / len(choices)
            panel.bar((x, mean - std), (x, mean + std), i)
            tip = f"{word(across, groups[g])}, {word(within, choices[i])}\n{mean:.1f} ± {std:.1f} %"
            panel.mark(x, mean, i, tip, kind="big")
            px, top = panel.at(x, mean + std)
            panel.write(px, top - 11, f"{mean:.1f}", "tick", "mid")
        panels.append(panel)
    legend = keys([word(within, choice) for choice in choices], lines=False)
    return Drawing(name, panels, legend, columns=1 if width > 500 else 2)


def _choices(
    cells: Sequence[Mapping[str, Any]], kind: str, across: tuple[str, list], within: tuple[str, list]
) -> list[tuple[int, int, float, float]]:
    """(group, choice, mean, deviation) wherever there is a cell."""
    found = []
    for g, group in enumerate(across[1]):
        for i, choice in enumerate(within[1]):
            chosen = [c for c in cells if (c["config"][across[0]], c["config"][within[0]]) == (group, choice)]
            if chosen:
                found.append((g, i, *percent(chosen, kind)))
    return found


def finished(cells: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Cells that succeeded; DatasetError if there is none."""
    done = [cell for cell in cells if cell.get("status", "ok") == "ok"]
    if not done:
        raise DatasetError(
            f"nothing to draw: {len(cells)} cells, none finished; expected at least one; "
            "run `spaner sweep` and read the reasons in its sweep.json"
        )
    return done


def grouped(cells: Sequence[Mapping[str, Any]], along: str) -> dict[str, dict[Any, list]]:
    """Line -> value of `along` -> its repeated cells. Lines differ in the settings that vary besides."""
    varying = [
        name
        for name in dict.fromkeys(key for cell in cells for key in cell.get("varied", cell["config"]))
        if name not in (along, *REPEATS) and len({repr(cell["config"].get(name)) for cell in cells}) > 1
    ]
    lines: dict[str, dict[Any, list]] = {}
    for cell in cells:
        name = ", ".join(word(key, cell["config"].get(key)) for key in varying)
        lines.setdefault(name, {}).setdefault(cell["config"][along], []).append(cell)
    return lines


def word(setting: str, value: Any) -> str:
    """A setting as a chart names it: "E = 512", "mined"."""
    default = {"out_dim": "D", "shots": "all"}.get(setting, "default")
    return f"{WORDS.get(setting, f'{setting} ')}{default if value is None else value}"


def percent(cells: Sequence[Mapping[str, Any]], kind: str) -> tuple[float, float]:
    """Mean accuracy and its deviation over repeated cells in percent; no deviation for a single cell."""
    number = Number.over(cell["metrics"][kind]["accuracy"] for cell in cells)
    assert number is not None
    return 100 * number.value, 100 * (number.std or 0.0)
