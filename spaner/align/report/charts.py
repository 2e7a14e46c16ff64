"""The charts of the page: what was measured in, inline SVG out (see `panel`).

accuracy_charts   frozen encoder and runs with their intervals
cdf_charts        cosines to the own class (the paper's Figures 4 and 5)
loss_chart        the losses of one run
length_charts     accuracy over prompt length, a line per fusion (Figure 6)
choice_charts     accuracy by template set and width (Figure 7)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spaner.align.report.figures import KINDS, finished, grouped, mean_std, word
from spaner.align.report.measured import Bench, Entry
from spaner.align.report.origin import spaces
from spaner.align.report.panel import Panel, legend, span, ticks
from spaner.align.report.table import Number, bounds, text

LOSSES = {"loss": "total", "align": "alignment, on f", "ca": "cross-attention, on z"}
MARKED = np.linspace(0, 1, 21)
"""Shares of rows at which a cumulative curve can be pointed at."""


def accuracy_charts(bench: Bench, entries: Sequence[Entry]) -> str:
    """A panel per kind of retrieval: a dot and its 95 % interval for each space, chance where it is near."""
    every_space = spaces(bench, entries).items()
    found = {
        kind: {name: Number.of(s.scores[kind]["accuracy"]) for name, s in every_space if s.scores[kind]}
        for kind in KINDS
    }
    numbers = [number for each in found.values() for number in each.values() if number]
    every = [100 * v for n in numbers for v in (n.low, n.high) if v is not None]
    panels = []
    for kind, title in KINDS.items():
        shown = found[kind]
        if not shown:
            continue
        panel = Panel(
            title, span(every, 0.12), (len(shown), 0), height=76 + 46 * len(shown), left=2, right=6, top=30
        )
        panel.title = ""
        panel.write(2, 15, title, "title")
        panel.grid([(v, f"{v:g}") for v in ticks(*panel.x)], [], "accuracy (%)")
        for i, (name, number) in enumerate(shown.items()):
            assert number is not None
            assert number.low is not None
            assert number.high is not None
            row = i + 0.68
            panel.write(2, panel.at(panel.x[0], i + 0.34)[1], name, "label")
            panel.write(414, panel.at(panel.x[0], i + 0.34)[1], text(number, "percent"), "label end strong")
            panel.parts.append(_whisker(panel, 100 * number.low, 100 * number.high, row, i))
            tip = f"{name}, {title.lower()}\n{text(number, 'percent')} %  (95 %: {bounds(number, 'percent')})"
            panel.mark(100 * number.value, row, i, tip, size="b")
        panels.append(panel.svg(f"{title}: accuracy of {', '.join(shown)}"))
    return _row(panels)


def _whisker(panel: Panel, low: float, high: float, y: float, index: int) -> str:
    (x0, at), (x1, _), (start, _), (end, _) = (panel.at(x, y) for x in (low, high, *panel.x))
    return (
        f'<path class="grid" d="M{start:g} {at:g}H{end:g}"/>'
        f'<path class="band c{index % 10}" d="M{x0:g} {at:g}H{x1:g}"/>'
    )


def cdf_charts(bench: Bench, entries: Sequence[Entry]) -> str:
    """A panel per kind, a curve per space: the share of test rows below each cosine; the mean is marked."""
    shown = {name: s for name, s in spaces(bench, entries).items() if s.matches["text"].has_cosines}
    if not shown:
        return ""
    curves = {kind: [s.matches[kind].positive for s in shown.values()] for kind in KINDS}
    low, high = span([v for values in curves.values() for c in values for v in (c.min(), c.max())], 0.03)
    panels = []
    for kind, title in KINDS.items():
        panel = Panel(title, (low, high), (0, 1))
        panel.grid(
            [(v, f"{v:g}".replace("-", "−")) for v in ticks(low, high)],
            [(v, f"{100 * v:.0f}") for v in (0, 0.25, 0.5, 0.75, 1)],
            "cosine to the own class",
            "% of rows",
        )
        for i, (name, values) in enumerate(zip(shown, curves[kind], strict=True)):
            _cdf(panel, values, name, i)
        panels.append(panel.svg(f"{title}: cumulative distribution of cosines, {', '.join(shown)}"))
    return _row(panels) + legend(list(shown))


def _cdf(panel: Panel, values: np.ndarray, name: str, index: int) -> None:
    shares = np.linspace(0, 1, 121)
    panel.line(zip(np.quantile(values, shares).tolist(), shares.tolist(), strict=True), index)
    for share, at in zip(MARKED.tolist(), np.quantile(values, MARKED).tolist(), strict=True):
        panel.mark(
            at, share, index, f"{name}\n{100 * share:.0f} % of rows have a cosine ≤ {at:.3f}", kind="ghost"
        )
    mean = float(values.mean())
    below = float((values <= mean).mean())
    panel.mark(mean, below, index, f"{name}\nmean cosine {mean:.3f}", size="b")


def loss_chart(entry: Entry) -> str:
    """The loss of one run and its two terms over the epochs."""
    history = entry.run.history
    shown = {key: label for key, label in LOSSES.items() if key in history[0]}
    epochs = [step["epoch"] for step in history]
    top = max(step[key] for key in shown for step in history)
    panel = Panel(entry.name, (min(epochs), max(max(epochs), min(epochs) + 1)), (0, 1.06 * top), height=250)
    panel.grid(
        [(v, f"{v:g}") for v in ticks(*panel.x) if v == int(v)],
        [(v, f"{v:g}") for v in ticks(*panel.y, 4)],
        "epoch",
        "cross entropy (nats)",
    )
    every = max(1, len(history) // 25)
    for i, (key, label) in enumerate(shown.items()):
        panel.line(((step["epoch"], step[key]) for step in history), i)
        for step in [*history[:-1:every], history[-1]]:
            tip = f"{label}, epoch {step['epoch']:.0f}\n{step[key]:.3f} nats"
            panel.mark(step["epoch"], step[key], i, tip, kind="" if step is history[-1] else "ghost")
    return panel.svg(f"Losses of {entry.name} over the epochs")


def loss_charts(entries: Sequence[Entry]) -> str:
    """A panel per run."""
    charts = [loss_chart(entry) for entry in entries if entry.run.history]
    return _row(charts) + legend(list(LOSSES.values())) if charts else ""


def length_charts(cells: Sequence[Mapping[str, Any]]) -> str:
    """A panel per kind: mean accuracy over prompt length with a band of one standard deviation over seeds."""
    lines = grouped(finished(cells), along="prompt_length")
    lengths = sorted({length for members in lines.values() for length in members})
    stats = {
        kind: [[(p, *mean_std(members[p], kind)) for p in sorted(members)] for members in lines.values()]
        for kind in KINDS
    }
    levels = {kind: _frozen_level(cells, kind) for kind in KINDS}
    every = [v for ls in stats.values() for line in ls for _, m, s in line for v in (m - s, m + s)]
    y = span([*every, *(level for level in levels.values() if level is not None)])
    panels = []
    for kind, title in KINDS.items():
        panel = Panel(title, (lengths[0] / 1.15, lengths[-1] * 1.15), y, log=True)
        panel.grid(
            [(v, str(v)) for v in lengths],
            [(v, f"{v:g}") for v in ticks(*y)],
            "prompt length P",
            "accuracy (%)",
        )
        for i, (name, line) in enumerate(zip(lines, stats[kind], strict=True)):
            _band(panel, line, i)
            panel.line(((p, mean) for p, mean, _ in line), i)
            for p, mean, std in line:
                panel.mark(p, mean, i, f"{name or 'SPANER'}, P = {p}\n{mean:.1f} ± {std:.1f} %", size="b")
        _level(panel, levels[kind])
        panels.append(panel.svg(f"{title}: accuracy over prompt length"))
    return _row(panels) + (legend(list(lines)) if len(lines) > 1 else "")


def _band(panel: Panel, line: Sequence[tuple[float, float, float]], index: int) -> None:
    edge = [panel.at(p, m + s) for p, m, s in line] + [panel.at(p, m - s) for p, m, s in reversed(line)]
    path = "L".join(f"{x:g} {y:g}" for x, y in edge)
    panel.parts.append(f'<path class="area c{index % 10}" d="M{path}z"/>')


def _level(panel: Panel, level: float | None) -> None:
    if level is None:
        return
    x0, at = panel.at(panel.x[0], level)
    panel.parts.append(f'<path class="level" d="M{x0:g} {at:g}H{panel.width - panel.right:g}"/>')
    above = level < sum(panel.y) / 2
    panel.write(
        panel.width - panel.right, at + (-6 if above else 14), f"frozen encoder {level:.1f}", "tick end halo"
    )


def _frozen_level(cells: Sequence[Mapping[str, Any]], kind: str) -> float | None:
    frozen = [c["metrics"]["zero_shot"] for c in finished(cells) if c["metrics"].get("zero_shot")]
    return 100 * float(np.mean([each[kind]["accuracy"] for each in frozen])) if frozen else None


def choice_charts(
    cells: Sequence[Mapping[str, Any]], across: str = "templates", within: str = "out_dim"
) -> str:
    """A panel per kind: a group per value of `across`, in it a mark per value of `within`."""
    done = finished(cells)
    groups = list(dict.fromkeys(cell["config"][across] for cell in done))
    choices = sorted({cell["config"][within] for cell in done}, key=lambda v: (v is None, v))
    means = {kind: _choices(done, kind, (across, groups), (within, choices)) for kind in KINDS}
    y = span([v for found in means.values() for *_, m, s in found for v in (m - s, m + s)], 0.14)
    panels = []
    for kind, title in KINDS.items():
        panel = Panel(title, (-0.5, len(groups) - 0.5), y)
        names = [(float(g), word(across, group)) for g, group in enumerate(groups)]
        panel.grid(names, [(v, f"{v:g}") for v in ticks(*y)], "", "accuracy (%)")
        for g, i, mean, std in means[kind]:
            x = g + (i - (len(choices) - 1) / 2) * 0.76 / len(choices)
            (px, top), (_, low) = panel.at(x, mean + std), panel.at(x, mean - std)
            panel.parts.append(f'<path class="band thin c{i % 10}" d="M{px:g} {top:g}V{low:g}"/>')
            tip = f"{word(across, groups[g])}, {word(within, choices[i])}\n{mean:.1f} ± {std:.1f} %"
            panel.mark(x, mean, i, tip, size="b")
            panel.write(px, top - 11, f"{mean:.1f}", "tick mid")
        panels.append(panel.svg(f"{title}: accuracy by {across} and {within}"))
    return _row(panels) + legend([word(within, choice) for choice in choices], dashes=False)


def _choices(
    cells: Sequence[Mapping[str, Any]], kind: str, across: tuple[str, list], within: tuple[str, list]
) -> list[tuple[int, int, float, float]]:
    """(group, choice, mean, deviation) wherever there is a cell."""
    found = []
    for g, group in enumerate(across[1]):
        for i, choice in enumerate(within[1]):
            chosen = [c for c in cells if (c["config"][across[0]], c["config"][within[0]]) == (group, choice)]
            if chosen:
                found.append((g, i, *mean_std(chosen, kind)))
    return found


def _row(panels: Sequence[str]) -> str:
    return f'<div class="panels">{"".join(panels)}</div>'
