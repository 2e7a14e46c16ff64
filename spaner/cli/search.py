"""`spaner search`: words, a picture or a sound in, the nearest rows of an index out."""

from pathlib import Path, PurePath
from typing import Annotated, Any

import typer

from spaner.cli import console
from spaner.cli.embed import DEVICE, MODEL, TOKENIZER, WEIGHTS, encoder_files
from spaner.errors import DatasetError, RecipeError


def search(
    query: Annotated[str, typer.Argument(help="Words, or the path of a picture or a sound.")],
    *,
    index: Annotated[Path, typer.Option(help="Index folder written by `spaner index`.")],
    run: Annotated[
        str | None, typer.Option(help="Where the run lies now.", show_default="where it lay")
    ] = None,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="How many to show.")] = 10,
    modality: Annotated[list[str] | None, typer.Option(help="Only this modality; may be repeated.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Only this split; may be repeated.")] = None,
    class_name: Annotated[
        list[str] | None, typer.Option("--class", help="Only this class; may be repeated.")
    ] = None,
    space: Annotated[str, typer.Option(help="trained, or frozen: the encoder's own.")] = "trained",
    exact: Annotated[bool, typer.Option(help="Read every row even beside an approximate index.")] = False,
    model: Annotated[list[str] | None, MODEL] = None,
    weights: Annotated[list[str] | None, WEIGHTS] = None,
    tokenizer: Annotated[Path | None, TOKENIZER] = None,
    device: Annotated[str, DEVICE] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Search an index by words, by a picture or by a sound.

    Examples: `spaner search "a red umbrella" --index index/photos` · `spaner search bark.wav --index
    index/photos --modality image`
    """
    from spaner.search.indexed import Filter, open_index

    if space not in ("trained", "frozen"):
        raise RecipeError(f"--space {space}: expected trained or frozen; leave it out for trained")
    opened = open_index(index)
    which = Filter(modality or [], split or [], class_name or [])
    opened.spans(which)  # a name that is not there costs no encoder
    opened.kept(which)
    asker = asker_of(opened, run, encoder_files(model, weights, tokenizer, device))
    asked = ask(asker, query)
    hits = found(opened, asker, asked, space=space, k=top, which=which, exact=exact)
    if json:
        near = [{"class": name, "score": score} for name, score in asker.nearest_classes(asked)]
        console.dump({"query": query, "modality": asked.modality, "space": space, "classes": near}
                     | {"hits": [hit.to_json() for hit in hits]})  # fmt: skip
        return
    print_hits(hits)


def asker_of(opened: Any, run: str | None, files: Any = None) -> Any:
    """What turns words and files into questions: the index's own run, or one that must be the same."""
    from spaner.search.encoding import open_run
    from spaner.search.query import Asker

    loaded = opened.run() if run is None else open_run(run)
    opened.check(loaded)
    return Asker(loaded, files)


def ask(asker: Any, query: str) -> Any:
    """A question from words, or from the file of that name.

    Raises:
        DatasetError: a picture or a sound is named that is not there.
    """
    from spaner.extract.datasets.tree import PICTURES, SOUNDS

    try:
        is_file = Path(query).is_file()
    except (OSError, ValueError):  # words are no path that a disk could have
        is_file = False
    if is_file:
        return asker.file(Path(query))
    if PurePath(query).suffix.lower() in PICTURES | SOUNDS:  # a slip in a path is no words to search for
        raise DatasetError(f"{query}: no such file; expected a picture or a sound, or words; check the path")
    return asker.words(query)


def found(opened: Any, asker: Any, asked: Any, *, space: str, k: int, which: Any, exact: bool) -> list[Any]:
    """The hits in the trained space or in the frozen one."""
    from spaner.search.query import search as nearest
    from spaner.search.query import search_frozen

    if space == "frozen":
        return search_frozen(opened, asker.run, asked, k, which)
    return nearest(opened, asked, k, which, exact=exact)


def print_hits(hits: list[Any]) -> None:
    """Score, class and where it is."""
    rows = []
    for hit in hits:
        place = hit.path or f"{hit.table}: {hit.id}"
        gone = " (no longer there)" if hit.missing else ""
        rows.append([f"{hit.score:.3f}", console.shown(hit.class_name), console.shown(place) + gone])
    if not rows:
        console.say("nothing found: the filters leave no row")
        return
    console.listing(["score", "class", "where"], rows)
