"""A panel of the page: axes, lines and marks as inline SVG, a few hundred bytes each.

Colours, dashes and fonts are classes that the page's style sheet defines (`c0` … `c9`, `d0` … `d3`), so a
chart follows light and dark by itself. Marks are `<use>` elements with their text in `data-tip`: the page's
script shows it on hover and on keyboard focus. The i-th thing has the i-th colour, shape and dash.

Charts for papers are made by `figures` and `maps`; this is for looking and pointing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

SHAPES = (
    '<circle r="{r}"/>',
    '<rect x="-{r}" y="-{r}" width="{d}" height="{d}"/>',
    '<path d="M0-{t}L{t} {r}H-{t}z"/>',
    '<path d="M0-{t}L{t} 0 0 {t}-{t} 0z"/>',
    '<path d="M0 {t}L{t}-{r}H-{t}z"/>',
    '<path d="M-{h}-{t}H{h}V-{h}H{t}V{h}H{h}V{t}H-{h}V{h}H-{t}V-{h}H-{h}z"/>',
)
SIZES = {"s": 2.3, "m": 4.0, "b": 6.5}
COLOURS, DASHES = 10, 4


def symbols() -> str:
    """Definitions of all mark shapes, once a page: s0 … b5."""
    made = []
    for size, r in SIZES.items():
        for i, shape in enumerate(SHAPES):
            drawn = shape.format(r=f"{r:g}", d=f"{2 * r:g}", t=f"{1.25 * r:g}", h=f"{0.42 * r:g}")
            made.append(f'<g id="{size}{i}">{drawn}</g>')
    return f'<svg width="0" height="0" aria-hidden="true" class="defs"><defs>{"".join(made)}</defs></svg>'


def colour(index: int) -> str:
    """The class of the i-th thing's colour."""
    return f"c{index % COLOURS}"


def shape(index: int, size: str = "m") -> str:
    """The id of the i-th thing's mark."""
    return f"{size}{index % len(SHAPES)}"


@dataclass
class Panel:
    """One pair of axes. Data go from `x[0]`, `x[1]` (in log2 if `log`) and `y[0]`, `y[1]` to the frame."""

    title: str
    x: tuple[float, float]
    y: tuple[float, float]
    log: bool = False
    width: float = 420
    height: float = 300
    left: float = 46
    right: float = 14
    top: float = 46
    bottom: float = 44
    parts: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a value lies in the drawing."""
        low, high, value = (*self.x, x)
        if self.log:
            low, high, value = math.log2(low), math.log2(high), math.log2(x)
        across = (value - low) / ((high - low) or 1)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return (
            round(self.left + across * (self.width - self.left - self.right), 1),
            round(self.height - self.bottom - up * (self.height - self.top - self.bottom), 1),
        )

    def grid(
        self,
        xs: Sequence[tuple[float, str]],
        ys: Sequence[tuple[float, str]],
        x_title: str = "",
        y_title: str = "",
    ) -> None:
        """Lines and labels at the given (value, label) of each axis, and what the axes measure."""
        base, end = self.at(self.x[0], self.y[0])[1], self.width - self.right
        for value, label in ys:
            y = self.at(self.x[0], value)[1]
            self.parts.append(f'<path class="grid" d="M{self.left:g} {y}H{end:g}"/>')
            self.write(self.left - 7, y + 4, label, "tick end")
        for value, label in xs:
            x = self.at(value, self.y[0])[0]
            self.parts.append(f'<path class="grid" d="M{x} {base}v4"/>')
            self.write(x, base + 17, label, "tick mid")
        self.write((self.left + end) / 2, self.height - 8, x_title, "axis mid")
        if y_title:
            self.write(self.left - 38, self.top - 12, y_title, "axis")

    def write(self, x: float, y: float, words: str, kind: str) -> None:
        """Text at a place of the drawing."""
        if words:
            self.parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(words)}</text>')

    def line(self, points: Iterable[tuple[float, float]], index: int, kind: str = "") -> None:
        """A line through data points in the i-th colour and dash; lines through nothing are left out."""
        places = [self.at(x, y) for x, y in points]
        if places:
            path = "M" + "L".join(f"{x:g} {y:g}" for x, y in places)
            style = f"line {colour(index)} d{index % DASHES} {kind}".strip()
            self.parts.append(f'<path class="{style}" d="{path}"/>')

    def mark(
        self, x: float, y: float, index: int, tip: str, *, size: str = "m", kind: str = "", look: int = -1
    ) -> None:
        """A point to hover and to focus; `look` is its shape where it is not the i-th."""
        (px, py), form = self.at(x, y), shape(index if look < 0 else look, size)
        style = f"{colour(index)} {kind}".strip()
        self.parts.append(
            f'<use href="#{form}" x="{px:g}" y="{py:g}" class="{style}" data-tip="{escape(tip)}"/>'
        )

    def svg(self, described: str) -> str:
        """The drawing."""
        head = f'<text x="{self.left - 38:g}" y="15" class="title">{escape(self.title)}</text>'
        return (
            f'<svg class="chart" viewBox="0 0 {self.width:g} {self.height:g}" role="group" '
            f'aria-label="{escape(described)}">{head if self.title else ""}{"".join(self.parts)}</svg>'
        )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between two values, about that many."""
    raw = (high - low) / max(about, 1)
    if raw <= 0:
        return [low]
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def span(values: Iterable[float], margin: float = 0.08) -> tuple[float, float]:
    """From the smallest to the largest value with some air on both sides."""
    known = list(values)
    low, high = min(known), max(known)
    air = (high - low) * margin or abs(high) * margin or 1.0
    return low - air, high + air


def legend(names: Sequence[str], *, dashes: bool = True) -> str:
    """What colour, shape and dash mean, below a row of panels."""
    items = []
    for i, name in enumerate(names):
        line = f'<path class="line {colour(i)} d{i % DASHES}" d="M1 8H31"/>' if dashes else ""
        key = f'<svg viewBox="0 0 32 16" aria-hidden="true">{line}<use href="#{shape(i)}" x="16" y="8" '
        items.append(f'<li>{key}class="{colour(i)}"/></svg>{escape(name)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'
