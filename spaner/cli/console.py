"""What the user sees: progress, tables and the one line of an error.

Results go to standard output, everything else to standard error, so that `--json` output can be piped. On a
terminal long work shows a bar with rows per second and time left; elsewhere a plain line every few seconds.
"""

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from spaner.errors import RecipeError

#: Where nobody watches, tables keep their full width instead of rich's 80 columns.
PLAIN_WIDTH = None if sys.stdout.isatty() else 160

out = Console(highlight=False, width=PLAIN_WIDTH)
err = Console(stderr=True, highlight=False)

PLAIN_LINE_SECONDS = 5.0


@contextmanager
def progress(unit: str = "rows") -> "Iterator[_Bars | PlainLines]":
    """A progress callback: bars on a terminal, plain lines elsewhere."""
    if not err.is_terminal:
        yield PlainLines(unit)
        return
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=err) as bars:
        yield _Bars(bars, unit)


class _Bars:
    """One bar per kind of work."""

    def __init__(self, bars: Bars, unit: str) -> None:
        self.bars, self.unit = bars, unit
        self.tasks: dict[str, TaskID] = {}
        self.started: dict[str, tuple[float, int]] = {}

    def __call__(self, done: int, total: int, what: str) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(what, total=total, rate=f"… {self.unit}/s")
            self.started[what] = (time.monotonic(), done)
        began, at = self.started[what]
        seconds = time.monotonic() - began
        rate = f"{(done - at) / seconds:,.0f}" if seconds > 0.2 else "…"
        self.bars.update(self.tasks[what], completed=done, total=total, rate=f"{rate} {self.unit}/s")

    def of(self, unit: str) -> "_Bars":
        """The same bars for work that is counted in something else."""
        return _Bars(self.bars, unit)


class PlainLines:
    """`image/train 512/16,000 rows, 31 rows/s, 8:20 left`, every few seconds and once at the end."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.started: dict[str, tuple[float, int]] = {}
        self.last: dict[str, float] = {}

    def of(self, unit: str) -> "PlainLines":
        """Lines for work that is counted in something else."""
        return PlainLines(unit)

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        began, at = self.started.setdefault(what, (now, done))
        if done < total and now - self.last.get(what, began) < PLAIN_LINE_SECONDS:
            return
        if done >= total and self.last.get(what) == float("inf"):
            return
        self.last[what] = float("inf") if done >= total else now
        line = f"{what} {done:,}/{total:,} {self.unit}"
        if now > began and done > at:
            rate = (done - at) / (now - began)
            line += f", {rate:,.1f} {self.unit}/s"
            line += (
                f", {_clock((total - done) / rate)} left"
                if done < total
                else f", {_clock(now - began)} in all"
            )
        err.print(line, markup=False)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def place(text: str | Path) -> Path:
    """What was typed where a cache is asked for: a path, or an address such as s3://bucket/cache."""
    if ":/" not in str(text):
        return Path(text)
    from spaner.cache.address import place as found

    return found(text)


def cache_option(text: str, **more: Any) -> Any:
    """An option that takes one cache, or several."""
    return typer.Option(help=text, parser=place, metavar="PATH", **more)


def here(text: str | Path) -> Path:
    """What was typed where anything but a cache is to be written: a path of this machine.

    Raises:
        RecipeError: it is an address; the folder "s3:" would come into being.
    """
    if "://" in str(found := place(text)):
        raise RecipeError(
            f"{found} is an address, where only caches lie; expected a folder of this machine; type another"
        )
    return found


def out_option(text: str, *names: str, **more: Any) -> Any:
    """An option that takes where results go."""
    return typer.Option(*names, help=text, parser=here, metavar="PATH", **more)


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as percent, a missing one as a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def number(value: float | None, digits: int = 3) -> str:
    """A cosine or margin, a missing one as a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def size(count: int) -> str:
    """Bytes as a person reads them: 512 B, 33 kB, 1.3 MB, 2.6 GB."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, int(math.log10(max(count, 1))) // 3)
    return f"{count / 1000**power:.3g} {units[power]}"


def shown(text: str) -> str:
    """A name from a disk or a stranger as a terminal may see it: control characters are spelled out."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text
    )


def table(columns: list[str], rows: list[list[str]], title: str | None = None) -> None:
    """Print a table whose first column is words and whose other columns are numbers, right-aligned."""
    grid = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for i, name in enumerate(columns):
        grid.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        grid.add_row(*row)
    out.print(grid)


def listing(columns: list[str], rows: list[list[str]]) -> None:
    """Print a table whose first column is a number and whose other columns are words; nothing in them is
    markup, and the last is never cut."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns) - 1)]
    for row in [columns, *rows]:
        words = [text.ljust(width) for text, width in zip(row, widths, strict=False)]
        say("  ".join([*words, row[-1]]).rstrip())


def say(line: str) -> None:
    """A line of the result."""
    out.print(line, markup=False, soft_wrap=True)


def note(line: str) -> None:
    """A line beside the result: on standard error."""
    err.print(line, markup=False, soft_wrap=True)


def next_step(command: str) -> None:
    """What to type next."""
    note(f"next: {command}")


def dump(value: Any) -> None:
    """Machine-readable output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
