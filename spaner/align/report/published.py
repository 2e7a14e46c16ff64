"""The paper's numbers as rows of a table, and why a measured row may not stand beside them.

Numbers and their source are data: `published.json` beside this file, accuracies as fractions. A run is
comparable with a published row when data, encoder, weights, shots and test rows are the paper's; which images
the paper drew is unknown, so a draw never makes a run incomparable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from spaner.align.report.table import APART, PUBLISHED, Row
from spaner.align.score.intervals import Number


@cache
def paper() -> dict[str, Any]:
    """`source`, and `benchmarks`: name -> `title`, `where`, protocol and `rows`."""
    return json.loads((files("spaner.align.report") / "published.json").read_text(encoding="utf-8"))


def benchmark(name: str) -> dict[str, Any]:
    """One published benchmark: "imagenet", "imagenet-esc-19" or "imagenet-esc-27"."""
    return paper()["benchmarks"][name]


def values(name: str, row: str) -> dict[str, float]:
    """The numbers of one published system; empty where the benchmark has no such row."""
    return next((each for each in benchmark(name)["rows"] if each["name"] == row), {})


def row(name: str, numbers: Mapping[str, float], where: str, because: str, *, apart: bool = True) -> Row:
    """A published row as it stands in a table: marked, with the reason and the paper as its origin."""
    cells = {key: Number(value) for key, value in numbers.items()}
    source = {"command": f"{paper()['source']}, {where}"}
    return Row(name, APART if because and apart else PUBLISHED, cells, because, source)


def group(
    name: str, columns: Sequence[str], because: str, *, where: str = "", apart: bool = True
) -> tuple[str, list[Row]]:
    """Heading and rows of a benchmark: every system that has a number for one of the columns.

    Args:
        because: why not to compare, as printed. apart: False where that holds for some of the runs only.
    """
    known = benchmark(name)
    where = where or known["where"]
    rows = [
        row(each["name"], {c: each[c] for c in columns if c in each}, where, because, apart=apart)
        for each in known["rows"]
        if any(c in each for c in columns)
    ]
    return f"{known['title']} · {where} of the paper", rows


def reasons(
    published: dict[str, Any], *, dataset: str, encoder: Any, shots: int | None, draw: int | None, rows: int
) -> list[str]:
    """Why numbers measured like this cannot be compared with a published benchmark; empty where they can.

    Args:
        published: what `benchmark` returns.
        dataset: what was tested. encoder: its `EncoderSpec`. rows: how many rows were tested.
        shots: rows per class that were trained on, None for all.
        draw: training rows in all, None for a frozen encoder, which trains on nothing.
    """
    found = []
    if dataset != published["dataset"]:
        found.append(f"other data ({dataset}, not {published['dataset']})")
    if encoder.synthetic:
        found.append("made-up embeddings or random weights")
    if encoder.name != published["encoder"]:
        found.append(f"another encoder ({encoder.name}, not {published['encoder']})")
    elif published["weights"] and encoder.weights != published["weights"]:
        found.append(f"other weights ({encoder.weights}, not {published['weights']})")
    if draw is not None and published["shots"] and shots != published["shots"]:
        trained = f"all {draw:,} rows" if shots is None else f"{shots} shots"
        found.append(f"trained on {trained}, not {published['shots']} shots")
    if rows != published["test_rows"]:
        found.append(f"{rows:,} test rows, not {published['test_rows']:,}")
    return found
