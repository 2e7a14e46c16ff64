"""A panel: one pair of axes, made of strokes, boxes, marks and words at pixels, whoever draws them.

A figure says what it shows in its own units (`line`, `area`, `bar`, `mark`, `level`, `label`); the panel
turns that into parts that name a place and a role of `theme`. `svg` and `picture` draw the same parts, so
that a figure is described once and is the same on the page and in every file.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from spaner.align.report.theme import HANDS, colour

Point = tuple[float, float]


@dataclass(frozen=True)
class Stroke:
    """A line through points, or a filled outline; `pen` is a role of `PENS`."""

    points: tuple[Point, ...]
    pen: str
    colour: str = "ink"
    dash: int = 0

    def moved(self, x: float, y: float) -> Stroke:
        return replace(self, points=tuple((px + x, py + y) for px, py in self.points))


@dataclass(frozen=True)
class Box:
    """A filled rectangle with rounded corners: a cell of a matrix. Its tip shows itself to a pointer."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    tip: str = ""

    def moved(self, x: float, y: float) -> Box:
        return replace(self, x=self.x + x, y=self.y + y)


@dataclass(frozen=True)
class Mark:
    """The i-th shape at a point; `kind` is a role of `DOTS`."""

    x: float
    y: float
    shape: int
    colour: str
    kind: str = "point"
    tip: str = ""

    def moved(self, x: float, y: float) -> Mark:
        return replace(self, x=self.x + x, y=self.y + y)


@dataclass(frozen=True)
class Words:
    """Writing that starts, ends or is centred ("start", "end", "mid") at a point of its base line.

    `hand` is a role of `HANDS`; `colour` overrides its colour; `turn` is in degrees, clockwise.
    """

    x: float
    y: float
    words: str
    hand: str
    anchor: str = "start"
    turn: float = 0.0
    colour: str = ""

    def moved(self, x: float, y: float) -> Words:
        return replace(self, x=self.x + x, y=self.y + y)


Part = Stroke | Box | Mark | Words


