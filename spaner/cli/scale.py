"""`spaner scale`: two to eight modalities, what they cost and what they find."""

from pathlib import Path
from typing import Annotated, Any

import typer

from spaner.cli import console
from spaner.cli.options import parse, typed_settings
from spaner.cli.train import Recipe

COLUMNS = ["modalities", "way", "seconds", "ms a step", "memory", "parameters", "text", "semantic"]
COLUMNS += ["trained pairs", "emergent pairs", "chance"]


def scale(
    ctx: typer.Context,
    *,
    cache: Annotated[Path, console.cache_option("The cache to train from.")] = Path("cache/digits"),
    recipe: Recipe = "paper",
    modalities: Annotated[
        str | None,
        typer.Option(
            help="In this order, text among the first two.",
            show_default="image, text, and what else the cache has",
            metavar="a,b,…",
        ),
    ] = None,
    seeds: Annotated[
        str, typer.Option(help="Seeds of draw and training, which move together.", metavar="a,b,…")
    ] = "1",
    out: Annotated[Path | None, console.out_option("Folder.", show_default="scales/<cache>")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train two modalities, three, … up to eight, together and one by one: time, memory, accuracy, pairs.

    Example: `spaner scale --cache cache/digits --shots 16 --batch-size 32`
    """
    from dataclasses import asdict

    from spaner.align.train.scale import scale as train_all

    folder = out or Path("scales") / cache.stem
    names = None if modalities is None else [name.strip() for name in modalities.split(",") if name.strip()]
    base = {"recipe": recipe, **typed_settings(ctx.obj)[0]}
    with console.progress("runs") as progress:
        found = train_all(cache, names, base, parse(tuple[int, ...], seeds, "--seeds"), folder, progress)
    if json:
        console.dump(asdict(found))
        return
    print_scaling(found)
    console.say(f"rows: {folder / 'scale.json'}")
    console.next_step(f"spaner report --check {folder}")


def print_scaling(found: Any) -> None:
    """A line for every number of modalities and way; recall@1 in percent, the mean over ordered pairs."""
    title = f"{found.dataset}, {found.title}: {', '.join(found.modalities)}; {len(found.seeds)} seeds"
    console.table(COLUMNS, [_line(row) for row in found.rows], title)
    console.say("extended: the first two trained, later ones join the frozen core, paired with the first")
    console.say("emergent: no loss ever compared the two")


def _line(row: dict[str, Any]) -> list[str]:
    many = f"{row['modalities']}: + {row['added']}" if row["modalities"] > 2 else "2"
    return [
        many,
        row["way"],
        f"{row['seconds'][0]:.1f}",
        "–" if row["step_ms"] is None else f"{row['step_ms'][0]:.1f}",
        console.size(int(row["megabytes"][0] * 1e6)),
        f"{row['parameters'][0]:,.0f}",
        *(_percent(row[name]) for name in ("text", "semantic", "trained", "emergent", "chance")),
    ]


def _percent(value: list[float] | None) -> str:
    if value is None:
        return "–"
    mean, std = value
    return f"{100 * mean:.1f}" + (f" ± {100 * std:.1f}" if std else "")
