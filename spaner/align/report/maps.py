"""The page's maps: rows in the plane (the paper's Figure 2) and who is taken for whom (Figure 8).

Numbers in, inline SVG out (see `panel`); every point and cell has its name for hover and focus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from jaxtyping import Int

from spaner.align.report.figures import KINDS
from spaner.align.report.measured import Measured, Plane
from spaner.align.report.panel import Panel, shape
from spaner.align.score.confusion import confusion_matrix, most_confused_classes, most_confused_pairs

CELL = 21
STRENGTHS = 5
"""Steps of the heat map's colours, `h1` … `h5`."""


def plane_charts(planes: Mapping[str, Plane], names: Sequence[str]) -> str:
    """t-SNE of each space: shape tells the modality, colour the class."""
    panels = [_plane(title, plane, names) for title, plane in planes.items()]
    modalities = list(dict.fromkeys(m for plane in planes.values() for m in plane.points))
    keys = "".join(
        f'<li><svg viewBox="0 0 16 16" aria-hidden="true"><use href="#{shape(i)}" x="8" y="8" '
        'class="ink"/></svg>'
        f"{escape(modality)}</li>"
        for i, modality in enumerate(modalities)
    )
    return f'<div class="panels">{"".join(panels)}</div><ul class="legend">{keys}</ul>'


def _plane(title: str, plane: Plane, names: Sequence[str]) -> str:
    places = np.concatenate(list(plane.points.values()))
    panel = Panel("", *_frame(places), left=8, right=8, top=30, bottom=8)
    across, up = (high - low for low, high in (panel.x, panel.y))
    panel.height = 38 + (panel.width - 16) * up / across  # one scale for both directions
    panel.write(8, 15, title, "title")
    classes = np.unique(np.concatenate(list(plane.labels.values()))).tolist()
    order = sorted(enumerate(plane.points), key=lambda pair: pair[1] == "text")  # text on top
    for i, modality in order:
        is_text = modality == "text"
        for place, label, row in zip(
            plane.points[modality].tolist(), plane.labels[modality].tolist(), plane.ids[modality], strict=True
        ):
            tip = f"{names[label]}\n{modality}" + ("" if is_text else f" · {row}")
            kind = "ringed" if is_text else "dot"
            x, y = place
            panel.mark(x, y, classes.index(label), tip, size="b" if is_text else "m", kind=kind, look=i)
    _class_names(panel, plane, names)
    return panel.svg(f"t-SNE, {title}: {', '.join(plane.points)}")


def _frame(places: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """Limits of both directions with air around; the upright one at least half as long as the other."""
    low, high = places.min(0), places.max(0)
    half = np.maximum((high - low) * 0.55, float(np.ptp(places, axis=0).max()) * 0.28)
    (x0, y0), (x1, y1) = ((low + high) / 2 - half).tolist(), ((low + high) / 2 + half).tolist()
    return (x0, x1), (y0, y1)


def _class_names(panel: Panel, plane: Plane, names: Sequence[str]) -> None:
    """Each class's name at the middle of its rows of the first modality."""
    first = next(iter(plane.points))
    for label in np.unique(plane.labels[first]).tolist():
        x, y = np.median(plane.points[first][plane.labels[first] == label], axis=0).tolist()
        px, py = panel.at(x, y)
        panel.write(px, py + 4, str(names[label]), "name mid")


def confusion_charts(measured: Measured, names: Sequence[str], top: int = 20) -> str:
    """A heat map per kind of the most confused classes; an empty one says that nothing was confused."""
    panels = []
    for kind, match in measured.matches.items():
        title, matrix = KINDS[kind], confusion_matrix(match, names)
        worst = most_confused_classes(matrix, top)
        panels.append(_heat(title, matrix[np.ix_(worst, worst)], [names[int(c)] for c in worst]))
    return f'<div class="panels">{"".join(panels)}</div>'


def _heat(title: str, matrix: Int[np.ndarray, "C C"], names: Sequence[str]) -> str:
    if not names:
        return f"<p>{escape(title)}: no row was taken for another class.</p>"
    count = len(names)
    margin = min(150, 22 + 6.4 * max(len(name) for name in names))
    cell = min(34.0, max(CELL, (420 - margin) / count))
    side = margin + cell * count
    panel = Panel("", (0, 1), (0, 1), width=side + 8, height=side + 26)
    panel.write(0, 15, title, "title")
    wrong = np.where(np.eye(count, dtype=bool), 0, matrix)
    most = max(int(wrong.max()), 1)
    for i, name in enumerate(names):
        short = name if len(name) <= 21 else f"{name[:20]}…"
        panel.write(margin - 6, 26 + (i + 0.5) * cell + 4, short, "tick end")
        x, y = margin + (i + 0.5) * cell + 4, 26 + count * cell + 6
        panel.parts.append(
            f'<text class="tick end" transform="translate({x:g} {y:g}) rotate(-60)">{escape(short)}</text>'
        )
    for i, j in np.ndindex(matrix.shape):
        panel.parts.append(_cell(matrix, i, j, most, names, (margin + j * cell, 26 + i * cell, cell)))
    return panel.svg(f"{title}: confusion of the {count} most confused classes")


def _cell(
    matrix: np.ndarray,
    i: int,
    j: int,
    most: int,
    names: Sequence[str],
    box: tuple[float, float, float],
) -> str:
    rows, (x, y, side) = int(matrix[i, j]), box
    strength = "diagonal" if i == j else f"h{int(np.ceil(STRENGTHS * rows / most))}"
    tip = f"{names[i]} taken for {names[j]}" if i != j else f"{names[i]} recognised"
    rect = (
        f'<rect class="cell {strength}" x="{x:.1f}" y="{y:.1f}" width="{side - 1:.1f}" '
        f'height="{side - 1:.1f}" '
        f'data-tip="{escape(tip)}\n{rows:,} row{"s" * (rows != 1)}"/>'
    )
    if rows == 0 or rows > 9999:
        return rect
    return rect + (
        f'<text class="count mid {strength}" x="{x + side / 2 - 0.5:.1f}" '
        f'y="{y + side / 2 + 3.5:.1f}">{rows}</text>'
    )


def confused_pairs(measured: Measured, names: Sequence[str], top: int = 10) -> dict[str, list[dict]]:
    """The most confused pairs by name, for each kind of retrieval."""
    return {
        kind: most_confused_pairs(confusion_matrix(match, names), names, top)
        for kind, match in measured.matches.items()
    }