@dataclass
class Panel:
    """One pair of axes. Data go from `x[0]`, `x[1]` (in log2 if `log`) and `y[0]`, `y[1]` to the frame."""

    title: str
    x: tuple[float, float] = (0, 1)
    y: tuple[float, float] = (0, 1)
    log: bool = False
    width: float = 420
    height: float = 300
    left: float = 46
    right: float = 14
    top: float = 46
    bottom: float = 44
    described: str = ""
    parts: list[Part] = field(default_factory=list)
    _taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def at(self, x: float, y: float) -> Point:
        """Where a value lies in the panel."""
        low, high, value = (*self.x, x)
        if self.log:
            low, high, value = math.log2(low), math.log2(high), math.log2(x)
        across = (value - low) / ((high - low) or 1)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return (
            round(self.left + across * (self.width - self.left - self.right), 1),
            round(self.height - self.bottom - up * (self.height - self.top - self.bottom), 1),
        )

    def axes(
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
            self.parts.append(Stroke(((self.left, y), (end, y)), "grid"))
            self.write(self.left - 7, y + 4, label, "tick", "end")
        for value, label in xs:
            x = self.at(value, self.y[0])[0]
            self.parts.append(Stroke(((x, base), (x, base + 4)), "grid"))
            self.write(x, base + 17, label, "tick", "mid")
        self.write((self.left + end) / 2, self.height - 8, x_title, "tick", "mid")
        self.write(min(self.left, 8), self.top - 12, y_title, "tick")

    def write(
        self,
        x: float,
        y: float,
        words: str,
        hand: str,
        anchor: str = "start",
        turn: float = 0,
        ink: str = "",
    ) -> None:
        """Words at a pixel of the panel."""
        if words:
            self.parts.append(Words(x, y, words, hand, anchor, turn, ink))

    def line(self, points: Iterable[Point], index: int, pen: str = "line", *, ink: str = "") -> None:
        """A line in the i-th colour and dash (or of the colour `ink`); through nothing it is left out."""
        places = tuple(self.at(x, y) for x, y in points)
        if places:
            self.parts.append(Stroke(places, pen, ink or colour(index), index))

    def area(self, edge: Iterable[Point], index: int) -> None:
        """What the edge goes around, filled."""
        self.parts.append(Stroke(tuple(self.at(x, y) for x, y in edge), "area", colour(index)))

    def bar(self, start: Point, end: Point, index: int, pen: str = "bar") -> None:
        """How sure a value is: a straight line between two data points, never dashed."""
        self.parts.append(Stroke((self.at(*start), self.at(*end)), pen, colour(index)))

    def mark(
        self,
        x: float,
        y: float,
        index: int,
        tip: str,
        *,
        kind: str = "point",
        shape: int | None = None,
        ink: str = "",
    ) -> None:
        """A point to hover and to focus; `shape` and `ink` where they are not the i-th."""
        form = index if shape is None else shape
        self.parts.append(Mark(*self.at(x, y), form, ink or colour(index), kind, tip))

    def level(self, value: float, words: str, beside: Iterable[float] = ()) -> None:
        """A dashed line across, its words at the right end, away from the values that end there."""
        left, right = self.at(self.x[0], value), (self.width - self.right, self.at(self.x[1], value)[1])
        self.parts.append(Stroke((left, right), "level"))
        near = [v for v in beside if v != value]
        above = sum(v > value for v in near) * 2 < len(near) if near else value < sum(self.y) / 2
        self.write(right[0], right[1] + (-6 if above else 15), words, "note", "end")

    def upright(self, value: float) -> None:
        """A dashed line from bottom to top at a value of x."""
        self.parts.append(Stroke((self.at(value, self.y[0]), self.at(value, self.y[1])), "level"))

    def label(
        self,
        x: float,
        y: float,
        words: str,
        hand: str,
        offsets: Sequence[tuple[float, float, str]],
        ink: str = "",
    ) -> bool:
        """Words near a data point, at the first of (dx, dy, anchor) where it covers nothing.

        Returns:
            Whether there was such a place; without one nothing is written.
        """
        px, py = self.at(x, y)
        size = HANDS[hand].size
        for dx, dy, anchor in offsets:
            box = _box(px + dx, py + dy, words, size, anchor)
            if self._is_free(box):
                self._taken.append(box)
                self.write(px + dx, py + dy, words, hand, anchor, ink=ink)
                return True
        return False

    def keep_free(self, x: float, y: float, radius: float) -> None:
        """No label may cover what is drawn at a data point."""
        px, py = self.at(x, y)
        self._taken.append((px - radius, py - radius, px + radius, py + radius))

    def _is_free(self, box: tuple[float, float, float, float]) -> bool:
        inside = box[0] >= 0 and box[2] <= self.width and box[1] >= self.top - 12 and box[3] <= self.height
        return inside and not any(_meet(box, other) for other in self._taken)

    def all_parts(self) -> list[Part]:
        """The parts with the title before them."""
        title = shortened(self.title, self.width - 16, HANDS["title"].size * 1.05)
        return [*([Words(min(self.left, 8), 15, title, "title")] if title else []), *self.parts]


def _box(x: float, y: float, words: str, size: float, anchor: str) -> tuple[float, float, float, float]:
    wide = width_of(words, size)
    start = x - {"start": 0, "mid": wide / 2, "end": wide}[anchor]
    return (start, y - 0.85 * size, start + wide, y + 0.25 * size)


def _meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def width_of(words: str, size: float) -> float:
    """About how wide words of a letter size are, in any font: on the safe side."""
    return size * sum(_em(letter) for letter in words)


def _em(letter: str) -> float:
    if unicodedata.combining(letter):
        return 0.0
    if unicodedata.east_asian_width(letter) in "WF":
        return 1.0
    return 0.35 if letter in "iljtfrI.,:;|'! " else 0.85 if letter in "mwMW@%" else 0.63


def shortened(words: str, room: float, size: float) -> str:
    """The words, cut with "…" where they are wider than the room."""
    words = " ".join(words.split())
    if width_of(words, size) <= room:
        return words
    while words and width_of(words + "…", size) > room:
        words = words[:-1]
    return words.rstrip() + "…"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between two values, about that many."""
    raw = (high - low) / max(about, 1)
    if raw <= 0:
        return [low]
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def labelled(values: Iterable[float]) -> list[tuple[float, str]]:
    """Ticks with their labels, a true minus before negative ones."""
    return [(value, f"{value:g}".replace("-", "−")) for value in values]


def span(values: Iterable[float], margin: float = 0.08) -> tuple[float, float]:
    """From the smallest to the largest value with some air on both sides."""
    known = list(values)
    low, high = min(known), max(known)
    air = (high - low) * margin or abs(high) * margin or 1.0
    return low - air, high + air
