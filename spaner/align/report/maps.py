"""The maps of a report: rows in the plane (the paper's Figure 2) and matrices of classes or modalities.

    plane_drawing      rows of several modalities in two dimensions
    confusion_drawing  who is taken for whom among the most confused classes (Figure 8)
    matrix_panel       a cell for every pair of a row and a column, coloured by its strength

Which classes are the worst is `confusion`'s business, where a row lies in the plane `geometry`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from spaner.align.report.drawing import Drawing, Key
from spaner.align.report.measured import KINDS, Plane
from spaner.align.report.panel import Box, Panel, shortened, width_of
from spaner.align.report.theme import STRENGTHS
from spaner.align.score.confusion import most_confused_classes

CELL = (21.0, 40.0)
"""Smallest and largest side of a matrix's cell."""

NAME = 12.5
AROUND = [(dx, 4 + dy, "mid") for dx in (0, -50, 50) for dy in (0, -15, 15, -30, 30, -45, 45)]
"""Where a class's name may stand, seen from the middle of its rows."""


def plane_drawing(name: str, title: str, plane: Plane, names: Sequence[str]) -> Drawing:
    """t-SNE of one space: shape tells the modality, colour the class, a name stands at each class."""
    places = np.concatenate(list(plane.points.values()))
    x, y = _frame(places)
    panel = Panel(title, x, y, left=8, right=8, top=30, bottom=8)
    panel.height = 38 + (panel.width - 16) * (y[1] - y[0]) / (x[1] - x[0])  # one scale for both directions
    panel.described = f"t-SNE, {title}: {', '.join(plane.points)}"
    classes = np.unique(np.concatenate(list(plane.labels.values()))).tolist()
    order = sorted(enumerate(plane.points), key=lambda pair: pair[1] == "text")  # text on top
    for i, modality in order:
        is_text = modality == "text"
        rows = zip(
            plane.points[modality].tolist(), plane.labels[modality].tolist(), plane.ids[modality], strict=True
        )
        for (px, py), label, row in rows:
            tip = f"{names[label]}\n{modality}" + ("" if is_text else f" · {row}")
            panel.mark(px, py, classes.index(label), tip, kind="ringed" if is_text else "dot", shape=i)
    _class_names(panel, plane, names)
    counted = {modality: f"{modality} ({len(found):,})" for modality, found in plane.points.items()}
    legend = [Key(words, 0, shape=i, ink="ink", line=False) for i, words in enumerate(counted.values())]
    return Drawing(name, [panel], legend)


def _frame(places: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """Limits of both directions with air around; the upright one at least half as long as the other."""
    low, high = places.min(0), places.max(0)
    half = np.maximum((high - low) * 0.55, float(np.ptp(places, axis=0).max()) * 0.28)
    (x0, y0), (x1, y1) = ((low + high) / 2 - half).tolist(), ((low + high) / 2 + half).tolist()
    return (x0, x1 if x1 > x0 else x0 + 1), (y0, y1 if y1 > y0 else y0 + 1)


def _class_names(panel: Panel, plane: Plane, names: Sequence[str]) -> None:
    """Each class's name at the middle of its rows of the first modality, or close to it."""
    first = next(iter(plane.points))
    for label in np.unique(plane.labels[first]).tolist():
        x, y = np.median(plane.points[first][plane.labels[first] == label], axis=0).tolist()
        panel.label(x, y, shortened(str(names[label]), 130, NAME), "name", AROUND)


def confusion_drawing(
    name: str,
    matrices: Mapping[str, Int[np.ndarray, "C C"]],
    names: Sequence[str],
    title: str = "",
    top: int = 20,
) -> Drawing:
    """A matrix per kind of retrieval: the `top` most confused classes. Errors are coloured, right answers
    only counted, so that a few hundred of these do not drown ten wrong ones.

    Args:
        matrices: kind -> how many rows of class i were taken for class j.
    """
    panels = [_confusion(KINDS[kind], matrix, names, top) for kind, matrix in matrices.items()]
    return Drawing(name, panels, title=title)


def _confusion(title: str, matrix: Int[np.ndarray, "C C"], names: Sequence[str], top: int) -> Panel:
    worst = most_confused_classes(matrix, top)
    if not len(worst):
        panel = Panel(title, height=60)
        panel.write(8, 42, "no row was taken for another class", "tick")
        return panel
    shown, known = matrix[np.ix_(worst, worst)], [str(names[int(c)]) for c in worst]
    most = max(int((shown - np.diag(np.diag(shown))).max()), 1)

    def cell(i: int, j: int) -> MatrixCell:
        rows = int(shown[i, j])
        tip = f"{known[i]} taken for {known[j]}" if i != j else f"{known[i]} recognised"
        tip += f"\n{rows:,} row{'s' * (rows != 1)}"
        return MatrixCell(f"{rows}" * bool(rows), None if i == j else rows / most, tip)

    panel = matrix_panel(title, known, known, cell, "taken for")
    panel.described = f"{title}: confusion of the {len(known)} most confused classes"
    return panel


@dataclass(frozen=True)
class MatrixCell:
    """What stands in a cell, how strong its colour is (0 to 1; None where it is not compared), and what it
    says to a pointer."""

    words: str
    strength: float | None
    tip: str


def matrix_panel(
    title: str,
    down: Sequence[str],
    across: Sequence[str],
    cell: Callable[[int, int], MatrixCell],
    about: str = "",
) -> Panel:
    """A matrix with its names: rows at the left, columns below, slanted where they are long.

    Args:
        cell: of row i and column j. about: what the columns are.
    """
    left = min(150.0, 22 + max(width_of(name, 11.5) for name in down))
    side = min(CELL[1], max(CELL[0], (420 - left) / len(across)))
    tilt = max(width_of(name, 11.5) for name in across) > side - 4
    below = min(130.0, 22 + 0.87 * max(width_of(name, 11.5) for name in across)) if tilt else 24.0
    head = 44.0 if about else 26.0
    panel = Panel(title, width=left + side * len(across) + 14, left=8)
    panel.height = head + side * len(down) + below
    panel.write(left, 38, f"{about} →" if about else "", "tick")
    for i, name in enumerate(down):
        short = shortened(name, left - 14, 11.5)
        panel.write(left - 6, head + (i + 0.5) * side + 4, short, "tick", "end")
    for j, name in enumerate(across):
        x, y = left + (j + 0.5) * side, head + len(down) * side
        if tilt:
            panel.write(x + 4, y + 11, shortened(name, below / 0.87 - 12, 11.5), "tick", "end", -60)
        else:
            panel.write(x, y + 16, name, "tick", "mid")
    for i, j in np.ndindex(len(down), len(across)):
        _draw_cell(panel, cell(i, j), left + j * side, head + i * side, side)
    return panel


def _draw_cell(panel: Panel, cell: MatrixCell, x: float, y: float, side: float) -> None:
    step = None if cell.strength is None else int(np.ceil(STRENGTHS * min(max(cell.strength, 0), 1)))
    panel.parts.append(Box(x, y, side - 1, side - 1, "even" if step is None else f"h{step}", cell.tip))
    if width_of(cell.words, 10.5) <= side + 4:
        ink = "faint" if step is None else f"on{step}" if step else "ink"
        panel.write(x + side / 2 - 0.5, y + side / 2 + 3.5, cell.words, "count", "mid", ink=ink)
