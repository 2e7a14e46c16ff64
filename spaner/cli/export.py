"""`spaner export`: a run as ONNX."""

from pathlib import Path
from typing import Annotated, Any

import typer

from spaner.cli import console
from spaner.cli.embed import DEVICE, MODEL, TOKENIZER, WEIGHTS, encoder_files
from spaner.errors import CacheError, RecipeError


def export(
    run: Annotated[str, typer.Argument(help="Run folder, or hf:ORG/NAME.")],
    *,
    onnx: Annotated[bool, typer.Option("--onnx", help="As ONNX, the one format there is.")] = False,
    out: Annotated[
        Path | None, console.out_option("Folder for the graphs.", "--out", "-o", show_default="onnx/RUN")
    ] = None,
    modality: Annotated[
        list[str] | None, typer.Option(help="Only this modality; may be repeated.", show_default="all")
    ] = None,
    cache: Annotated[
        Path | None,
        console.cache_option("Cache with rows to check on.", show_default="the run's own"),
    ] = None,
    encoder: Annotated[
        Path | None, typer.Option(help="Export encoders too, checked on the samples of this folder.")
    ] = None,
    model: Annotated[list[str] | None, MODEL] = None,
    weights: Annotated[list[str] | None, WEIGHTS] = None,
    tokenizer: Annotated[Path | None, TOKENIZER] = None,
    device: Annotated[str, DEVICE] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print the files as JSON.")] = False,
) -> None:
    """Write the map of each modality as ONNX, and checked against torch on real rows.

    Examples: `spaner export runs/digits --onnx` · `spaner export runs/photos --onnx --encoder photos/`
    """
    from spaner.search import onnx as graphs
    from spaner.search.encoding import open_run

    if not onnx:
        raise RecipeError("export: no format; expected --onnx; type `spaner export RUN --onnx`")
    graphs.check_installed()
    loaded = open_run(run)
    place = out or Path("onnx") / Path(run).name
    names = modality or list(loaded.widths)
    made = [
        graphs.export_map(loaded, name, _table(loaded, name, cache), place / f"{name}.onnx") for name in names
    ]
    if encoder is not None:
        files = encoder_files(model, weights, tokenizer, device)
        made += [
            graphs.export_whole(loaded, name, split, place / f"{name}-encoder.onnx", files)
            for name, split in _samples(encoder).items()
            if modality is None or name in modality
        ]
    if json:
        console.dump([vars(each) | {"file": str(each.file)} for each in made])
        return
    rows = [[str(each.file), f"{each.rows}", f"{each.difference:.1e}"] for each in made]
    console.table(["graph", "rows checked", "largest difference"], rows)


def _table(run: Any, modality: str, cache: Path | None) -> Any:
    """A table of the modality in the run's cache, to check on."""
    from spaner import cache as caches

    place = cache or run.cache
    if place is None:
        raise CacheError(
            "export: the run does not say where its cache lies; expected one; type `--cache CACHE`"
        )
    opened = caches.open(place)
    names = [name for name in opened.tables() if name.startswith(f"{modality}/")]
    if not names:
        raise CacheError(
            f"{place} has no {modality} to check the graph on, only {', '.join(opened.tables())}; "
            "expected rows; type `--cache CACHE`, or `--modality` for another"
        )
    return opened.table(next((name for name in names if name.endswith("/test")), names[0]))


def _samples(folder: Path) -> dict[str, Any]:
    from spaner.search.sources import gather

    return {name: splits["new"] for name, splits in gather([folder]).dataset.splits.items()}
