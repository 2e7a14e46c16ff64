"""`spaner runs`: what has been trained, as a table."""

from pathlib import Path
from typing import Annotated, Any

import typer

from spaner.cli import console


def runs(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders of runs and sweeps.", metavar="FOLDER...")
    ] = None,
    *,
    sort: Annotated[
        str, typer.Option(help="name, kind, data, method, shots, text, semantic, gap or date.")
    ] = "date",
    json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """List runs and sweeps: data, method, shots, accuracies in percent and when they were written.

    Example: `spaner runs --sort text`
    """
    from spaner.align.report.listing import listing

    places = (
        folders or [place for place in (Path("runs"), Path("sweeps")) if place.is_dir()] or [Path("runs")]
    )
    rows = [row | {"path": Path(row["path"])} for place in places for row in listing(place, sort)]
    if json:
        console.dump([row | {"path": str(row["path"])} for row in rows])
        return
    columns = ["text", "semantic", "gap", "shots", "date", "data", "method", "run"]
    if not rows:
        console.say(f"no run in {', '.join(map(str, places))}; make one with `spaner train`")
        return
    console.listing(columns, [_row(row) for row in rows])


def _row(row: dict[str, Any]) -> list[str]:
    scores = [console.percent(row[name]) for name in ("text", "semantic", "gap")]
    shots = "–" if row["shots"] is None else str(row["shots"])
    date = row["date"][:16].replace("T", " ")
    words = [console.shown(str(row[name] or "–")) for name in ("data", "method")]
    problem = f" ({console.shown(row['problem'])})" if "problem" in row else ""
    return [*scores, shots, date, *words, console.shown(str(row["path"])) + problem]
