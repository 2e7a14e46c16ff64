"""The figures of a report: plain numbers and a path in, PNG and SVG files (light and dark) out.

    loss_figure             the losses over the epochs of a run
    cdf_figure              cosines to the own class, frozen encoder against aligned (the paper's Figures 4
    and 5) prompt_length_figure    accuracy over prompt length, one line per kind of fusion (Figure 6)
    choice_figure           accuracy by two settings: template set and width of the shared space (Figure 7)
    confusion_figure the most confused classes (Figure 8) scatter_figure          rows of several modalities
    in two dimensions (Figure 2)

Each returns the files it wrote. Accuracies come in as fractions and are drawn in percent. Nothing is computed
here but means and standard deviations over repeated cells; see `theme` for the look, `maps` for confusion and
scatter plots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from spaner.align.report import theme as look
from spaner.align.report.measured import KINDS
from spaner.align.report.theme import Theme
from spaner.align.score.metrics import cosine_cdf
from spaner.errors import DatasetError

REPEATS = ("seed", "draw_seed")
"""Settings whose values are repetitions: averaged, never told apart."""

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


def prompt_length_figure(cells: Sequence[Mapping[str, Any]], path: str | Path) -> list[Path]:
    """Accuracy against prompt length: mean over seeds, bars and band one standard deviation, zero-shot
    dashed.

    Args:
        cells: results with `config`, `metrics` and, where they come from a sweep, `varied` and `status`;
            failed cells are left out. Every other varied setting (fusion, recipe …) gives a line of its own.

    Raises:
        DatasetError: no cell succeeded.
    """
    lines = grouped(finished(cells), along="prompt_length")

    def paint(figure: Any, theme: Theme) -> None:
        for axes, kind in zip(figure.subplots(1, 2, sharey=True), KINDS, strict=True):
            for i, (name, members) in enumerate(lines.items()):
                _line(axes, members, kind, theme, i, name)
            lengths = sorted({length for members in lines.values() for length in members})
            axes.set_xscale("log", base=2)
            axes.set_xticks(lengths, [str(length) for length in lengths])
            axes.minorticks_off()
            axes.margins(x=0.08)
            axes.set(title=KINDS[kind], xlabel="prompt length P")
            look.plain(axes)
        figure.axes[0].set_ylabel("accuracy (%)")
        for axes, kind in zip(figure.axes, KINDS, strict=True):
            _zero_shot(axes, finished(cells), kind, theme)
        if len(lines) > 1:
            figure.legend(
                *figure.axes[0].get_legend_handles_labels(),
                loc="outside lower center",
                ncols=min(4, len(lines)),
            )

    return look.draw(path, paint, size=(7.6, 3.7 if len(lines) > 1 else 3.4))


def _line(axes: Any, members: dict[Any, list], kind: str, theme: Theme, index: int, name: str) -> None:
    lengths = sorted(members)
    mean, std = np.array([mean_std(members[length], kind) for length in lengths]).T
    colour = theme.colour(index)
    axes.fill_between(lengths, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
    axes.errorbar(
        lengths,
        mean,
        std if std.any() else None,
        color=colour,
        marker=look.MARKERS[index % len(look.MARKERS)],
        linestyle=look.DASHES[index % len(look.DASHES)],
        capsize=3,
        elinewidth=1.2,
        label=name,
    )


def _zero_shot(axes: Any, cells: Sequence[Mapping[str, Any]], kind: str, theme: Theme) -> None:
    frozen = [cell["metrics"]["zero_shot"] for cell in cells if cell["metrics"].get("zero_shot")]
    if not frozen:
        return
    level = 100 * float(np.mean([each[kind]["accuracy"] for each in frozen]))
    axes.axhline(level, color=theme.faint, linestyle=(0, (2, 2)), linewidth=1.2)
    low, high = axes.get_ylim()
    above = level < (low + high) / 2
    axes.annotate(
        f"frozen encoder {level:.1f}",
        (1, level),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4 if above else -4),
        textcoords="offset points",
        color=theme.faint,
        fontsize=8.5,
        ha="right",
        va="bottom" if above else "top",
    )


def choice_figure(
    cells: Sequence[Mapping[str, Any]],
    path: str | Path,
    *,
    across: str = "templates",
    within: str = "out_dim",
) -> list[Path]:
    """Accuracy by two settings: a group per value of `across`, in it a mark per value of `within`.

    Marks with error bars instead of the paper's bars: the differences are a point or two, which bars that
    start at zero hide and bars that do not exaggerate.

    Raises:
        DatasetError: no cell succeeded.
    """
    done = finished(cells)
    groups = list(dict.fromkeys(cell["config"][across] for cell in done))
    choices = sorted({cell["config"][within] for cell in done}, key=lambda value: (value is None, value))
    step = 0.76 / len(choices)

    def paint(figure: Any, theme: Theme) -> None:
        for axes, kind in zip(figure.subplots(2, 1, sharex=True, sharey=True), KINDS, strict=True):
            for i, choice in enumerate(choices):
                found = {
                    g: [c for c in done if (c["config"][across], c["config"][within]) == (group, choice)]
                    for g, group in enumerate(groups)
                }
                at = {
                    g + (i - (len(choices) - 1) / 2) * step: chosen for g, chosen in found.items() if chosen
                }
                _marks(axes, at, kind, theme, i, word(within, choice))
            axes.set_xticks(range(len(groups)), [word(across, group) for group in groups])
            axes.set(title=KINDS[kind], ylabel="accuracy (%)", xlim=(-0.5, len(groups) - 0.5))
            axes.margins(y=0.16)
            look.plain(axes)
            axes.tick_params(axis="x", length=0)
            for edge in range(1, len(groups)):
                axes.axvline(edge - 0.5, color=theme.grid, linewidth=0.8)
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=min(6, len(choices)),
        )

    return look.draw(path, paint, size=(max(4.6, 1.2 + 0.42 * len(groups) * len(choices)), 5.2))


def _marks(axes: Any, at: Mapping[float, list], kind: str, theme: Theme, index: int, name: str) -> None:
    mean, std = np.array([mean_std(cells, kind) for cells in at.values()]).T
    axes.errorbar(
        list(at),
        mean,
        std if std.any() else None,
        color=theme.colour(index),
        marker=look.MARKERS[index % len(look.MARKERS)],
        markersize=8,
        linestyle="",
        capsize=3,
        elinewidth=1.4,
        label=name,
    )
    for place, value, spread in zip(at, mean, std, strict=True):
        axes.annotate(
            f"{value:.1f}",
            (place, value + spread),
            (0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
        )


def loss_figure(history: Sequence[Mapping[str, float]], path: str | Path) -> list[Path]:
    """The loss and its two terms over the epochs.

    Args:
        history: one entry per epoch with `epoch`, `loss` and, where there are any, `align` and `ca`.
    """
    names = {"loss": "total", "align": "alignment, on f", "ca": "cross-attention, on z"}
    shown = {name: label for name, label in names.items() if name in history[0]}

    def paint(figure: Any, theme: Theme) -> None:
        axes = figure.subplots()
        epochs = [entry["epoch"] for entry in history]
        for i, (name, label) in enumerate(shown.items()):
            values = [entry[name] for entry in history]
            axes.plot(
                epochs,
                values,
                color=theme.colour(i),
                linestyle=look.DASHES[i],
                label=label,
                marker="o" if len(epochs) < 3 else None,
            )
        axes.set(xlabel="epoch", ylabel="cross entropy (nats)", title="Training loss", ylim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
        look.plain(axes)

    return look.draw(path, paint, size=(5.6, 3.4))


def cdf_figure(
    cosines: Mapping[str, Mapping[str, Float[np.ndarray, " N"]]], path: str | Path, *, title: str = ""
) -> list[Path]:
    """Cumulative distribution of cosines to the own class: a panel per kind, a curve per space, means marked.

    Args:
        cosines: e.g. {"text": {"frozen": …, "aligned": …}, "semantic": {…}}; one value per test row.
    """

    pooled = np.concatenate([np.asarray(values) for spaces in cosines.values() for values in spaces.values()])
    middle = float(pooled.min() + pooled.max()) / 2

    def paint(figure: Any, theme: Theme) -> None:
        panels = figure.subplots(1, len(cosines), sharey=True, sharex=True, squeeze=False)[0]
        for axes, (kind, spaces) in zip(panels, cosines.items(), strict=True):
            for i, (name, values) in enumerate(spaces.items()):
                _cdf(axes, np.asarray(values), middle, theme, i, name)
            axes.set(title=KINDS.get(kind, kind), xlabel="cosine to the own class", ylim=(0, 1.01))
            look.plain(axes, grid="both")
        panels[0].set_ylabel("share of test rows")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        if title:
            figure.suptitle(title, fontsize=11)

    return look.draw(path, paint, size=(3.9 * len(cosines), 3.7))


def _cdf(axes: Any, values: np.ndarray, middle: float, theme: Theme, index: int, name: str) -> None:
    """One curve; its mean is written on the side of it that lies towards the middle of the figure."""
    at, share = cosine_cdf(values, np.quantile(values, np.linspace(0, 1, 401)))
    mean = float(values.mean())
    height = float(np.mean(values <= mean))
    colour = theme.colour(index)
    axes.plot(at, share, color=colour, linestyle=look.DASHES[index % 4], label=name)
    axes.plot(mean, height, look.MARKERS[index], color=colour, markeredgecolor=theme.page)
    left = mean > middle
    axes.annotate(
        f"mean {mean:.3f}",
        (mean, height),
        (-9 if left else 9, (7, -7)[index % 2]),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        color=colour,
        fontsize=8.5,
        bbox=look.plate(theme),
    )


def finished(cells: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Cells that succeeded; DatasetError if there is none."""
    done = [cell for cell in cells if cell.get("status", "ok") == "ok"]
    if not done:
        raise DatasetError(
            f"nothing to draw: {len(cells)} cells, none finished; expected at least one; run "
            "`spaner sweep` and read the reasons in its sweep.json"
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


def mean_std(cells: Sequence[Mapping[str, Any]], kind: str) -> tuple[float, float]:
    """In percent; the sample's standard deviation, 0 for a single cell."""
    values = [100 * cell["metrics"][kind]["accuracy"] for cell in cells]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
