"""`spaner eval`: score a trained run on any cache made with the same encoder."""

from pathlib import Path
from typing import Annotated

import typer

from spaner.cli import console
from spaner.cli.embed import DEVICE
from spaner.cli.towers import DataRoot, Pixels, TextModel, TextWeights, Towers


def evaluate(
    *,
    run: Annotated[Path, typer.Option(help="Run folder written by `spaner train`.")],
    cache: Annotated[
        Path,
        console.cache_option("Cache to score on; its encoder must be the run's."),
    ],
    split: Annotated[
        str | None, typer.Option(help="Table to score.", show_default="image/test, else image/val")
    ] = None,
    text_model: TextModel = None,
    text_weights: TextWeights = None,
    pixels: Pixels = None,
    data_root: DataRoot = None,
    device: Annotated[str, DEVICE] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Score a trained run on a table of any cache made with the same encoder.

    Example: `spaner eval --run runs/digits-paper-1a2b3c4d --cache cache/digits --split image/test`
    """
    from spaner import cache as caches
    from spaner.align.train import run as checkpoint
    from spaner.align.train.fit import scored
    from spaner.cli.train import label, print_scores

    loaded = checkpoint.load(run)
    with console.progress() as progress:
        loaded.towers = Towers(text_model, text_weights, pixels, data_root, progress, device)
        with caches.open(cache) as opened:
            metrics = scored(loaded, opened, split, device)
    if json:
        console.dump(metrics)
    else:
        print_scores(metrics, f"{run} on {cache}", name=label(loaded.config))
