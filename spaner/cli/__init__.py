"""The command `spaner`: parse, call one function, print.

Commands import what they need when they run, so `spaner --help` needs neither torch nor an encoder.
"""

import signal
import sys
from typing import Annotated

import typer

from spaner.cli import (
    ablate,
    browse,
    cache,
    compare,
    console,
    demo,
    doctor,
    embed,
    export,
    extend,
    extract,
    index,
    models,
    options,
    report,
    reproduce,
    runs,
    scale,
    search,
    share,
    sweep,
    train,
    transfer,
)
from spaner.cli import eval as evaluate
from spaner.errors import SpanerError

app = typer.Typer(
    name="spaner",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help=(
        "Align frozen encoders of different modalities through one shared prompt.\n\n`extract` runs the "
        "frozen encoders once into a verified cache; `train` and `sweep` learn from the cache alone. "
        "Start with `spaner demo`: it needs no data and no network."
    ),
)

app.command("demo")(demo.demo)
app.command("extract")(extract.extract)
app.command("train", cls=options.MethodCommand)(train.train)
app.command("sweep", cls=options.SweepCommand)(sweep.sweep)
app.command("compare")(compare.compare)
app.command("eval")(evaluate.evaluate)
app.command("transfer")(transfer.transfer)
app.command("scale", cls=options.MethodCommand)(scale.scale)
app.command("extend")(extend.extend)
app.command("embed")(embed.embed)
app.command("index")(index.index)
app.command("search")(search.search)
app.command("browse")(browse.browse)
app.command("push")(share.push)
app.command("pull")(share.pull)
app.command("export")(export.export)
app.command("runs")(runs.runs)
app.command("report")(report.report)
app.command("reproduce")(reproduce.reproduce)
app.command("models")(models.models)
app.command("doctor")(doctor.doctor)
app.add_typer(ablate.app, name="ablate")
app.add_typer(cache.app, name="cache")


@app.callback(invoke_without_command=True)
def version(
    *, show: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False
) -> None:
    if show:
        from spaner import __version__

        console.say(f"spaner {__version__}")
        raise typer.Exit


STOPPED = 130
"""Exit status after control-C, as shells have it."""


def _stop(*_: object) -> None:
    """Stop as for control-C, also where SIGINT is ignored: in the background of a script."""
    raise KeyboardInterrupt


def main() -> None:
    """Run the command; a user's mistake ends in one line and status 1."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except SpanerError as error:
        console.note(f"error: {error}")
        sys.exit(1)
    except SystemExit as status:  # typer has made this of a KeyboardInterrupt
        if status.code == STOPPED:
            console.note("stopped; finished work is kept, the same command continues")
        raise
