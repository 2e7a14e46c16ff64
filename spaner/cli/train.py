"""`spaner train`: a method fitted to a sealed cache, scored and saved."""

from pathlib import Path
from typing import Annotated, Any

import typer

from spaner.align.train.config import TrainConfig
from spaner.cli import console
from spaner.cli.options import typed_settings
from spaner.cli.towers import DataRoot, Pixels, TextModel, TextWeights, Towers

Recipe = Annotated[
    str,
    typer.Option(
        help="A named recipe (paper, anchored) or a TOML file; other options override what it sets."
    ),
]


def train(
    ctx: typer.Context,
    *,
    cache: Annotated[Path, console.cache_option("The cache to train from.")] = Path("cache/imagenet16"),
    recipe: Recipe = "paper",
    out: Annotated[
        Path | None, console.out_option("Run folder.", show_default="runs/<cache>-<recipe>-<hash>")
    ] = None,
    text_model: TextModel = None,
    text_weights: TextWeights = None,
    pixels: Pixels = None,
    data_root: DataRoot = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fit a method to a cache alone, then score it: SPANER's prompt, aligners and projections, or `--method`.

    Its options are those of the method: `spaner train --method linear_probe --help`.

    Example: `spaner train --cache cache/digits --recipe anchored --prompt-length 2`
    """
    config = TrainConfig.from_recipe(recipe, **typed_settings(ctx.obj)[0])
    run, folder = train_and_save(cache, config, out, (text_model, text_weights, pixels, data_root))
    if json:
        console.dump(run.result)
        return
    rows = f"{run.draw['rows']:,} training rows, {run.seconds:.1f} s"
    print_scores(run.metrics or {}, f"{config.title}, {rows}", name=label(config))
    if run.selection.get("choice"):
        console.say(f"settings: {told(run.selection)}")
    console.say(f"run: {folder}")
    swept = config.method == "spaner" and "text" in run.widths
    sweep = f"sweep --cache {cache} --prompt-lengths 1,2,4,8"
    console.next_step(f"spaner {sweep if swept else f'report {folder}'}")


def label(config: TrainConfig) -> str:
    """How a table names the system."""
    return "SPANER" if config.method == "spaner" else config.method


def told(selection: dict[str, Any]) -> str:
    """A receipt in a line."""
    choice = ", ".join(f"{name} {value}" for name, value in selection["choice"].items())
    if "tried" in selection:
        kind = "validation" if selection["by"] == "val" else "training"
        by = ", by folds" if selection["by"] == "folds" else ""
        return f"{choice} (of {len(selection['tried']):,} on {selection['rows']:,} {kind} rows{by})"
    return f"{choice} (published; {selection['why']})"


def train_and_save(
    cache: Path,
    config: TrainConfig,
    out: Path | None = None,
    towers: tuple[str | None, str | None, str | None, Path | None] = (None, None, None, None),
) -> tuple[Any, Path]:
    """`train.fit.train` with a bar, what the method needs beside the cache, and the losses drawn."""
    from spaner.align.train.fit import train as train_

    with console.progress("epochs") as progress:
        tools = Towers(*towers, progress.of("rows"))(cache, config.method, config.device)
        told = f"train {config.title}"
        run, folder = train_(cache, config, out, lambda done, total, _: progress(done, total, told), **tools)
    draw_losses(run, folder)
    return run, folder


def draw_losses(run: Any, folder: Path) -> None:
    """`loss.png` in the run folder; nothing for a method without epochs."""
    if not run.history:
        return
    from spaner.align.report.charts import loss_drawing
    from spaner.align.report.drawing import write
    from spaner.align.report.theme import LIGHT

    drawing = loss_drawing("loss", f"{run.dataset}, {run.config.title}", run.history)
    write(drawing, folder, themes=[LIGHT], kinds=["png"])


def print_scores(
    metrics: dict[str, Any],
    title: str,
    rows: dict[str, dict[str, Any]] | None = None,
    name: str = "SPANER",
) -> None:
    """A system's numbers with zero-shot beside them, and of many modalities every pair; `rows` shows more
    systems by name."""
    if metrics["text"] is None:
        console.say(f"{title}: no class is asked by name")
    else:
        print_accuracies(metrics, title, {"zero-shot": metrics["zero_shot"], **(rows or {name: metrics})})
    if "negation" in metrics:
        frozen = (metrics["zero_shot"] or {}).get("negation")
        beside = "" if frozen is None else f", zero-shot {console.percent(frozen)} %"
        said = f"{console.percent(metrics['negation'])} %{beside}, chance 50 %"
        console.say(f"nearer to their caption than to its negated form: {said}")
    if metrics.get("captions"):
        frozen = metrics["zero_shot"] or metrics.get("frozen") or {}
        print_captions({"zero-shot": frozen, **(rows or {name: metrics})})
    if "modalities" in metrics:
        print_pairs(metrics["modalities"])
    if metrics["synthetic"]:
        console.say(
            "synthetic embeddings (random weights or made-up vectors): compare with no published number"
        )


def print_accuracies(metrics: dict[str, Any], title: str, systems: dict[str, dict[str, Any] | None]) -> None:
    """A line a system: accuracies, cosines and their controls."""
    columns = ["", "text", "semantic", "gap", "cos text", "cos sem.", "margin", "neg. cos", "centred"]
    console.table(columns, [[name, *score_cells(m)] for name, m in systems.items() if m], title)
    ties = metrics["text"]["accuracy_tie_aware"] - metrics["text"]["accuracy"]
    console.say(
        f"{metrics['rows']:,} test rows, chance {console.percent(metrics['chance'])} %"
        + (f", {console.percent(ties, 2)} points lost to ties" if abs(ties) > 1e-9 else "")
    )


def print_captions(systems: dict[str, dict[str, Any]]) -> None:
    """Recall between images and captions both ways, chance beside it."""
    ways = {"image_to_caption": "image, caption", "caption_to_image": "caption, image"}
    found = {name: each["captions"] for name, each in systems.items() if each.get("captions")}
    columns = ["", "from, to", *(f"recall@{k} (chance)" for k in (1, 5, 10)), "queries", "targets"]
    lines = [
        [name, title, *(_recall(told[way], k) for k in (1, 5, 10)), *_sizes(told[way])]
        for name, told in found.items()
        for way, title in ways.items()
    ]
    console.table(columns, lines, "images and their captions")
    denied = {name: console.percent(told["negation"]) for name, told in found.items() if "negation" in told}
    if denied:
        shares = ", ".join(f"{name} {share} %" for name, share in denied.items())
        console.say(f"images nearer to a caption than to its negated form: {shares}, chance 50 %")
    left_out = next(iter(found.values()))["left_out"]
    if left_out:
        console.say(f"{left_out:,} images and captions without a partner are left out")


def _recall(told: dict[str, Any], k: int) -> str:
    return f"{console.percent(told[f'recall@{k}'])} ({console.percent(told[f'chance@{k}'])})"


def _sizes(told: dict[str, Any]) -> list[str]:
    return [f"{told['queries']:,}", f"{told['targets']:,}"]


def print_pairs(across: dict[str, Any]) -> None:
    """Recall@1 from each modality (rows) to each other (columns), emergent pairs marked, and chance."""
    cells = {(p["query"], p["target"]): p for p in across["pairs"]}
    names = list(dict.fromkeys(query for query, _ in cells))
    rows = [[query, *(_pair_cell(cells.get((query, target))) for target in names)] for query in names]
    console.table(["from, to", *names], rows, "between modalities (chance in brackets)")
    if across["emergent"]:
        console.say("* emergent: no loss ever compared the two")


def _pair_cell(pair: dict[str, Any] | None) -> str:
    if pair is None:
        return "–"
    mark = " *" if pair["emergent"] else ""
    return f"{console.percent(pair['recall@1'])} ({console.percent(pair['chance'])}){mark}"


def score_cells(metrics: dict[str, Any]) -> list[str]:
    """Accuracies in percent; cosines, the semantic margin to the hardest negative and its controls."""
    text, semantic = metrics["text"], metrics["semantic"] or dict.fromkeys(metrics["text"])
    return [
        console.percent(text["accuracy"]),
        console.percent(semantic["accuracy"]),
        console.percent(metrics["gap"]),
        console.number(text["positive_cosine"]),
        console.number(semantic["positive_cosine"]),
        console.number(semantic["margin"]),
        console.number(semantic["negative_cosine"]),
        console.number(semantic["centred_cosine"]),
    ]
