"""Figures of the space itself: who is taken for whom (the paper's Figure 8), and rows in the plane (Figure
2).

    confusion_figure        the most confused classes
    scatter_figure          rows of several modalities in two dimensions

Plain numbers and a path in, PNG and SVG files (light and dark) out. Which classes are the worst is
`confusion`'s business, where a row lies in the plane `geometry`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from spaner.align.report import theme as look
from spaner.align.report.theme import Theme


def confusion_figure(
    matrix: Int[np.ndarray, "C C"],
    names: Sequence[str],
    path: str | Path,
    *,
    title: str = "Most confused classes",
) -> list[Path]:
    """Heat map of a confusion matrix (pass the rows and columns of the worst classes). Errors are coloured;
    the
    diagonal is only counted, so that a few hundred right answers do not drown ten wrong ones."""
    classes = len(names)

    def paint(figure: Any, theme: Theme) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        axes = figure.subplots()
        wrong = np.where(np.eye(classes, dtype=bool), 0, matrix)
        most = max(int(wrong.max()), 1)
        axes.imshow(wrong, cmap=LinearSegmentedColormap.from_list("ramp", theme.ramp), vmin=0, vmax=most)
        _counts(axes, matrix, most, theme)
        axes.set_xticks(range(classes), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(classes), names)
        axes.set(xlabel="predicted", ylabel="true class", title=title)
        look.plain(axes, grid="none")
        axes.spines[:].set_visible(False)

    side = 1.7 + 0.34 * classes
    return look.draw(path, paint, size=(side + 0.6, side))


def _counts(axes: Any, matrix: np.ndarray, most: int, theme: Theme) -> None:
    from matplotlib.patches import Rectangle

    for i, j in np.ndindex(matrix.shape):
        if i == j:
            axes.add_patch(
                Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=theme.grid, edgecolor=theme.page, linewidth=1)
            )
        if i == j or matrix[i, j]:
            strong = i != j and matrix[i, j] > 0.55 * most
            colour = theme.faint if i == j else (theme.page if strong else theme.ink)
            axes.text(j, i, f"{matrix[i, j]:d}", ha="center", va="center", fontsize=7.5, color=colour)


def scatter_figure(
    points: Mapping[str, Float[np.ndarray, "N 2"]],
    labels: Mapping[str, Int[np.ndarray, " N"]],
    names: Sequence[str],
    path: str | Path,
    *,
    title: str = "t-SNE of the shared space",
) -> list[Path]:
    """Rows of several modalities in the plane: shape tells the modality, colour the class, a name stands at
    each class.

    Args:
        points: positions by modality, e.g. {"image": …, "text": …}. The last modality is drawn on top.
        labels: class of each point, by modality.
    """

    def paint(figure: Any, theme: Theme) -> None:
        axes = figure.subplots()
        for i, (modality, places) in enumerate(points.items()):
            small = len(places) > 3 * len(names)
            colours = [theme.colour(label) for label in labels[modality]]
            axes.scatter(
                *places.T,
                s=14 if small else 90,
                c=colours,
                marker=look.MARKERS[i],
                alpha=0.55 if small else 1,
                linewidths=0 if small else 1.2,
                edgecolors=theme.page if not small else "none",
            )
            axes.scatter(
                [], [], c=theme.faint, marker=look.MARKERS[i], s=30, label=f"{modality} ({len(places):,})"
            )
        _class_names(axes, points, labels, names, theme)
        axes.set(title=title, xticks=[], yticks=[], aspect="equal")
        axes.spines[:].set_visible(False)
        look.plain(axes, grid="none")
        figure.legend(loc="outside lower center", ncols=len(points))

    return look.draw(path, paint, size=(6, 6.2))


def _class_names(axes: Any, points: Mapping, labels: Mapping, names: Sequence[str], theme: Theme) -> None:
    """Each class's name above the middle of its points, or above its text where there is one of each."""
    last = list(points)[-1]
    chosen = [last] if len(points[last]) == len(set(np.asarray(labels[last]).tolist())) else list(points)
    places, classes = np.concatenate([points[m] for m in chosen]), np.concatenate([labels[m] for m in chosen])
    for label in np.unique(classes)[:40]:
        axes.annotate(
            names[label],
            np.median(places[classes == label], axis=0),
            (0, 9),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            weight="bold",
            bbox=look.plate(theme),
        )
