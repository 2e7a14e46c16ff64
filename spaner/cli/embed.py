"""`spaner embed`: new samples, or a cached table, in the space of a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spaner.cli import console
from spaner.errors import CacheError, DatasetError

if TYPE_CHECKING:
    from spaner.cache import Cache
    from spaner.search.encoding import Files

#: Options that several commands share: where encoders lie that their names do not find.
MODEL = typer.Option(help="Configuration file or folder of a model; MODALITY=PATH for one of several.")
WEIGHTS = typer.Option("--pretrained", help="Weights file of an encoder; MODALITY=FILE for one of several.")
TOKENIZER = typer.Option(help="Folder of the text encoder's tokenizer, if it came from one.")
DEVICE = typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")


def embed(
    paths: Annotated[
        list[str] | None, typer.Argument(help="Files, folders, patterns, CSV lists.", metavar="PATH...")
    ] = None,
    *,
    run: Annotated[str, typer.Option(help="Run folder, or hf:ORG/NAME.")],
    text: Annotated[list[str] | None, typer.Option(help="A text; may be repeated.")] = None,
    text_file: Annotated[Path | None, typer.Option(help="A file of texts, one a line.")] = None,
    cache: Annotated[
        list[Path] | None,
        console.cache_option("CACHE or CACHE/modality/split to map; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A cache, a .npy or a .parquet file.", show_default="embedded/NAME"),
    ] = None,
    split: Annotated[str, typer.Option(help="What the tables of new samples are called.")] = "new",
    dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per encoder call.")] = 64,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Decoding threads.", show_default="by processor")
    ] = None,
    max_failed: Annotated[float, typer.Option(min=0, max=1, help="Largest share of unreadable files.")] = 0.5,
    overwrite: Annotated[bool, typer.Option(help="Replace tables made with other settings.")] = False,
    model: Annotated[list[str] | None, MODEL] = None,
    weights: Annotated[list[str] | None, WEIGHTS] = None,
    tokenizer: Annotated[Path | None, TOKENIZER] = None,
    device: Annotated[str, DEVICE] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Embed pictures, sounds and texts with the run's own encoders, or map cached tables, into its space.

    Run the same command again to continue; unreadable files become failed rows with a reason.

    Examples: `spaner embed --run runs/digits photos/` · `spaner embed --run runs/digits --text "a red
    umbrella" -o texts.npy` · `spaner embed --run runs/digits --cache cache/digits/image/test`
    """
    from spaner.search import embed as embedding
    from spaner.search.encoding import open_run

    options = embedding.Options(dtype, batch_size, workers, max_failed, overwrite)
    _check(dtype, paths, text, text_file, cache)
    loaded = open_run(run)
    with console.progress() as progress:
        if cache:
            tables = [table for path in cache for table in tables_at(path)]
            place = out or Path("embedded") / tables[0][0].path.stem
            done = embedding.embed_tables(loaded, tables, place, options, progress)
        else:
            source = _source(paths, text, text_file, split)
            place = out or Path("embedded") / source.dataset.name
            files = encoder_files(model, weights, tokenizer, device)
            done = embedding.embed(loaded, source, place, options, files, progress)
            for kind, (count, first) in source.dataset.left_out.items():
                console.note(f"left out, {kind}: {count:,} (first {console.shown(first)})")
    _print(done, place, as_json=json)


def _check(dtype: str, paths: Any, text: Any, text_file: Any, cache: Any) -> None:
    if dtype not in ("float16", "float32"):
        raise DatasetError(f"--dtype {dtype}: expected float16 or float32; leave it out for float16")
    if cache and (paths or text or text_file):
        raise DatasetError(
            "found files or texts beside --cache; expected either; type two commands, each with --out"
        )


def _source(paths: list[str] | None, text: list[str] | None, file: Path | None, split: str) -> Any:
    from spaner.search.sources import gather, text_file

    return gather(paths or [], [*(text or []), *(text_file(file) if file else [])], split)


def tables_at(path: Path) -> "list[tuple[Cache, str]]":
    """Tables of `CACHE` (all) or `CACHE/modality/split` (one), each with its opened cache.

    Raises:
        CacheError: no cache there, or no such table.
    """
    from spaner import cache as caches

    if path.exists() and not _is_table(path):
        opened = caches.open(path)
        return [(opened, name) for name in opened.tables()]
    if len(path.parts) < 3 or not path.parents[1].exists():
        raise CacheError(
            f"--cache {path}: no cache there; expected CACHE or CACHE/modality/split; "
            "make one with `spaner extract`"
        )
    opened = caches.open(path.parents[1])
    opened.table(name := f"{path.parent.name}/{path.name}")
    return [(opened, name)]


def _is_table(path: Path) -> bool:
    """Whether this is the folder of one table inside a cache of folders."""
    return len(path.parts) > 2 and (path.parents[1] / "zarr.json").is_file() and path.is_dir()


def encoder_files(
    model: list[str] | None, weights: list[str] | None, tokenizer: Path | None, device: str
) -> "Files":
    """What `--model`, `--pretrained`, `--tokenizer` and `--device` say; "MODALITY=FILE" is for that one."""
    from spaner.search.encoding import Files

    def parted(words: list[str] | None) -> dict[str, str]:
        found = {}
        for word in words or []:
            modality, _, file = word.partition("=")
            named = file and modality in ("image", "text", "audio")
            found[modality if named else ""] = file if named else word
        return found

    return Files(parted(model), parted(weights), tokenizer, device)


def _print(done: list[Any], place: Path, *, as_json: bool) -> None:
    if as_json:
        tables = [{"table": t.name, "rows": t.rows, "kept": t.resumed, "failures": t.failures} for t in done]
        console.dump({"out": str(place), "tables": tables})
        return
    rows = [
        [t.name, f"{t.rows:,}", f"{len(t.failures):,}", f"{t.resumed:,}", console.size(t.bytes)] for t in done
    ]
    console.table(["table", "rows", "failed", "kept", "size"], rows)
    for table in done:
        for key, reason in list(table.failures.items())[:5]:
            console.note(f"{table.name}: {console.shown(key)}: {console.shown(reason)}")
    console.say(f"embedded: {place}")
