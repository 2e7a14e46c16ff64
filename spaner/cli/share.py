"""`spaner push` and `spaner pull`: a run to the hub and back."""

from pathlib import Path
from typing import Annotated

import typer

from spaner.cli import console


def push(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    name: Annotated[str, typer.Argument(help="ORG/NAME on the hub.", metavar="ORG/NAME")],
    *,
    private: Annotated[bool, typer.Option(help="Make a new repository private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be sent, card and all.")
    ] = False,
) -> None:
    """Send a run to the hub: safetensors, settings, result, and a model card written from the result.

    Example: `spaner push runs/digits ORG/digits --dry-run`
    """
    from spaner.search.share import hub

    upload = hub.prepare(run, name)
    rows = [[file, console.size(len(data))] for file, data in upload.files.items()]
    console.table(["file", "size"], rows)
    if dry_run:
        console.say("\n" + upload.files["README.md"].decode())
        console.say(f"would go to {name} (dry run: nothing sent)")
        return
    console.say(f"pushed: {hub.push(upload, private=private)}")
    console.next_step(f"spaner pull {name}")


def pull(
    name: Annotated[str, typer.Argument(help="ORG/NAME, or ORG/NAME@REVISION.", metavar="ORG/NAME")],
    *,
    out: Annotated[
        Path | None, console.out_option("Run folder to make.", "--out", "-o", show_default="runs/NAME")
    ] = None,
) -> None:
    """Fetch a run from the hub and check its hashes; nothing in it is executed.

    Example: `spaner pull ORG/digits`
    """
    from spaner.search.share import hub

    folder = hub.pull(name.removeprefix("hf:"), out)
    console.say(f"run: {folder}")
    console.next_step(f"spaner index --run {folder} photos/")
