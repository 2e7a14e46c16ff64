"""`spaner index`: new files and cached tables in a folder that can be searched."""

from pathlib import Path
from typing import Annotated, Any

import typer

from spaner.cli import console
from spaner.cli.embed import DEVICE, MODEL, TOKENIZER, WEIGHTS, encoder_files, tables_at
from spaner.errors import DatasetError


def index(
    paths: Annotated[
        list[str] | None, typer.Argument(help="Files, folders, patterns, CSV lists.", metavar="PATH...")
    ] = None,
    *,
    run: Annotated[str, typer.Option(help="Run folder, or hf:ORG/NAME.")],
    cache: Annotated[
        list[Path] | None,
        console.cache_option("CACHE (all but texts) or CACHE/modality/split; may be repeated."),
    ] = None,
    files: Annotated[
        Path | None, typer.Option(help="The folder that the ids of --cache are relative to, to show them.")
    ] = None,
    text_file: Annotated[Path | None, typer.Option(help="A file of texts to index, one a line.")] = None,
    out: Annotated[
        Path | None, console.out_option("Index folder.", "--out", "-o", show_default="index/NAME")
    ] = None,
    approximate: Annotated[
        bool, typer.Option(help="Also build an approximate index (extra spaner[search]); prints its recall.")
    ] = False,
    max_failed: Annotated[float, typer.Option(min=0, max=1, help="Largest share of unreadable files.")] = 0.5,
    overwrite: Annotated[bool, typer.Option(help="Encode files again that this index holds.")] = False,
    model: Annotated[list[str] | None, MODEL] = None,
    weights: Annotated[list[str] | None, WEIGHTS] = None,
    tokenizer: Annotated[Path | None, TOKENIZER] = None,
    device: Annotated[str, DEVICE] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print what was indexed as JSON.")] = False,
) -> None:
    """Index pictures, sounds, texts and cached tables of any modality that the run knows, in one space.

    Examples: `spaner index --run runs/digits photos/ sounds/` · `spaner index --run runs/digits --cache
    cache/digits --out index/digits`
    """
    from spaner.search.embed import Options
    from spaner.search.encoding import open_run
    from spaner.search.index import build

    if not (paths or text_file or cache):
        raise DatasetError(
            "found nothing to index; expected files or a cache; "
            f"type for example `spaner index --run {run} photos/` or `--cache cache/digits`"
        )
    loaded = open_run(run)
    tables = [each for path in cache or [] for each in cached_tables(loaded, path, files)]
    with console.progress() as progress:
        if paths or text_file:
            options = Options(max_failed=max_failed, overwrite=overwrite)
            given = encoder_files(model, weights, tokenizer, device)
            place, fresh = _embedded(loaded, paths or [], text_file, out, options, given, progress)
            tables, out = [*tables, *fresh], place
        if not tables:
            raise DatasetError(
                f"found nothing to index that the run knows ({', '.join(loaded.encoders)}); "
                "expected one of them; let another join with `spaner extend`"
            )
        place = out or Path("index") / tables[0].cache.path.stem
        facts = build(loaded, run, tables, place, with_graph=approximate, progress=progress)
    _print(facts, place, as_json=json)


def cached_tables(run: Any, path: Path, files: Path | None = None) -> list[Any]:
    """Tables of a cache in the modalities that the run knows, its texts (class names, no samples) only where
    they are named; the embedded data set opens its ids itself."""
    from spaner.search.index import Indexed

    found = tables_at(path)
    dataset = "digits" if found[0][0].dataset == "digits" and files is None else None
    if len(found) == 1:
        return [Indexed(cache, name, files, dataset) for cache, name in found]
    there = dict.fromkeys(name.split("/")[0] for _, name in found)
    unknown = [modality for modality in there if modality not in run.encoders]
    if unknown:
        console.note(f"left out, the run does not know them: {', '.join(unknown)}")
    kept = [modality for modality in there if modality not in (*unknown, "text")]
    return [Indexed(cache, name, files, dataset) for cache, name in found if name.split("/")[0] in kept]


def _embedded(
    run: Any, paths: list[str], texts: Path | None, out: Path | None, options: Any, files: Any, progress: Any
) -> tuple[Path, list[Any]]:
    """New samples, encoded into a cache inside the index folder."""
    from spaner import cache as caches
    from spaner.search import sources
    from spaner.search.embed import fill
    from spaner.search.index import Indexed, refuse_foreign

    source = sources.gather(paths, sources.text_file(texts) if texts else [])
    place = out or Path("index") / source.dataset.name
    refuse_foreign(place)
    done = fill(run, source, place / "embedded", options, files, progress, lambda encoder: encoder)
    for kind, (count, first) in source.dataset.left_out.items():
        console.note(f"left out, {kind}: {count:,} (first {console.shown(first)})")
    for table in done:
        for key, reason in list(table.failures.items())[:5]:
            console.note(f"{table.name}: {console.shown(key)}: {console.shown(reason)}")
    cache = caches.open(place / "embedded")
    return place, [Indexed(cache, table.name, source.root) for table in done]


def _print(facts: dict[str, Any], place: Path, *, as_json: bool) -> None:
    if as_json:
        console.dump({"out": str(place), **facts})
        return
    rows = [
        [part["table"], f"{part['stop'] - part['start']:,}", f"{part['failed']:,}"]
        for part in facts["tables"]
    ]
    console.table(["table", "rows", "failed"], rows)
    if "recall@10" in facts:
        console.say(f"approximate index: recall@10 against exact search {facts['recall@10']:.3f}")
    console.say(f"index: {place}, {facts['rows']:,} rows of {facts['width']}")
    console.next_step(f'spaner search "words, or a file" --index {place}')
