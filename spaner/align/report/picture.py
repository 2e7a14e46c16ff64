"""Drawings as PNG and PDF, by matplotlib: the parts of a sheet, each at its pixel.

matplotlib is imported when the first figure is drawn. Nothing needs a display, and the user's own matplotlib
settings neither count nor change.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spaner.align.report.panel import Box, Mark, Part, Stroke, Words
from spaner.align.report.theme import DASHES, DOTS, HANDS, PENS, SHAPES, Theme

DPI, SHARPER = 96, 2
POINT = 72 / DPI
"""Of matplotlib, in pixels of a drawing; a picture has `SHARPER` dots for each of these."""

KINDS = ("text.", "path.", "font.", "figure.", "savefig.", "patch.", "lines.", "pdf.", "agg.")
"""Settings that could change a picture."""

FALLBACK = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
)
"""Fonts for letters that DejaVu, which comes with matplotlib, lacks; used where they are installed."""


def write(width: float, height: float, parts: Sequence[Part], theme: Theme, files: Sequence[Path]) -> None:
    """Draw the parts on a page of the theme, into every file by its suffix. The same input gives the same
    bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure  # not pyplot: no window, no global figure list
    from matplotlib.transforms import Affine2D

    with mpl.rc_context(_settings()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # drawn as a box, as on screen
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=theme.page)
        # straight onto the figure: axes would clip each part at the page's own edge
        place = Affine2D().scale(1 / width, -1 / height).translate(0, 1) + figure.transFigure
        for i, part in enumerate(parts):
            artist = _artist(part, theme)
            artist.set(transform=place, zorder=i)
            figure.add_artist(artist)
        for file in files:
            nothing = {"Software": None} if file.suffix == ".png" else {"CreationDate": None}
            figure.savefig(file, dpi=SHARPER * DPI, metadata=nothing)


def _settings() -> dict[Any, Any]:
    from matplotlib import font_manager, rcParamsDefault

    there = set(font_manager.get_font_names())
    return {
        **{name: value for name, value in rcParamsDefault.items() if name.startswith(KINDS)},
        "font.family": ["DejaVu Sans", *(name for name in FALLBACK if name in there)],
        "text.parse_math": False,  # a class may be called "$1" or "C$_2$"
        "pdf.fonttype": 42,
    }


def _artist(part: Part, theme: Theme) -> Any:
    if isinstance(part, Stroke):
        return _stroke(part, theme)
    if isinstance(part, Words):
        return _words(part, theme)
    if isinstance(part, Mark):
        return _mark(part, theme)
    return _box(part, theme)


def _stroke(part: Stroke, theme: Theme) -> Any:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Polygon

    pen = PENS[part.pen]
    paint = theme.named[pen.colour or part.colour]
    if pen.filled:
        return Polygon(part.points, facecolor=paint, alpha=pen.opacity, linewidth=0)
    dash = DASHES[part.dash % len(DASHES)] if part.pen == "line" else pen.dash
    return Line2D(
        *zip(*part.points, strict=True),
        color=paint,
        alpha=pen.opacity,
        linewidth=pen.width * POINT,
        # in units of the line's width
        linestyle=(0, tuple(length / pen.width for length in dash)) if dash else "-",
        solid_capstyle="round" if pen.round else "butt",
        solid_joinstyle="round",
    )


def _words(part: Words, theme: Theme) -> Any:
    from matplotlib.patheffects import withStroke
    from matplotlib.text import Text

    hand = HANDS[part.hand]
    halo = [withStroke(linewidth=hand.halo * POINT, foreground=theme.page)] if hand.halo else None
    return Text(
        part.x,
        part.y,
        " ".join(part.words.split()),
        color=theme.named[part.colour or hand.colour],
        fontsize=hand.size * 0.94 * POINT,  # DejaVu's letters are large
        fontweight="bold" if hand.bold else "normal",
        ha={"start": "left", "mid": "center", "end": "right"}[part.anchor],
        va="baseline",
        rotation=-part.turn,
        rotation_mode="anchor",
        path_effects=halo,
    )


def _mark(part: Mark, theme: Theme) -> Any:
    from matplotlib.patches import Circle, Polygon

    dot, outline = DOTS[part.kind], SHAPES[part.shape % len(SHAPES)]
    look: dict[str, Any] = {
        "facecolor": theme.named[part.colour],
        "alpha": dot.opacity,
        "edgecolor": theme.named[dot.rim] if dot.rim else "none",
        "linewidth": dot.width * POINT,
    }
    if not outline:
        return Circle((part.x, part.y), dot.radius, **look)
    return Polygon([(part.x + dot.radius * x, part.y + dot.radius * y) for x, y in outline], **look)


def _box(part: Box, theme: Theme) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((part.x, part.y), part.width, part.height, facecolor=theme.named[part.fill], linewidth=0)
