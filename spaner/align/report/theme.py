"""How every figure of spaner looks: colours safe for colour-blind readers, pens, letters and marks.

Colours are Okabe and Ito's, lightened for dark pages. The i-th thing of a figure has the i-th colour, and no
figure tells things apart by colour alone. A drawing names roles ("line", "tick"); what a role looks like is
said here once, for the page, for SVG files and for PNG and PDF.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

COLOURS = 10
STRENGTHS = 5
"""Steps of a heat map's colours, `h1` … `h5`; writing on them is `on1` … `on5`."""


@dataclass(frozen=True)
class Theme:
    """Colours of one page background; `ramp` goes from nothing to much, for heat maps, and starts at the
    page."""

    name: str
    page: str
    ink: str
    faint: str
    grid: str
    colours: tuple[str, ...]
    ramp: tuple[str, ...]

    @cached_property
    def named(self) -> dict[str, str]:
        """Every colour by the name that drawings and the style sheet use."""
        steps: dict[str, str] = {f"h{i}": self._strength(i / STRENGTHS) for i in range(1, STRENGTHS + 1)}
        tint = mixed(self.page, self.grid, 0.38)
        return {
            **{name: getattr(self, name) for name in ("page", "ink", "faint", "grid")},
            **{f"c{i}": value for i, value in enumerate(self.colours)},
            **steps,
            **{f"on{name[1:]}": self._readable_on(value) for name, value in steps.items()},
            "tint": tint,
            "h0": tint,
            "even": self.grid,
        }

    def _readable_on(self, ground: str) -> str:
        return max(self.ink, self.page, key=lambda ink: contrast(ink, ground))

    def _strength(self, share: float) -> str:
        place = share * (len(self.ramp) - 1)
        i = min(int(place), len(self.ramp) - 2)
        return mixed(self.ramp[i], self.ramp[i + 1], place - i)


