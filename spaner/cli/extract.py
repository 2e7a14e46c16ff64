"""`spaner extract`: frozen encoders over all splits, once, into a verified cache."""

from typing import Annotated, Any

import typer

from spaner.cli import console
from spaner.cli.options import with_options
from spaner.extract.config import ExtractConfig


@with_options(ExtractConfig)
def extract(
    *,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    **options: Any,
) -> None:
    """Run the frozen encoders over all splits, once, into a verified cache.

    Run the same command again to continue after an interruption; finished rows are not computed again.

    Examples: `spaner extract --dataset digits` · `spaner extract --dataset folder:photos --modality image`
    """
    from spaner.extract.extract import extract as run

    with console.progress() as progress:
        summary = run(ExtractConfig(**options), progress=progress, beforehand=print_sizes)
    if json:
        console.dump(summary.to_json())
        return
    print_summary(summary)


def print_sizes(tables: list[Any]) -> None:
    """Rows, bytes a row and all bytes, before tokens are written."""
    for table in tables:
        each = table.bytes // max(1, table.rows)
        note = f"{table.name}: {table.rows:,} rows of {each:,} bytes, {console.size(table.bytes)} in all"
        console.note(note)


def print_summary(summary: Any) -> None:
    """Rows, failures and speed of each table, then where they are and what to type next."""
    columns = ["table", "rows", "failed", "kept", "size", "rows/s", "purity"]
    console.table(columns, [_row(table) for table in summary.tables])
    for table in summary.tables:
        for row, reason in list(table.failures.items())[:5]:
            console.note(f"{table.name}: {row}: {reason}")
    for line in summary.notes:
        console.note(line)
    for kind, (count, first) in summary.left_out.items():
        console.note(f"left out, {kind}: {count:,} (first {first})")
    console.say(f"cache: {summary.path}" + (" (dry run: nothing written)" if summary.dry_run else ""))
    if not summary.complete:
        console.note("not finished: other parts have still to write; whoever is last seals")
    elif not summary.dry_run:
        console.next_step(f"spaner train --cache {summary.path}")


def _row(table: Any) -> list[str]:
    rate = f"{table.rows_per_second:,.0f}" if table.rows_per_second else "–"
    purity = f"{table.purity:.0e}" if table.purity is not None else "–"
    return [
        table.name,
        f"{table.rows:,}",
        f"{len(table.failures):,}",
        f"{table.resumed:,}",
        console.size(table.bytes),
        rate,
        purity,
    ]
