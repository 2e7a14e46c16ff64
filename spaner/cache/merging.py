"""Caches made apart as one: tables side by side, and rows of one table behind each other.

What several caches hold alike is copied once. A table of which each holds other rows is joined in the order
in which the caches are named, and cut into chunks anew; few-shot draws of the parts say nothing about the
whole and are left out. Written as a copy is: begun first, checked as it is read, sealed last, continued by
the same call.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from spaner.cache.address import place
from spaner.cache.cache import Cache
from spaner.cache.cache import open as open_cache
from spaner.cache.copying import Given, of_table, write_into
from spaner.cache.layout import ids_sha256
from spaner.cache.table import Table
from spaner.errors import CacheError, Mismatch
from spaner.progress import Progress, no_progress

OF_THE_ROWS = {"rows", "rows_sha256", "draws", "chunk_rows", "options"}  # what parts of one table differ in
BROUGHT = "arrays_sha256"  # the option that vectors of the user's own are known by
WORDS = "words"  # and that by which sentences are: of one list, so that rows of several have none


def merge(sources: Sequence[str | Path], target: str | Path, progress: Progress = no_progress) -> list[str]:
    """Merge the sealed tables of several caches; a target ending in .h5 becomes HDF5, else Zarr.

    Args:
        sources: at least two caches of one dataset, one class list and one schema; rows of one table are
            joined in this order.

    Returns:
        What is to be said: of tables that are not finished and so were left out, of tables that several
        caches hold, of draws that were left out.

    Raises:
        Mismatch: the caches do not fit together, or the target holds something else than a part of this.
        Corrupt: a chunk of a source differs from its seal.
        CacheError: no such source, one row in two of them, or the target cannot be written.
    """
    target, paths = place(target), [place(source) for source in sources]
    if len(paths) < 2:
        raise CacheError(f"a merge needs at least two caches, found {len(paths)}; name them all")
    if any(path.resolve() == target.resolve() for path in paths):
        raise CacheError(f"{target} is one of the caches that are to be merged; give a new place")
    with ExitStack() as held:
        caches = [held.enter_context(open_cache(path)) for path in paths]
        for other in caches[1:]:
            _refuse_other(caches[0], other)
        found: dict[str, list[tuple[Path, Table]]] = {}
        for cache in caches:
            for name in cache.tables():
                found.setdefault(name, []).append((cache.path, cache.table(name)))
        _refuse_other_encoders([part for parts in found.values() for part in parts])
        notes = [f"{cache.progress(name)} (left out)" for cache in caches for name in cache.unsealed()]
        tables = [_one(parts, notes.append) for _, parts in sorted(found.items())]
        what = "the merge of " + ", ".join(map(str, paths))
        return notes + write_into(target, what, caches[0], tables, progress)


def _refuse_other(first: Cache, other: Cache) -> None:
    """Raise Mismatch unless both are of one dataset, one class list and one schema."""
    pairs = {
        "dataset": (first.dataset, other.dataset),
        "schema": (first.schema, other.schema),
        "number of classes": (len(first.class_names), len(other.class_names)),
    }
    names = enumerate(zip(first.class_names, other.class_names, strict=False))
    pairs |= {f"class {label}": pair for label, pair in names}
    differ = next(((name, a, b) for name, (a, b) in pairs.items() if a != b), None)
    if differ:
        name, mine, theirs = differ
        raise Mismatch(
            f"{first.path} and {other.path} cannot be merged: {name} {mine!r} and {theirs!r}; "
            "merge caches of one dataset, one class list and one schema"
        )


def _refuse_other_encoders(tables: Sequence[tuple[Path, Table]]) -> None:
    """Raise Mismatch where one modality was encoded in two ways that cannot be compared."""
    first: dict[str, tuple[Path, Table]] = {}
    for path, table in tables:
        where, known = first.setdefault(table.manifest.modality, (path, table))
        differing = known.manifest.encoder.same_encoder(table.manifest.encoder)
        if differing:
            field, (mine, theirs) = next(iter(differing.items()))
            raise Mismatch(
                f"{known.name} of {where} and {table.name} of {path} are of other encoders: {field} "
                f"{mine!r} and {theirs!r}; extract one of them again with the encoder of the other"
            )


def _one(parts: Sequence[tuple[Path, Table]], say: Callable[[str], None]) -> Given:
    """What several caches hold under one name, as one table."""
    distinct: dict[str, tuple[Path, Table]] = {}
    for path, table in parts:
        kept, _ = distinct.setdefault(table.manifest.sha256, (path, table))
        if kept != path:
            say(f"{table.name} is the same in {kept} and {path}; taken once, from {kept}")
    if len(distinct) == 1:
        return of_table(parts[0][1])
    return _joined(list(distinct.values()), say)


def _joined(parts: Sequence[tuple[Path, Table]], say: Callable[[str], None]) -> Given:
    """Other rows of one table, behind each other."""
    tables = [table for _, table in parts]
    _refuse_other_tables(parts)
    _refuse_same_rows(parts)
    name = tables[0].name
    if draws := sorted({draw for table in tables for draw in table.manifest.draws}):
        say(f"{name}: the draws {', '.join(draws)} were of its parts and are left out; draw from all rows")
    ids = [text for table in tables for text in table.ids.tolist()]
    labels = np.concatenate([table.labels for table in tables])
    first = tables[0].manifest
    options = {name: value for name, value in first.options.items() if name != WORDS}
    if BROUGHT in options:
        options[BROUGHT] = _arrays_sha256(tables, labels)
    manifest = replace(first, rows=len(ids), rows_sha256=ids_sha256(ids), draws={}, options=options)
    return Given(manifest, ids, labels, {}, _measured(tables), _Rows(tables).block)


def _refuse_other_tables(parts: Sequence[tuple[Path, Table]]) -> None:
    """Raise Mismatch unless the tables differ in their rows alone, and hold all of them."""
    where, first = parts[0]
    for path, table in parts:
        found = first.manifest.differences(table.manifest)
        pairs = {name: pair for name, pair in found.items() if name not in OF_THE_ROWS}
        mine, theirs = ({**each.manifest.options, BROUGHT: "", WORDS: ""} for each in (first, table))
        pairs |= {
            key: (mine.get(key), theirs.get(key))
            for key in sorted({*mine, *theirs})
            if mine.get(key) != theirs.get(key)
        }
        if pairs:
            shown = ", ".join(f"{name} {a!r} and {b!r}" for name, (a, b) in pairs.items())
            raise Mismatch(
                f"{first.name} of {where} and of {path} cannot be joined: {shown}; extract one again as the "
                "other was"
            )
        if not table.manifest.complete:
            raise Mismatch(
                f"{table.name} of {path} holds only the rows of its draws "
                f"({', '.join(table.manifest.draws)}), which mean nothing among other rows; "
                "extract all rows to join it"
            )


def _refuse_same_rows(parts: Sequence[tuple[Path, Table]]) -> None:
    seen: dict[str, Path] = {}
    for path, table in parts:
        for text in table.ids.tolist():
            if text in seen:
                raise CacheError(
                    f"row {text!r} of {table.name} is in {seen[text]} and in {path}; a merge joins other "
                    "rows: leave one of the caches out, or extract it without these rows"
                )
            seen[text] = path


def _arrays_sha256(tables: Sequence[Table], labels: np.ndarray) -> str:
    """As `Cache.add` would make it of all rows at once."""
    state = hashlib.sha256()
    for table in tables:
        for _, block in table.stream():
            state.update(block.tobytes())
    state.update(np.asarray(labels, "<i4").tobytes())
    return state.hexdigest()


def _measured(tables: Sequence[Table]) -> dict[str, Any]:
    """The worst that was measured of a part, and beside it what was measured of each."""
    parts = [table.measured for table in tables]
    if not any(parts):
        return {}
    measured: dict[str, Any] = {"parts": parts}
    if purity := [part["purity"] for part in parts if isinstance(part.get("purity"), Mapping)]:
        measured["purity"] = max(purity, key=lambda found: found.get("max_relative", np.inf))
    if agreement := [part["agreement"] for part in parts if "agreement" in part]:
        measured["agreement"] = min(agreement, key=lambda found: found["min_cosine"])
    if any("failed" in part for part in parts):
        measured["failed"] = sum(part.get("failed", 0) for part in parts)
    return measured


class _Rows:
    """Rows of several tables counted as one.

    Args:
        tables: in order.
    """

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables = tables
        self._starts = [0, *accumulate(table.rows for table in tables)]

    def block(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows [start, stop) array by array, see `Table.stored`."""
        found = list(self._pieces(start, stop))
        return {name: np.concatenate([piece[name] for piece in found]) for name in found[0]}

    def _pieces(self, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        for table, first in zip(self._tables, self._starts, strict=False):
            begin, end = max(start - first, 0), min(stop - first, table.rows)
            if begin < end:
                yield table.stored(begin, end)
