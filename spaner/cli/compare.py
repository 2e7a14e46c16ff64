"""`spaner compare`: every method on the same rows, one table and its figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spaner.cli import console
from spaner.cli.options import On, parse
from spaner.cli.sweep import refuse_failed
from spaner.cli.towers import DataRoot, Pixels, TextModel, TextWeights, Towers

if TYPE_CHECKING:
    from spaner.align.train.compare import Comparison

COLUMNS = ["method", "shots", "text", "semantic", "gap", "cosine", "margin", "ECE", "shift", "H"]
COLUMNS += ["parameters", "seconds", "chosen by"]
SAID = {
    "ece_fitted": "ECE fitted",
    "image_to_caption": "image, caption",
    "caption_to_image": "caption, image",
    "negation": "negation",
}
"""Columns of caches with validation rows (ECE at their temperature), captions (recall@1), negated forms."""


def compare(
    *,
    cache: Annotated[
        list[Path] | None,
        console.cache_option("Cache to compare on; may be repeated.", show_default="cache/imagenet16"),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods, recipes of SPANER (paper, anchored) and recipe files, with commas.",
            show_default="every method, and both recipes",
        ),
    ] = None,
    shots: Annotated[str, typer.Option(help="Training rows a class.", metavar="a,b,…")] = "1,2,4,8,16",
    seeds: Annotated[
        str, typer.Option(help="Seeds of draw and training, which move together.", metavar="a,b,…")
    ] = "1,2,3",
    shift: Annotated[
        list[Path] | None,
        typer.Option(help="Cache of shifted data with the same classes to test on too; may be repeated."),
    ] = None,
    base_to_new: Annotated[
        bool,
        typer.Option(
            "--base-to-new",
            help="Fit on the first half of the classes too and ask about the second: H, the harmonic mean.",
        ),
    ] = False,
    select: Annotated[
        str,
        typer.Option(
            help="Who chooses what has a grid: validation rows, folds of the training rows, or the authors.",
            metavar="val|folds|published",
        ),
    ] = "val",
    batch_size: Annotated[
        int | None, typer.Option(help="Pairs per step of SPANER's recipes.", show_default="the recipe's")
    ] = None,
    logit_scale: Annotated[
        float | None, typer.Option(help="1 / temperature of every method.", show_default="the encoder's")
    ] = None,
    out: Annotated[Path | None, console.out_option("Folder.", show_default="compare/<cache>")] = None,
    workers: Annotated[int | None, typer.Option(help="Cells at once.", show_default="one per core")] = None,
    on: On = None,
    text_model: TextModel = None,
    text_weights: TextWeights = None,
    pixels: Pixels = None,
    data_root: DataRoot = None,
    json: Annotated[bool, typer.Option("--json", help="Print all rows as JSON.")] = False,
) -> None:
    """Fit and score every method on the same rows, over shots and seeds; finished cells are not run again.

    Example: `spaner compare --cache cache/digits --shots 1,4,16 --seeds 1,2`
    """
    from spaner.align.train import compare as comparing

    numbers = tuple[int, ...]
    with console.progress("cells") as progress:
        found = comparing.compare(
            cache or [Path("cache/imagenet16")],
            None if methods is None else [name.strip() for name in methods.split(",") if name.strip()],
            parse(numbers, shots, "--shots"),
            parse(numbers, seeds, "--seeds"),
            out,
            shift=shift or [],
            base_to_new=base_to_new,
            base={"select": select} | ({} if logit_scale is None else {"logit_scale": logit_scale}),
            recipe_base={} if batch_size is None else {"batch_size": batch_size},
            workers=workers,
            on=on,
            progress=progress,
            towers=Towers(text_model, text_weights, pixels, data_root),
        )
    several = len(found) > 1
    blocks = [*found, comparing.average(found, out or Path("compare"))] if several else found
    if json:
        console.dump([{"data": block.name, "rows": block.told} for block in blocks])
    else:
        print_comparison(blocks)
    for block in found:
        refuse_failed(block.results, block.folder)


def print_comparison(blocks: Sequence["Comparison"]) -> None:
    """One table, a block of rows for each data set and the average, and where files and figures lie."""
    from spaner.align.report.comparison import draw
    from spaner.align.train.compare import refused

    said = [key for key in SAID if any(row.get(key) for block in blocks for row in block.rows)]
    columns, lines = [*COLUMNS, *(SAID[key] for key in said)], []
    for block in blocks:
        lines += [[block.name, *[""] * (len(columns) - 1)]] if len(blocks) > 1 else []
        lines += [_line(row, said) for row in block.rows]
    console.table(columns, lines)
    for line in [reason for block in blocks for reason in refused(block)]:
        console.say(f"no number: {line}")
    for block in blocks:
        figures = [file.name for file in draw(block.rows, block.folder) if file.suffix == ".png"]
        light = [name for name in figures if not name.endswith("-dark.png")]
        console.say(f"{block.name}: {block.folder}/compare.json, .csv" + "".join(f", {n}" for n in light))


def _line(row: dict[str, Any], said: Sequence[str]) -> list[str]:
    name = row["method"] + (f" ({row['failed']} failed)" if row["failed"] else "")
    if not row["cells"]:
        return [name, str(row["shots"]), *["–"] * (len(COLUMNS) + len(said) - 2)]
    from spaner.align.report.table import told

    return [
        name,
        str(row["shots"]),
        *(told(row[key], "percent") for key in ("text", "semantic", "gap")),
        *(told(row[key], "cosine") for key in ("cosine", "margin")),
        *(told(row[key], "percent") for key in ("ece", "shift", "H")),
        f"{row['parameters'].value:,.0f}",
        f"{row['seconds'].value:.2f}",
        row["chosen"] or "–",
        *(told(row.get(key), "percent") for key in said),
    ]
