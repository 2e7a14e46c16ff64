"""`spaner ablate`: take a part away and see what it contributed."""

from pathlib import Path
from typing import Annotated, Any

import typer

from spaner.cli import console
from spaner.cli.options import MethodCommand, parse, typed_settings
from spaner.cli.train import Recipe

app = typer.Typer(no_args_is_help=True, help="Take a part away and see what it contributed.")


@app.callback()
def group() -> None:
    """Take a part away and see what it contributed."""


@app.command("prompt", cls=MethodCommand)
def prompt(
    ctx: typer.Context,
    *,
    cache: Annotated[Path, console.cache_option("The cache to train from.")] = Path("cache/imagenet16"),
    recipe: Recipe = "anchored",
    seeds: Annotated[
        str, typer.Option(help="Seeds of draw and training, which move together.", metavar="a,b,…")
    ] = "1,2,3",
    lengths: Annotated[
        str, typer.Option(help="Prompt lengths beside the reference's own.", metavar="a,b,…")
    ] = "1,2,4,8,16,32",
    out: Annotated[Path | None, console.out_option("Folder.", show_default="ablations/<cache>")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """What the shared prompt contributes: no prompt, other lengths, wrong prompts, no attention.

    Example: `spaner ablate prompt --cache cache/digits --shots 16 --batch-size 32 --seeds 1,2,3`
    """
    from dataclasses import asdict

    from spaner.align.train.ablate import ablate_prompt

    numbers = tuple[int, ...]
    base = {"recipe": recipe, **typed_settings(ctx.obj)[0]}
    folder = out or Path("ablations") / cache.stem
    with console.progress("runs") as progress:
        found = ablate_prompt(
            cache,
            base,
            parse(numbers, seeds, "--seeds"),
            parse(numbers, lengths, "--lengths"),
            folder,
            progress,
        )
    if json:
        console.dump(asdict(found))
        return
    print_ablation(found)
    console.say(f"rows: {folder / 'ablation.json'}")
    console.next_step(f"spaner report --check {folder}")


def print_ablation(found: Any) -> None:
    """A line a variant: accuracies over seeds, and what the reference is better by, in points."""
    title = f"{found.dataset}, {found.title}, {', '.join(found.modalities)}: {len(found.seeds)} seeds"
    columns = [
        "variant",
        "text",
        "lost",
        "95 %",
        "semantic",
        "lost",
        "95 %",
        "pairs",
        "parameters",
        "seconds",
    ]
    console.table(columns, [_line(row) for row in found.rows], title)
    if found.zero_shot:
        accuracies = (console.percent(found.zero_shot[kind]) for kind in ("text", "semantic"))
        console.say(f"zero-shot: text {next(accuracies)}, semantic {next(accuracies)}")
    console.say("lost: the reference minus the variant, in points, paired; ± is the deviation over seeds")


def _line(row: dict[str, Any]) -> list[str]:
    cells = [row["variant"]]
    for kind in ("text", "semantic"):
        lost = row[f"{kind}_lost"]
        cells += [_spread(row[kind]), _spread(lost, "+")]
        cells.append(f"{100 * lost['low']:+.1f} … {100 * lost['high']:+.1f}")
    pairs = "–" if row["pairs"] is None else _spread(row["pairs"])
    return [*cells, pairs, f"{row['parameters']:,}", f"{row['seconds']:.1f}"]


def _spread(value: dict[str, float], sign: str = "") -> str:
    return f"{100 * value['mean']:{sign}.1f} ± {100 * value['std']:.1f}"
