"""`spaner cache`: look at, check, mend, copy, merge and export a cache."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from spaner.cli import console
from spaner.errors import Corrupt, Unsealed

app = typer.Typer(no_args_is_help=True, help="Look at, check, mend, copy, merge and export a cache.")

CachePath = Annotated[
    Path,
    typer.Argument(
        metavar="CACHE",
        parser=console.place,
        help="A Zarr directory, an .h5 file, or an address such as s3://bucket/cache.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


@app.command()
def info(path: CachePath, *, json: AsJson = False) -> None:
    """Tables, encoders, draws and what was measured while extracting.

    Example: `spaner cache info cache/digits`
    """
    import spaner.cache

    with spaner.cache.open(path) as cache:
        facts = [describe(cache.table(name)) for name in cache.tables()]
        unsealed = cache.unsealed()
        if json:
            console.dump(
                {
                    "dataset": cache.dataset,
                    "classes": len(cache.class_names),
                    "tables": facts,
                    "unsealed": unsealed,
                }
            )
            return
        console.say(f"{path}: dataset {cache.dataset}, {len(cache.class_names):,} classes")
        console.table(
            ["table", "rows", "failed", "views", "dim", "type", "size"], [_row(fact) for fact in facts]
        )
    for line in dict.fromkeys(encoder_line(fact["encoder"]) for fact in facts):
        console.say(line)
    for fact in facts:
        for line in remarks(fact):
            console.say(f"{fact['table']}: {line}")
    for name in unsealed:
        console.say(f"{name}: not finished; the same `spaner extract` command continues it")


def describe(table: Any) -> dict[str, Any]:
    """The facts of one table, ready for JSON."""
    manifest = table.manifest
    item = 2 if manifest.dtype == "float16" else 4
    return {
        "table": table.name,
        "rows": table.rows,
        "failed": len(table.failures()),
        "views": len(manifest.views),
        "dim": manifest.dim,
        "dtype": manifest.dtype,
        "feature_bytes": table.rows * len(manifest.views) * manifest.dim * item,
        "encoder": asdict(manifest.encoder),
        "complete": manifest.complete,
        "draws": sorted(manifest.draws),
        "measured": table.measured,
        "sha256": manifest.sha256,
    }


def _row(fact: dict[str, Any]) -> list[str]:
    counts = [f"{fact[k]:,}" for k in ("rows", "failed", "views", "dim")]
    return [fact["table"], *counts, fact["dtype"], console.size(fact["feature_bytes"])]


def encoder_line(encoder: dict[str, Any]) -> str:
    """One line about an encoder, with a warning where its embeddings are made up."""
    line = f"{encoder['modality']}: {encoder['name']} · {encoder['weights']} · {encoder['precision']}"
    if encoder["weights_sha256"]:
        line += f" · weights {encoder['weights_sha256'][:12]}"
    if encoder["mode"] != "eval":
        line += f" · IMPURE: mode {encoder['mode']}, rows depend on their batch"
    return line + (" · SYNTHETIC: compare with no published number" if encoder["synthetic"] else "")


def remarks(fact: dict[str, Any]) -> list[str]:
    """What was measured, in words."""
    lines = []
    if not fact["complete"]:
        lines.append(f"holds the union of the draws {', '.join(fact['draws'])}")
    purity = fact["measured"].get("purity")
    if purity and "mode" in purity:
        lines.append(f"IMPURE by design: in mode {purity['mode']} rows depend on their batch")
    elif purity:
        lines.append(
            f"row purity: largest difference {purity['max_relative']:.1e} over {purity['rows']} rows"
        )
    agreement = fact["measured"].get("agreement")
    if agreement:
        lines.append(f"agreement with float32: cosine at least {agreement['min_cosine']:.5f}")
    return lines


@app.command()
def verify(path: CachePath, *, json: AsJson = False) -> None:
    """Recompute every checksum; status 1 if a single bit differs.

    Example: `spaner cache verify cache/digits`
    """
    import spaner.cache

    with spaner.cache.open(path) as cache:
        found = cache.verify()
        tables = cache.tables()
    problems = [problem for problem in found if problem.part != "unfinished"]
    unsealed = [problem.what for problem in found if problem.part == "unfinished"]
    if json:
        console.dump([asdict(problem) for problem in found])
    if problems:
        lines = "\n".join(f"  {p.table}: {p.what}" for p in problems)
        raise Corrupt(
            f"{path} has {len(problems)} damaged parts; to mend, type: spaner cache repair {path}\n{lines}"
        )
    if unsealed:
        raise Unsealed(f"{path} is not finished: {unsealed[0]}")
    if not json:
        console.say(f"{path}: {len(tables)} tables, every byte as it was sealed")


@app.command()
def repair(
    path: CachePath,
    *,
    dataset: Annotated[str | None, typer.Option(help="Where the data is, as given to extract.")] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Root folder of the data, as given to extract.")
    ] = None,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Let a list name files outside its data root.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="Config JSON, if the model came from one.")] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="Checkpoint file, if the weights came from one.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the tokenizer, if it came from one.")
    ] = None,
) -> None:
    """Extract damaged chunks again, and only those.

    Example: `spaner cache repair cache/photos --dataset folder:photos`
    """
    from spaner.extract.repair import repair as mend

    with console.progress() as progress:
        places = {"dataset": dataset, "data_root": data_root, "model": model, "pretrained": pretrained}
        summary = mend(path, **places, tokenizer=tokenizer, allow_outside=allow_outside, progress=progress)
    for line in summary.notes:
        console.note(line)
    console.say(f"{path}: {summary.repaired} chunks extracted again")


@app.command()
def copy(
    source: CachePath,
    target: Annotated[
        Path,
        typer.Argument(
            parser=console.place,
            metavar="TARGET",
            help="New place: .h5 for HDF5, otherwise a Zarr directory or an address.",
        ),
    ],
) -> None:
    """Copy a cache, every chunk checked, also into the other format. The same command continues a copy.

    Example: `spaner cache copy cache/digits cache/digits.h5`
    """
    import spaner.cache

    with console.progress() as progress:
        notes = spaner.cache.copy(source, target, progress)
    for line in notes:
        console.note(line)
    console.say(f"{target}: a copy of {source}")


@app.command()
def merge(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="CACHE CACHE…", parser=console.place, help="Caches of one dataset."),
    ],
    into: Annotated[
        Path,
        console.cache_option("New place: .h5 for HDF5, otherwise a Zarr directory or an address."),
    ],
) -> None:
    """Merge caches made apart: other splits or modalities, or other rows of one table, joined in order.

    Example: `spaner cache merge cache/train cache/test --into cache/photos`
    """
    import spaner.cache

    with console.progress() as progress:
        notes = spaner.cache.merge(sources, into, progress)
    for line in notes:
        console.note(line)
    console.say(f"{into}: {' and '.join(map(str, sources))} in one")


@app.command()
def export(
    path: CachePath,
    target: Annotated[
        Path, typer.Argument(parser=console.here, metavar="TARGET", help="Folder for the files.")
    ],
) -> None:
    """Write every table as features.npy with its ids and labels, for search tools.

    Example: `spaner cache export cache/digits exported`
    """
    import spaner.cache

    with spaner.cache.open(path) as cache:
        spaner.cache.export(cache, target)
    console.say(f"{target}: exported from {path}")
