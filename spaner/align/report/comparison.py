"""The figures of a comparison of methods: rows of `train.compare` and a path in, PNG and SVG files out.

    few_shot_figure   text accuracy against shots, a line a method, bars one standard deviation over seeds
    gap_figure        text accuracy against the gap to the raw class name
    shift_figure      accuracy in the domain against the mean under shift

Each returns the files it wrote. A method without the number that an axis needs is left out of that figure,
and its legend says so. Nothing is measured here; see `theme` for the look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spaner.align.report import theme as look
from spaner.align.report.theme import Theme


def draw(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """The figures that the rows have numbers for; of several numbers of shots the largest stands for them
    all where an axis is something else."""
    done = [row for row in rows if row["cells"]]
    if not done:
        return []
    most = max(row["shots"] for row in done)
    last = [row for row in done if row["shots"] == most]
    files = few_shot_figure(done, folder / "shots") if len({row["shots"] for row in done}) > 1 else []
    if any(row["gap"] for row in last):
        files += gap_figure(last, folder / "gap")
    if any(row["shift"] for row in last):
        files += shift_figure(last, folder / "shift")
    return files


def few_shot_figure(rows: Sequence[Mapping[str, Any]], path: str | Path) -> list[Path]:
    """Text accuracy against shots; zero-shot is dashed, since it learns from none."""
    names = _names(rows)
    shots = sorted({row["shots"] for row in rows})

    def paint(figure: Any, theme: Theme) -> None:
        axes = figure.subplots()
        for i, name in enumerate(names):
            line = sorted((row for row in rows if row["method"] == name), key=lambda row: row["shots"])
            mean, std = ([100 * row["text"][part] for row in line] for part in (0, 1))
            style = {"linestyle": (0, (2, 2)), "color": theme.faint} if name == "zero_shot" else {}
            axes.errorbar(
                [row["shots"] for row in line],
                mean,
                std if any(std) else None,
                label=name,
                capsize=3,
                elinewidth=1.2,
                **_look(theme, i) | style,
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(shots, [str(k) for k in shots])
        axes.minorticks_off()
        axes.set(title="Text retrieval", xlabel="shots a class", ylabel="accuracy (%)")
        look.plain(axes)
        figure.legend(loc="outside right center")

    return look.draw(path, paint, size=(7.6, 4.6))


def gap_figure(rows: Sequence[Mapping[str, Any]], path: str | Path) -> list[Path]:
    """Text accuracy against gap: the upper left is where one wants to be."""
    return _scatter(
        rows,
        path,
        "gap",
        "text",
        "gap: text − semantic (points)",
        "text accuracy (%)",
        "Accuracy against gap",
    )


def shift_figure(rows: Sequence[Mapping[str, Any]], path: str | Path) -> list[Path]:
    """Mean accuracy under shift against accuracy in the domain: the upper right is where one wants to be."""
    return _scatter(
        rows,
        path,
        "text",
        "shift",
        "accuracy in the domain (%)",
        "mean accuracy under shift (%)",
        "In the domain and under shift",
    )


def _scatter(
    rows: Sequence[Mapping[str, Any]], path: str | Path, x: str, y: str, across: str, up: str, title: str
) -> list[Path]:
    names = _names(rows)
    shown = [row for row in rows if row[x] and row[y]]

    def paint(figure: Any, theme: Theme) -> None:
        axes = figure.subplots()
        for row in shown:
            (at, wide), (height, tall) = ([100 * part for part in row[name]] for name in (x, y))
            axes.errorbar(
                at,
                height,
                tall or None,
                wide or None,
                label=row["method"],
                markersize=8,
                capsize=2,
                elinewidth=1,
                **_look(theme, names.index(row["method"])) | {"linestyle": ""},
            )
        axes.set(title=f"{title}, {rows[0]['shots']} shots", xlabel=across, ylabel=up)
        axes.margins(0.08)
        look.plain(axes, grid="both")
        missing = len(rows) - len(shown)
        figure.legend(
            loc="outside right center", title=f"{missing} without a number here are left out" * bool(missing)
        )

    return look.draw(path, paint, size=(7.6, 4.6))


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def _look(theme: Theme, i: int) -> dict[str, Any]:
    """The i-th method's colour, marker and dashes: the three together repeat after forty."""
    return {
        "color": theme.colour(i),
        "marker": look.MARKERS[i % len(look.MARKERS)],
        "linestyle": look.DASHES[i // len(theme.colours) % len(look.DASHES)],
        "linewidth": 1.6,
    }
