"""``spaner train``: prompt, aligners and projections from a sealed cache."""

from pathlib import Path
from typing import Annotated, Any

import typer

from spaner.align.train.config import TrainConfig
from spaner.cli import console
from spaner.cli.options import with_options

Recipe = Annotated[
    str,
    typer.Option(
        help="A named recipe (paper, anchored) or a TOML file; other options override what it sets."
    ),
]


@with_options(TrainConfig, skip=("recipe",))
def train(
    *,
    cache: Annotated[Path, typer.Option(help="The cache to train from.")] = Path("cache/imagenet16"),
    recipe: Recipe = "paper",
    out: Annotated[
        Path | None, typer.Option(help="Run folder.", show_default="runs/<cache>-<recipe>-<hash>")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    **options: Any,
) -> None:
    """Train the shared prompt, the aligners and the projections from a cache alone, then score them.

    Example: `spaner train --cache cache/digits --recipe anchored --prompt-length 2`
    """
    config = TrainConfig.from_recipe(recipe, **options)
    folder, result = train_and_score(cache, config, out)
    if json:
        console.dump(result)
        return
    print_scores(
        result["metrics"], f"{recipe}, {result['draw']['rows']:,} training rows, {result['seconds']:.1f} s"
    )
    console.say(f"run: {folder}")
    console.next_step(f"spaner sweep --cache {cache} --prompt-lengths 1,2,4,8")


def train_and_score(cache: Path, config: TrainConfig, out: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """Fit, save, score, and save the scores: a failing evaluation does not lose the training."""
    from spaner.align.score.evaluate import evaluate
    from spaner.align.train.fit import fit
    from spaner.cache import open as open_cache

    with open_cache(cache) as opened, console.progress("epochs") as progress:
        run = fit(opened, config, lambda done, total, _: progress(done, total, f"train {config.recipe}"))
        run.cache = opened.path
        folder = run.save(out or Path("runs") / f"{opened.path.stem}-{run.name}")
        run.metrics = evaluate(run, opened)
    return run.save(folder), run.result


def print_scores(metrics: dict[str, Any], title: str, rows: dict[str, dict[str, Any]] | None = None) -> None:
    """SPANER's numbers with zero-shot beside them; ``rows`` adds more systems by name."""
    systems = {"zero-shot": metrics["zero_shot"], **(rows or {"SPANER": metrics})}
    columns = ["", "text", "semantic", "gap", "cos text", "cos sem.", "margin", "neg. cos", "centred"]
    console.table(columns, [[name, *score_cells(m)] for name, m in systems.items() if m], title)
    ties = metrics["text"]["accuracy_tie_aware"] - metrics["text"]["accuracy"]
    console.say(
        f"{metrics['rows']:,} test rows, chance {console.percent(metrics['chance'])} %"
        + (f", {console.percent(ties, 2)} points lost to ties" if abs(ties) > 1e-9 else "")
    )
    if metrics["synthetic"]:
        console.say(
            "synthetic embeddings (random weights or made-up vectors): compare with no published number"
        )


def score_cells(metrics: dict[str, Any]) -> list[str]:
    """Accuracies in percent; cosines, the semantic margin to the hardest negative and its controls."""
    text, semantic = metrics["text"], metrics["semantic"]
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
