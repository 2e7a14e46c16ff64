"""The model of a table: every number with its unit, its mark and where it came from.

    Row           cells by column, marked "ours", "published" or "not comparable" (and then why)
    ReportTable   columns and rows in groups: printed on the page and the terminal, listed in `numbers.csv`

A number that does not exist is None and prints as a dash: a head that ignores the query has no semantic
score, one without a space no cosine. Nothing is measured or drawn here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spaner.align.score.intervals import Number

OURS, PUBLISHED, APART = "ours", "published", "not comparable"


Cell = Number | str | None
"""What stands in a table: a number, words, or nothing."""


@dataclass(frozen=True)
class Column:
    """`unit`: "percent" (a fraction, printed in percent), "points" (a difference of such), "cosine", "count",
    "amount" (one decimal) or "words"."""

    key: str
    title: str
    unit: str


@dataclass(frozen=True)
class Row:
    """`origin` says where the numbers come from: split hash, encoder, seed, command; or the paper."""

    name: str
    mark: str
    numbers: Mapping[str, Cell]
    because: str = ""
    origin: dict[str, Any] = field(default_factory=dict)
    anchor: str = ""


@dataclass(frozen=True)
class ReportTable:
    """`groups` are blocks of rows under a heading of their own; a heading may be empty.

    `first` is the title of the column of names.
    """

    key: str
    title: str
    columns: list[Column]
    groups: list[tuple[str, list[Row]]]
    note: str = ""
    first: str = "run"

    @property
    def rows(self) -> list[Row]:
        """The rows of all groups."""
        return [row for _, rows in self.groups for row in rows]

    def flat(self) -> Iterator[dict[str, Any]]:
        """One mapping per number: the line of `numbers.csv`. Words are left out."""
        for heading, rows in self.groups:
            for row in rows:
                for column in self.columns:
                    number = row.numbers.get(column.key)
                    if isinstance(number, Number):
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
                            "std": number.std,
                            "repeats": number.n,
                            **row.origin,
                        }


def averaged(rows: Sequence[Mapping[str, Cell]]) -> dict[str, Cell]:
    """Mean and deviation of every column over repetitions of one row of numbers."""
    return {key: Number.over(_value(row.get(key)) for row in rows) for key in rows[0]}


def plain(cell: Cell) -> float | str | None:
    """The bare value or words, as JSON holds them."""
    return cell.value if isinstance(cell, Number) else cell


def _value(cell: Cell) -> float | None:
    return cell.value if isinstance(cell, Number) else None


def text(cell: Cell, unit: str) -> str:
    """As printed: percent with one digit, cosines with three, signed differences; a dash for nothing."""
    if isinstance(cell, Number):
        return _text(cell.value, unit)
    return cell or "–"


def bounds(cell: Cell, unit: str) -> str:
    """How sure a number is, as printed: the interval, or "± deviation"; nothing where neither is known."""
    if not isinstance(cell, Number):
        return ""
    if cell.std is not None:
        return f"± {_text(cell.std, 'percent' if unit == 'points' else unit)}"
    if cell.low is None or cell.high is None:
        return ""
    return f"{_text(cell.low, unit)} … {_text(cell.high, unit)}"


def told(cell: Cell, unit: str) -> str:
    """A number with how sure it is, in a line."""
    return " ".join(filter(None, [text(cell, unit), bounds(cell, unit)]))


def _text(value: float, unit: str) -> str:
    if unit == "percent":
        written = f"{100 * value:.1f}"
    elif unit == "points":
        written = f"{100 * value:+.1f}"
    elif unit == "count":
        written = f"{value:,.0f}"
    elif unit == "amount":
        written = f"{value:,.1f}"
    else:
        written = f"{value:.3f}"
    return {"+0.0": "0.0", "-0.0": "0.0"}.get(written, written).replace("-", "−")
