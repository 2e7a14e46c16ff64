"""`spaner extend`: a new modality joins a trained run without changing it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from spaner.align.train.config import ExtendConfig
from spaner.cli import console
from spaner.cli.options import with_options


@with_options(ExtendConfig)
def extend(
    *,
    run: Annotated[Path, typer.Option(help="Run folder to extend; it is not changed.")],
    cache: Annotated[
        Path,
        console.cache_option("Cache with the new modality and images of the same classes."),
    ],
    out: Annotated[
        Path | None, console.out_option("New run folder.", show_default="<run>+<modality>")
    ] = None,
    replace: Annotated[bool, typer.Option(help="Train a modality anew that the run has already.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    **options: Any,
) -> None:
    """Let a new modality join: its aligner and input map are trained against images, all else is frozen.

    Example: `spaner extend --run runs/digits --modality audio --cache cache/digits`
    """
    from spaner.align.train import run as checkpoint

    config = ExtendConfig(**options)
    folder = out or run.with_name(f"{run.name}+{config.modality}")
    result = extend_with_bar(checkpoint.load(run), cache, config, folder, replace=replace)
    if json:
        console.dump(result)
        return
    print_extension(result, config)
    console.say(f"run: {folder}")


def extend_with_bar(
    run: Any, cache: Path, config: ExtendConfig, folder: Path, *, replace: bool = False
) -> dict[str, Any]:
    """`train.extend.extend_and_check` with a bar."""
    from spaner.align.train.extend import extend_and_check

    with console.progress("epochs") as progress:
        return extend_and_check(
            run,
            cache,
            config,
            folder,
            lambda done, all_, _: progress(done, all_, config.modality),
            replace=replace,
        )


def print_extension(result: dict[str, Any], config: ExtendConfig) -> None:
    """The two hashes, what the newcomer finds, and what finds the newcomer."""
    extension = result["extension"]
    digest = extension["frozen_sha256"]["after"][:12]
    console.say(
        f"{config.modality} joined with {extension['draw']['rows']:,} rows in {extension['seconds']:.1f} s; "
        f"prompt, aligners and projections of the others are unchanged (SHA-256 {digest} before and after), "
        "and so is every bit of their metrics"
    )
    if "pairs" not in result:
        return
    newcomer = result.get("newcomer")
    columns = ["query", "target", "queries", "recall@1", "recall@5", "mAP"]
    named = (
        []
        if newcomer is None
        else [
            [
                config.modality,
                name,
                f"{newcomer['rows']:,}",
                console.percent(newcomer[kind]["accuracy"]),
                "–",
                "–",
            ]
            for kind, name in (("text", "class name in template"), ("semantic", "class name"))
        ]
    )
    console.table(columns, named + [_pair(pair) for pair in result["pairs"]])


def _pair(pair: dict[str, Any]) -> list[str]:
    recalls = [console.percent(pair[name]) for name in ("recall@1", "recall@5", "mAP")]
    return [pair["query"], pair["target"], f"{pair['queries']:,}", *recalls]
