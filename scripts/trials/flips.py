"""One random bit of a cache flips, in any of its files: `verify` must find it, no reader may give another
number for it, and the same extraction again must bring the bytes of before."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import spaner.cache
from spaner.errors import SpanerError
from spaner.extract.extract import extract
from trials import Outcome, bytes_of, different, flip, in_child, settings


def run(folder: Path, count: int, seed: int) -> Iterator[Outcome]:
    """Both formats."""
    given = settings(folder)
    for name in ("cache", "cache.h5"):
        in_child(lambda name=name: extract(cache=folder / name, **given))
        yield flipped(folder / name, count, random.Random(f"{name} {seed}"), given)


def flipped(made: Path, count: int, draw: random.Random, given: dict[str, Any]) -> Outcome:
    """Flip, look, read, mend."""
    outcome = Outcome(f"one flipped bit ({'HDF5' if made.is_file() else 'Zarr'})")
    before, values, place = bytes_of(made), read(made), made.with_stem("flipped")
    files = sorted(name for name, data in before.items() if data)
    for _ in range(count):
        copy(made, place)
        what = flip(place / draw.choice(files) if made.is_dir() else place, draw)
        found = in_child(lambda: noticed(place))[1] == "True"
        silent = in_child(lambda: read(place) != values)[1] == "True"
        failure = (
            "it is not found"
            if not found
            else "another number is read"
            if silent
            else mended(place, before, given)
        )
        outcome.add(found=found, failure=failure, when=what)
    return outcome


def copy(made: Path, place: Path) -> None:
    """A whole cache to be damaged."""
    if made.is_file():
        shutil.copyfile(made, place)
    else:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(made, place)


def noticed(place: Path) -> bool:
    """Whether opening or verifying says anything."""
    try:
        with spaner.cache.open(place) as cache:
            return bool(cache.verify())
    except SpanerError:
        return True


def read(place: Path) -> list[Any]:
    """What training and scoring read of every table; raises SpanerError where something is damaged."""
    found: list[Any] = []
    with spaner.cache.open(place) as cache:
        for name in ("image/test", "image/train", "text/classname", "text/vanilla"):
            table = cache.table(name)
            arrays = (table.read(), table.labels, table.ids, table.ok)
            found += [table.manifest, table.failures(), *(array.tolist() for array in arrays)]
            found += [table.stored_draw(draw).tolist() for draw in sorted(table.manifest.draws)]
    return found


def mended(place: Path, before: dict[str, bytes], given: dict[str, Any]) -> str | None:
    """The same extraction again; where its line says so, after deleting the file."""
    status, said = in_child(lambda: extract(cache=place, **given))
    if status == 1 and "delete it and run the same" in said:
        place.unlink()
        status, said = in_child(lambda: extract(cache=place, **given))
    return said if status else different(bytes_of(place), before)
