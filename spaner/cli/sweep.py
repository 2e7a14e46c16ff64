"""`spaner sweep`: ablations from one cache, side by side over the cores, resumable."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from spaner.align.train.config import recipe_grid
from spaner.cli import console
from spaner.cli.options import On, typed_settings
from spaner.cli.towers import DataRoot, Pixels, TextModel, TextWeights, Towers
from spaner.cli.train import Recipe
from spaner.errors import RunError


def sweep(
    ctx: typer.Context,
    *,
    cache: Annotated[Path, console.cache_option("The cache to train from.")] = Path("cache/imagenet16"),
    recipe: Recipe = "paper",
    out: Annotated[Path | None, console.out_option("Sweep folder.", show_default="sweeps/<cache>")] = None,
    workers: Annotated[int | None, typer.Option(help="Cells at once.", show_default="one per core")] = None,
    text_model: TextModel = None,
    text_weights: TextWeights = None,
    pixels: Pixels = None,
    data_root: DataRoot = None,
    stack: Annotated[
        int | None,
        typer.Option(
            help="Most cells trained as one tensor program, if they differ in seed, lr, lam, scale alone.",
            show_default="8 on a GPU, else 1",
        ),
    ] = None,
    on: On = None,
    json: Annotated[bool, typer.Option("--json", help="Print all cells as JSON.")] = False,
) -> None:
    """Train and score every combination of the lists; cells that a former run finished are not run again.

    Example: `spaner sweep --cache cache/digits --prompt-lengths 1,2,4,8 --seeds 1,2,3`
    """
    from spaner.align.train import sweep as sweeps

    base, lists = typed_settings(ctx.obj)
    listed = {name: each for name, each in recipe_grid(recipe).items() if name not in base}
    grid = listed | lists
    folder = out or Path("sweeps") / cache.stem
    with console.progress("cells") as progress:
        results = sweeps.sweep(
            cache,
            grid,
            {"recipe": recipe, **base},
            folder,
            workers=workers,
            stack=stack,
            on=on,
            progress=progress,
            towers=Towers(text_model, text_weights, pixels, data_root),
        )
    figure = draw(results, folder)
    if json:
        console.dump(results)
    else:
        print_summary(sweeps.summary(results), list(grid))
        console.say(f"cells: {folder / 'sweep.json'} and .csv" + (f"; figure: {figure}" if figure else ""))
    refuse_failed(results, folder)


def refuse_failed(results: Sequence[dict[str, Any]], folder: Path) -> None:
    """RunError with the first reason if a cell failed: a hole in the table must not look like success."""
    failed = [r for r in results if r["status"] == "failed"]
    if failed:
        raise RunError(
            f"{len(failed)} of {len(results)} cells failed, first {failed[0]['varied']}: "
            f"{failed[0]['reason']}; "
            f"the others are in {folder}; mend the cause and run the same command again"
        )


def draw(results: Sequence[dict[str, Any]], folder: Path) -> Path | None:
    """Accuracy against prompt length, if the sweep has more than one."""
    done = [r for r in results if r["status"] == "ok"]
    if len({r["config"].get("prompt_length") for r in done}) < 2:
        return None
    from spaner.align.report.charts import length_drawing
    from spaner.align.report.drawing import write

    return write(length_drawing("prompt_length", done), folder)[0]


def print_summary(rows: Sequence[dict[str, Any]], settings: Sequence[str]) -> None:
    """One line per combination, mean ± standard deviation over its seeds and draws."""
    shown = [name for name in settings if any(name in row for row in rows)]
    columns = [", ".join(name.replace("_", " ") for name in shown) or "setting"]
    columns += ["cells", "text", "semantic", "gap", "cos text", "cos sem.", "margin"]
    console.table(columns, [_line(row, shown) for row in rows])


def _line(row: dict[str, Any], shown: Sequence[str]) -> list[str]:
    name = ", ".join(str(row[s]) for s in shown) or "all"
    cells = str(row["cells"]) + (f" ({row['failed']} failed)" if row["failed"] else "")
    if not row["cells"]:
        return [name, cells, *["–"] * 6]
    from spaner.align.report.table import told

    return [
        name,
        cells,
        *(told(row[key], "percent") for key in ("text", "semantic", "gap")),
        *(told(row[key], "cosine") for key in ("text_cosine", "semantic_cosine", "margin")),
    ]
