"""A cache once more in another place or the other format: a chunk is checked as it is read, and written once.

A copy is an extraction whose encoder is another cache. All tables are begun before the first row, so that the
new place knows what it lacks; all are sealed after the last one. A copy that was killed is an unfinished
cache, which nobody reads, and the same call continues it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spaner.cache.address import place
from spaner.cache.cache import Cache, create
from spaner.cache.cache import open as open_cache
from spaner.cache.manifest import Manifest
from spaner.cache.opening import parts_of, stores_at
from spaner.cache.table import Table
from spaner.cache.writer import Writer
from spaner.errors import CacheError, Mismatch
from spaner.progress import Progress, no_progress


@dataclass(frozen=True, eq=False)
class Given:
    """A table to be written from rows that are stored already.

    Attributes:
        manifest: what it will be.
        ids, labels: of its rows; draws: name -> row numbers.
        measured: what its seal holds of how its rows were made.
        block: rows [start, stop) of every array, checked; see `Table.stored`.
    """

    manifest: Manifest
    ids: Sequence[str]
    labels: np.ndarray
    draws: Mapping[str, np.ndarray]
    measured: dict[str, Any]
    block: Callable[[int, int], Mapping[str, np.ndarray]]

    @property
    def name(self) -> str:
        """modality/split."""
        return self.manifest.table


def of_table(table: Table) -> Given:
    """A table as it is."""
    draws = {name: table.stored_draw(name) for name in table.manifest.draws}
    return Given(table.manifest, table.ids.tolist(), table.labels, draws, table.measured, table.stored)


def copy(source: str | Path, target: str | Path, progress: Progress = no_progress) -> list[str]:
    """Copy the sealed tables of a cache; a target ending in .h5 becomes HDF5, else Zarr. Lossless.

    Returns:
        What is to be said: of tables that are not finished, and so were left out.

    Raises:
        Mismatch: the target holds something else than a part of this copy.
        Corrupt: a chunk of the source differs from its seal; a copy would hide where.
        CacheError: no such source, or the target cannot be written.
    """
    target = place(target)
    with open_cache(source) as origin:
        if origin.path.resolve() == target.resolve():
            raise CacheError(f"{target} is the cache that is to be copied; give a new place for the copy")
        tables = [of_table(origin.table(name)) for name in origin.tables()]
        left = [f"{origin.progress(name)} (left out)" for name in origin.unsealed()]
        return left + write_into(target, f"a copy of {origin.path}", origin, tables, progress)


def write_into(
    target: Path, what: str, like: Cache, tables: Sequence[Given], progress: Progress
) -> list[str]:
    """Make the cache that holds these tables and nothing else, or continue it.

    Args:
        what: what it will be, for messages: "a copy of …".
        like: a cache of its dataset, class names and schema.

    Returns:
        What was damaged in the target and has been made anew.

    Raises:
        Mismatch: the target holds something else.
        Corrupt: rows that are read differ from their seal.
        CacheError: the target cannot be written.
    """
    _refuse_others(target, what, like, tables)
    with (
        described(f"{target} is not {what}"),
        create(target, like.dataset, like.class_names, schema=like.schema) as made,
    ):
        fill(made, tables, progress)
    return made.notes


def _refuse_others(target: Path, what: str, like: Cache, tables: Sequence[Given]) -> None:
    """Raise Mismatch if the target is a cache of another schema or holds a table that is not to be in it, or
    another finished one under its name."""
    for made in opened(target):
        known = {given.name: given for given in tables}
        strange = next((name for name in [*made.tables(), *made.unsealed()] if name not in known), None)
        if strange is None:
            differ = (name for name in made.tables() if made.table(name).measured != known[name].measured)
            strange = next(differ, None)
        if strange is not None or made.schema != like.schema:
            other = f"table {strange}" if strange else f"schema {made.schema}"
            raise Mismatch(f"{target} is not {what}: it has another {other}; give a new place")


def opened(path: Path) -> Iterator[Cache]:
    """The cache at a path, finished or not, if there is one."""
    if any((place / "zarr.json").is_file() for place in (path, parts_of(path))) or path.is_file():
        stores = stores_at(path)
        with Cache(path, stores, stores[0].attributes()) as cache:
            yield cache


@contextmanager
def described(what: str) -> Iterator[None]:
    """Say what a table that is in the way means here."""
    try:
        yield
    except Mismatch as error:
        raise Mismatch(f"{what}: {str(error).rpartition('; ')[0]}; give a new place") from error


def fill(made: Cache, tables: Sequence[Given], progress: Progress) -> None:
    """Begin or continue all tables, write what they lack, and seal them when nothing is missing.

    Raises:
        Mismatch: a table of this name is another one.
        Corrupt: rows that are read differ from their seal.
        Busy: another process writes one of them.
    """
    with ExitStack() as held:
        work = [
            (given, held.enter_context(made.begin(given.manifest, given.ids, given.labels, given.draws)))
            for given in tables
        ]
        for given, writer in work:
            _write(given, writer, progress)
        for given, writer in work:
            writer.seal(given.measured)


def _write(given: Given, writer: Writer, progress: Progress) -> None:
    rows = given.manifest.rows
    done = rows - sum(len(range(*writer.rows(chunk).indices(rows))) for chunk in writer.pending)
    progress(done, rows, given.name)
    for chunk in list(writer.pending):
        span = writer.rows(chunk)
        writer.take(chunk, given.block(span.start, span.stop))
        done += span.stop - span.start
        progress(done, rows, given.name)
