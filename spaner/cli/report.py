"""`spaner report`: one page about runs and sweeps."""

from pathlib import Path
from typing import Annotated

import typer

from spaner.cli import console
from spaner.cli.towers import DataRoot, Pixels, TextModel, TextWeights, Towers


def report(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run folders; none: the newest in runs/.", metavar="RUN...")
    ] = None,
    *,
    sweep: Annotated[list[Path] | None, typer.Option(help="Sweep folder; may be repeated.")] = None,
    check: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of `ablate prompt`, `scale` or `transfer`; may be repeated."),
    ] = None,
    shift: Annotated[
        list[Path] | None, typer.Option(help="Cache of shifted data to test the runs on; may be repeated.")
    ] = None,
    cache: Annotated[
        Path | None,
        console.cache_option("Cache to score on.", show_default="the one each run recorded"),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Table to score.", show_default="the one the run was tested on")
    ] = None,
    out: Annotated[Path, console.out_option("The page to write.", "--out", "-o")] = Path("report.html"),
    figures: Annotated[bool, typer.Option(help="Also write every figure as PNG and SVG.")] = True,
    text_model: TextModel = None,
    text_weights: TextWeights = None,
    pixels: Pixels = None,
    data_root: DataRoot = None,
    json: Annotated[bool, typer.Option("--json", help="Print the files written as JSON.")] = False,
) -> None:
    """See whether it aligned: one self-contained page of tables and figures, the paper's numbers beside ours.

    Example: `spaner report runs/digits-paper runs/digits-anchored --sweep sweeps/digits -o report.html`
    """
    from spaner.align.report.listing import newest
    from spaner.align.report.write import write

    if not runs and not sweep and not check:
        runs = [newest()]
        console.note(f"the newest run: {runs[0]}")
    files = write(
        runs or [],
        out,
        sweeps=sweep or [],
        checks=check or [],
        shifts=shift or [],
        cache=cache,
        split=split,
        figures=figures,
        progress=console.note,
        towers=Towers(text_model, text_weights, pixels, data_root),
    )
    if json:
        console.dump([str(file) for file in files])
        return
    console.say(f"report: {out}")
    console.say(f"numbers and figures: {out.with_name(f'{out.stem}_files')}, {len(files) - 1} files")
