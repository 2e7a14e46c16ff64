"""Tables as data: every number with its unit, its interval, its mark and where it came from.

    Number   a value, and the bounds of its 95 % interval where there is one
    Row      numbers by column, marked "ours", "published" or "not comparable" (and then why)
    Table    columns and rows; the page prints it, `numbers.csv` and `numbers.json` list it number by number

Nothing is measured or drawn here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from spaner.align.score.intervals import Interval

OURS, PUBLISHED, APART = "ours", "published", "not comparable"


@dataclass(frozen=True)
class Number:
    """A measured value. `low` and `high` bound its 95 % interval over test rows."""

    value: float
    low: float | None = None
    high: float | None = None

    @staticmethod
    def of(value: Interval | float | None) -> Number | None:
        """A number from an interval, a plain float, or nothing."""
        if isinstance(value, Interval):
            return Number(value.mean, value.low, value.high)
        return None if value is None else Number(float(value))


@dataclass(frozen=True)
class Column:
    """`unit`: "percent" (a fraction, printed in percent), "points" (a difference of such), "cosine",
    "count"."""

    key: str
    title: str
    unit: str


@dataclass(frozen=True)
class Row:
    """`origin` says where the numbers come from: split hash, encoder, seed, command; or the paper."""

    name: str
    mark: str
    numbers: dict[str, Number | None]
    because: str = ""
    origin: dict[str, Any] = field(default_factory=dict)
    anchor: str = ""


@dataclass(frozen=True)
class Table:
    """`groups` are blocks of rows under a heading of their own; a heading may be empty."""

    key: str
    title: str
    columns: list[Column]
    groups: list[tuple[str, list[Row]]]
    note: str = ""

    def flat(self) -> Iterator[dict[str, Any]]:
        """One mapping per number: the line of `numbers.csv`."""
        for heading, rows in self.groups:
            for row in rows:
                for column in self.columns:
                    if number := row.numbers.get(column.key):
                        yield {
                            "table": self.key,
                            "group": heading,
                            "row": row.name,
                            "mark": row.mark,
                            "because": row.because,
                            "number": column.key,
                            "unit": "fraction" if column.unit in ("percent", "points") else column.unit,
                            "value": number.value,
                            "low": number.low,
                            "high": number.high,
                            **row.origin,
                        }


def text(number: Number | None, unit: str) -> str:
    """As printed: percent with one digit, cosines with three, signed differences; a dash for nothing."""
    return "–" if number is None else _text(number.value, unit)


def bounds(number: Number | None, unit: str) -> str:
    """The interval as printed, or nothing."""
    if number is None or number.low is None or number.high is None:
        return ""
    return f"{_text(number.low, unit)} … {_text(number.high, unit)}"


def _text(value: float, unit: str) -> str:
    if unit == "percent":
        written = f"{100 * value:.1f}"
    elif unit == "points":
        written = f"{100 * value:+.1f}"
    elif unit == "count":
        written = f"{value:,.0f}"
    else:
        written = f"{value:.3f}"
    return {"+0.0": "0.0", "-0.0": "0.0"}.get(written, written).replace("-", "−")
