"""`spaner browse`: a local page to search an index with."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from spaner.cli import console
from spaner.cli.embed import DEVICE, MODEL, TOKENIZER, WEIGHTS, encoder_files
from spaner.cli.search import asker_of


def browse(
    index: Annotated[Path, typer.Argument(help="Index folder written by `spaner index`.")],
    *,
    run: Annotated[
        str | None, typer.Option(help="Where the run lies now.", show_default="where it lay")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8760,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    model: Annotated[list[str] | None, MODEL] = None,
    weights: Annotated[list[str] | None, WEIGHTS] = None,
    tokenizer: Annotated[Path | None, TOKENIZER] = None,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Search by typing, by dropping a picture or a sound, by clicking a result: a page on this machine alone.

    Example: `spaner browse index/digits`
    """
    from spaner.search.browse.answers import Answers
    from spaner.search.browse.server import serve
    from spaner.search.indexed import open_index

    opened = open_index(index)
    answers = Answers(
        opened, asker_of(opened, run, encoder_files(model, weights, tokenizer, device)), index.resolve().name
    )
    with serve(answers, port) as server:
        console.say(f"page: {server.url}  (control-C ends it)")
        if open_page:
            webbrowser.open(server.url)
        server.serve_forever()
