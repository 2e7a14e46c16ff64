"""A report: runs and sweeps in, one page that people like to look at, its figures and its numbers out.

    write([Path("runs/a"), Path("runs/b")], Path("report.html"), sweeps=[Path("sweeps/c")])

Each run finds its cache by the way recorded in its folder, and is measured anew on the rows it was tested on;
tables put the paper's numbers beside ours and say where the two must not be compared. The page asks the
network for nothing. What is measured is in `measured`, what is said in `sections`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from spaner.align.report import checks as report_checks
from spaner.align.report import origin
from spaner.align.report import sweep as report_sweep
from spaner.align.report import tables as report_tables
from spaner.align.report.exhibits import exhibits, files
from spaner.align.report.measured import measure
from spaner.align.report.numbers import write_numbers
from spaner.align.report.page import page
from spaner.align.report.sections import head, sections
from spaner.align.report.tables import shift_table
from spaner.cache.files import write_result
from spaner.errors import RunError


def write(
    runs: Sequence[Path],
    out: Path,
    *,
    sweeps: Sequence[Path] = (),
    checks: Sequence[Path] = (),
    shifts: Sequence[Path] = (),
    cache: Path | None = None,
    split: str | None = None,
    figures: bool = True,
    progress: Callable[[str], None] | None = None,
    towers: Any = None,
) -> list[Path]:
    """Measure, and write the page and the folder beside it (`report.html` and `report_files/`).

    Args:
        runs: run folders. sweeps: folders that `spaner sweep` wrote.
        checks: folders that `spaner ablate prompt`, `spaner scale` and `spaner transfer` wrote.
        shifts: caches of other data made with the runs' encoder, for domain shift.
        cache: where the runs are scored instead of the cache that each recorded; hashes must agree.
        split: the table to score instead of the recorded one.
        figures: also write PNG and SVG files.
        progress: told what is being done.
        towers: for runs that need an encoder's towers to score, see `Run`.

    Returns:
        The files written, the page first.

    Raises:
        RunError, Mismatch, CacheError, DatasetError: one line that begins with the run or sweep it is about.
    """
    if not runs and not sweeps and not checks:
        raise RunError("report: found no run and no sweep; expected one or more; type `spaner report RUN`")
    tell = progress or (lambda _: None)
    found, checked = report_sweep.read(sweeps), report_checks.read(checks)
    tell("scoring the runs")
    entries = measure(runs, cache, split, towers)
    tables = report_tables.tables(entries) if entries else []
    if shifts and entries:
        tables.append(shift_table(entries, shifts))
    tables += [report_sweep.table(sweep) for sweep in found]
    tables += [table for check in checked for table in check.tables]
    apart = origin.apart(entries)
    folder = out.with_name(f"{out.stem}_files")
    written = write_numbers(folder, tables, entries, found, apart)
    tell("drawing the figures")
    shown = exhibits(entries, found, checked)
    written += files(shown, folder) if figures else []
    parts = list(sections(entries, tables, found, checked, apart, shown, folder.name if figures else ""))
    text = page(_title(entries, found), head(entries, apart), parts, _footer(folder.name, figures=figures))
    write_result(out, text)
    return [out, *written]


def _title(entries: Sequence, found: Sequence) -> str:
    datasets = list(dict.fromkeys(entry.bench.dataset for entry in entries))
    datasets = datasets or list(dict.fromkeys(s.finished[0]["metrics"]["tested"]["dataset"] for s in found))
    return f"Did it align? {', '.join(datasets)}".removesuffix(" ")


def _footer(beside: str, *, figures: bool) -> str:
    beside = escape(beside)
    drawn = f", and every figure as PNG and SVG in {beside}/" if figures else ""
    return (
        f'<p>Beside this page: <a href="{beside}/numbers.csv">numbers.csv</a>, '
        f'<a href="{beside}/numbers.json">numbers.json</a>{drawn}. '
        "Hover a table row for the origin of its numbers. Made by spaner.</p>"
    )
