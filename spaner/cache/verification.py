"""Reading every byte of a cache once: what is damaged, missing, unfinished, or no part of it.

A problem says what it is a problem of, since that decides who can mend it: rows by encoding a chunk again,
metadata from the layout alone, a listing from the data set, a file of sound tables by writing it again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spaner.cache import integrity, root
from spaner.cache.layout import Store
from spaner.cache.manifest import FIRST, Manifest
from spaner.cache.zarr_store import ZarrStore
from spaner.errors import CacheError

REPAIR = "run `spaner cache repair`"
AHEAD = 4  # chunks that are on their way together, where they come over a network


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        table: "modality/split", or "" for the cache itself.
        chunk: which chunk to encode again; None where that would not help.
        what: one line, with what to do.
        part: of what: "rows", "listing", "metadata", "seal", "file" or "stray" (see `layout.Damage`);
            "missing", a table that was here; "unfinished", a table that is not sealed.
    """

    table: str
    chunk: int | None
    what: str
    part: str = "rows"

    @property
    def repairable(self) -> bool:
        """Whether encoding a chunk again mends it."""
        return self.chunk is not None


def is_unsealed(attributes: dict[str, Any]) -> bool:
    """Whether these are the attributes of a table that is not finished; damaged ones are neither."""
    return "manifest" in attributes and not set(attributes) - {"manifest", "measured"}


def progress(store: Store, table: str, path: Path) -> str:
    """One line on how far an unsealed table of the cache at `path` is and how to continue it."""
    manifest = Manifest.from_json(store.attributes(table)["manifest"])
    try:
        done = np.flatnonzero(store.read(table, "done")).tolist()
    except CacheError:
        done = []
    spans = [manifest.rows_of(chunk) for chunk in done]
    rows = sum(span.stop - span.start for span in spans)
    return (
        f"{table} of {path} holds {rows:,} of {manifest.rows:,} rows; a table is read once it is "
        "complete and sealed; run the same `spaner extract` again to continue"
    )


def verify(store: Store, tables: list[str] | None = None) -> list[Problem]:
    """Every problem of a store's tables (default: all, and of the cache itself).

    Of a table that is not sealed only the metadata are checked: its rows are when work resumes.
    """
    there = store.tables()
    found = [] if tables is not None else _cache(store, there)
    for table in there if tables is None else tables:
        found += _table(store, table)
    return found


def _cache(store: Store, there: list[str]) -> list[Problem]:
    found = [Problem("", None, f"{each.what}; {REPAIR}", each.part) for each in store.damage()]
    try:
        attributes = store.attributes()
        listed = root.listed(store)
    except CacheError as error:
        return [*found, Problem("", None, f"{error}; {REPAIR}", "metadata")]
    for table in sorted(listed.keys() - set(there)):
        what = f"{table} of {store.path} is missing; run the same `spaner extract` again"
        found.append(Problem(table, None, what, "missing"))
    if attributes.get("schema") != FIRST:
        now = root.identities(dict.fromkeys(there, store))
        for table in sorted(name for name in now if listed.get(name) != now[name]):
            what = f"{table} is not the table that {store.path} lists under that name; {REPAIR}"
            found.append(Problem(table, None, what, "metadata"))
    if not root.is_sound(attributes):
        what = f"the metadata of {store.path} differ from their digest; {REPAIR}"
        found.append(Problem("", None, what, "metadata"))
    return found + _copies(store, attributes)


def _copies(store: Store, attributes: dict[str, Any]) -> list[Problem]:
    """Groups of modalities of a Zarr cache that do not hold what its root says."""
    if not isinstance(store, ZarrStore) or not root.is_sound(attributes):
        return []
    groups = sorted({name.split("/")[0] for name in store.tables()})
    damaged = [group for group in groups if not root.holds(store, group, root.copy_of(attributes))]
    what = "is damaged: it differs from the metadata of the cache"
    return [
        Problem("", None, f"{store.path / group / 'zarr.json'} {what}; {REPAIR}", "metadata")
        for group in damaged
    ]


def _table(store: Store, table: str) -> list[Problem]:
    try:
        attributes = store.attributes(table)
        manifest = Manifest.from_json(attributes.get("manifest"))
        unsealed = is_unsealed(attributes)
        if not unsealed:
            integrity.check_seal(f"{table} of {store.path}", attributes)
    except CacheError as error:
        return [Problem(table, None, str(error), "seal")]
    broken = store.damage(table)
    found = [
        Problem(table, None, f"{table}: {each.what}" + f"; {REPAIR}" * (each.part != "stray"), each.part)
        for each in broken
        if each.chunk is None
    ]
    if any(each.part == "metadata" for each in found):
        return found  # what these files describe cannot be read
    if unsealed:
        return [*found, Problem(table, None, progress(store, table, store.path), "unfinished")]
    chunks = {each.chunk: each.what for each in broken if each.chunk is not None}
    chunks |= damaged_chunks(store, manifest)
    found += [Problem(table, n, f"{table} chunk {n}: {chunks[n]}; {REPAIR}") for n in sorted(chunks)]
    return found + _hashes(store, manifest, attributes["seal"], trust_chunks=not chunks)


def damaged_chunks(store: Store, manifest: Manifest) -> dict[int, str]:
    """Chunk -> what is wrong with it."""
    found, table = {}, manifest.table
    arrays = ("checksum", "done", *integrity.checked_arrays(manifest.schema))
    for chunk in range(manifest.chunks):
        store.ahead(table, arrays, range(manifest.chunks)[chunk : chunk + AHEAD])
        try:
            stored = store.read(table, "checksum", chunk, chunk + 1).tobytes()
            if store.read(table, "done", chunk, chunk + 1)[0] != 1:
                found[chunk] = "its done flag is not 1"
            elif stored != integrity.stored_checksum(store, manifest, chunk):
                found[chunk] = "its rows differ from their checksum"
        except CacheError as error:
            found[chunk] = str(error)
    return found


def _hashes(store: Store, manifest: Manifest, sealed: dict[str, Any], *, trust_chunks: bool) -> list[Problem]:
    table = manifest.table
    now = {
        "draws": lambda: {name: integrity.draw_sha256(store, table, name) for name in sorted(manifest.draws)},
        "listing": lambda: integrity.array_sha256(store, table, ["labels", "ids"], manifest.rows),
    }
    if trust_chunks:  # else a chunk's own problem says why they differ, and repair seals again
        now["chunks"] = lambda: integrity.array_sha256(store, table, ["checksum", "done"], manifest.chunks)
    found = []
    for part, recompute in now.items():
        try:
            what = "" if recompute() == sealed[part] else f"its {part} differ from the seal"
        except CacheError as error:
            what = str(error)
        if what:
            kind = "seal" if part == "chunks" else "listing"
            found.append(Problem(table, None, f"{table}: {what}; {REPAIR}", kind))
    return found