def mixed(a: str, b: str, share: float) -> str:
    """A colour `share` of the way from `a` to `b`, all "#rrggbb"."""
    pairs = zip(_channels(a), _channels(b), strict=True)
    return "#" + "".join(f"{round(x + (y - x) * share):02x}" for x, y in pairs)


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb" (WCAG 2.2)."""
    parts = [channel / 255 for channel in _channels(colour)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _channels(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def contrast(a: str, b: str) -> float:
    """Of two colours (WCAG 2.2): 1 to 21."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#b8579a", "#b27d00")
LIGHT = Theme(
    "light",
    page="#ffffff",
    ink="#1f2328",
    faint="#5c646d",
    grid="#e3e6ea",
    colours=(*OKABE_ITO, "#3f9fd8", "#6b6ecf", "#8c564b", "#5f7d23", "#7d8590"),
    ramp=("#ffffff", "#fbd9b5", "#f0934e", "#c5480c", "#6e2203"),
)
LIGHTENED = ("#58b4ef", "#ff9147", "#2ec4a0", "#e58ec5", "#f0c93a")
DARK = Theme(
    "dark",
    page="#0d1117",
    ink="#e6edf3",
    faint="#9198a1",
    grid="#262c36",
    colours=(*LIGHTENED, "#a5d8ff", "#a9abff", "#d3a297", "#b4d66b", "#9aa4af"),
    ramp=("#0d1117", "#4a2410", "#a34a12", "#f08a3c", "#ffe3bf"),
)
THEMES = (LIGHT, DARK)


def colour(index: int) -> str:
    """The name of the i-th thing's colour, starting over after the last."""
    return f"c{index % COLOURS}"


@dataclass(frozen=True)
class Pen:
    """How a line or an area is drawn. Lengths are pixels; without a colour it is the thing's own."""

    width: float
    colour: str = ""
    opacity: float = 1.0
    dash: tuple[float, ...] = ()
    filled: bool = False
    round: bool = False


@dataclass(frozen=True)
class Letters:
    """How writing looks: `halo` is a rim in the page's colour, for writing on lines and dots."""

    size: float
    colour: str = "ink"
    bold: bool = False
    halo: float = 0.0


@dataclass(frozen=True)
class Dot:
    """How a mark looks: its radius, and the colour and width of its rim."""

    radius: float
    rim: str = ""
    width: float = 0.0
    opacity: float = 1.0


PENS = {
    "line": Pen(2),
    "grid": Pen(1, "grid"),
    "level": Pen(1.2, "faint", dash=(3, 4)),
    "band": Pen(7, opacity=0.32, round=True),
    "bar": Pen(1.6, opacity=0.75),
    "area": Pen(0, opacity=0.14, filled=True),
}
DASHES: tuple[tuple[float, ...], ...] = ((), (8, 3), (2.5, 2.5), (9, 2.5, 2.5, 2.5))
"""Of lines; the i-th thing has the i-th."""

HANDS = {
    "heading": Letters(15, bold=True),
    "title": Letters(13.5, bold=True),
    "tick": Letters(11.5, "faint"),
    "label": Letters(12.5),
    "strong": Letters(12.5, bold=True),
    "name": Letters(12.5, bold=True, halo=3.5),
    "note": Letters(11.5, "faint", halo=4),
    "count": Letters(10.5),
}
DOTS = {
    "point": Dot(4),
    "big": Dot(6, "page", 1.5),
    "dot": Dot(4, opacity=0.62),
    "ringed": Dot(6.5, "ink", 1.6),
    "ghost": Dot(4, opacity=0),  # shows itself to a pointer alone
}
Shape = tuple[tuple[float, float], ...]
SHAPES: tuple[Shape, ...] = (
    (),  # a circle
    ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    ((0, -1.25), (1.25, 1), (-1.25, 1)),
    ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    ((0, 1.25), (1.25, -1), (-1.25, -1)),
    (
        *((-0.42, -1.25), (0.42, -1.25), (0.42, -0.42), (1.25, -0.42), (1.25, 0.42), (0.42, 0.42)),
        *((0.42, 1.25), (-0.42, 1.25), (-0.42, 0.42), (-1.25, 0.42), (-1.25, -0.42), (-0.42, -0.42)),
    ),
    ((-1.1, -1.2), (1.1, -1.2), (-1.1, 1.2), (1.1, 1.2)),  # an hourglass
    (
        *((0, -0.5), (0.6, -1.15), (1.15, -0.6), (0.5, 0), (1.15, 0.6), (0.6, 1.15)),
        *((0, 0.5), (-0.6, 1.15), (-1.15, 0.6), (-0.5, 0), (-1.15, -0.6), (-0.6, -1.15)),
    ),
)
"""Outlines of marks for a radius of one; the i-th thing has the i-th."""


def style(theme: Theme | None = None) -> str:
    """The rules for drawings as CSS: colours as variables of the page, or those of one theme."""
    rules = [
        *(f"svg .{name} {{ color: var(--{name}); }}" for name in LIGHT.named),
        "svg .own { fill: currentColor; }",
        *(_pen_rule(name, pen) for name, pen in PENS.items()),
        *(f"svg .d{i} {{ stroke-dasharray: {_listed(dash)}; }}" for i, dash in enumerate(DASHES) if dash),
        *(_letters_rule(name, hand) for name, hand in HANDS.items()),
        *(_dot_rule(name, dot) for name, dot in DOTS.items()),
        "svg .mid { text-anchor: middle; } svg .end { text-anchor: end; }",
    ]
    text = "\n".join(rules)
    return text if theme is None else re.sub(r"var\(--(\w+)\)", lambda found: theme.named[found[1]], text)


def _pen_rule(name: str, pen: Pen) -> str:
    if pen.filled:
        return f"svg .{name} {{ fill: currentColor; fill-opacity: {pen.opacity}; }}"
    paint = f"var(--{pen.colour})" if pen.colour else "currentColor"
    dash = f" stroke-dasharray: {_listed(pen.dash)};" if pen.dash else ""
    end = " stroke-linecap: round;" if pen.round else ""
    return (
        f"svg .{name} {{ stroke: {paint}; stroke-width: {pen.width}; stroke-opacity: {pen.opacity}; "
        f"fill: none; stroke-linejoin: round;{dash}{end} }}"
    )


def _letters_rule(name: str, hand: Letters) -> str:
    weight = " font-weight: 650;" if hand.bold else ""
    halo = (
        f" paint-order: stroke; stroke: var(--page); stroke-width: {hand.halo}px; stroke-linejoin: round;"
        if hand.halo
        else ""
    )
    return (
        f"svg .{name} {{ font-size: {hand.size}px;{weight}{halo} }} svg .{name}:not(.own) {{ fill: "
        f"var(--{hand.colour}); }}"
    )


def _dot_rule(name: str, dot: Dot) -> str:
    rim = f" stroke: var(--{dot.rim}); stroke-width: {dot.width};" if dot.rim else ""
    return f"svg .{name} {{ fill: currentColor; opacity: {dot.opacity};{rim} }}"


def _listed(lengths: tuple[float, ...]) -> str:
    return " ".join(f"{length:g}" for length in lengths)
