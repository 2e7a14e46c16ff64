"""Finds every flipped bit: each file of a cache is read once and compared with what its hashes promise.

A problem with a chunk number is repaired by encoding that chunk again; any other needs the whole table again.
Reads in blocks, so memory does not grow with the cache. It changes nothing.
"""

from dataclasses import dataclass
from typing import Any

from spaner.cache import seal
from spaner.cache.manifest import Manifest
from spaner.cache.store import Store
from spaner.errors import CacheError

AGAIN = "extract it again with --overwrite"
REPAIR = "run `spaner cache repair`"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        table: "modality/split", or "" for the cache itself.
        chunk: which chunk to encode again; None where that would not help.
        what: one line, with what to do.
    """

    table: str
    chunk: int | None
    what: str

    @property
    def repairable(self) -> bool:
        """Whether encoding a chunk again mends it."""
        return self.chunk is not None


def verify(store: Store, tables: list[str] | None = None) -> list[Problem]:
    """Every problem of a store's tables (default: all), and of the cache itself.

    Of a table that is not sealed only the metadata are checked: its rows are when work resumes.
    """
    found = [Problem("", chunk, what) for chunk, what in store.damage()]
    for table in store.tables() if tables is None else tables:
        found += _table(store, table)
    return found


def _table(store: Store, table: str) -> list[Problem]:
    try:
        attributes = store.attributes(table)
        manifest = Manifest.from_json(attributes.get("manifest"))
        sealed = set(attributes) != {"manifest"}
        if sealed:
            seal.check(f"{table} of {store.path}", attributes)
        broken = store.damage(table)
        if metadata := [what for chunk, what in broken if chunk is None]:
            return [Problem(table, None, f"{table}: {what}; {AGAIN}") for what in metadata]
        if not sealed:
            return []
    except CacheError as error:
        return [Problem(table, None, str(error))]
    chunks = {chunk: what for chunk, what in broken if chunk is not None} | _chunks(store, table, manifest)
    found = [Problem(table, n, f"{table} chunk {n}: {chunks[n]}; {REPAIR}") for n in sorted(chunks)]
    return found + _hashes(store, table, manifest, attributes["seal"], trust_chunks=not chunks)


def _chunks(store: Store, table: str, manifest: Manifest) -> dict[int, str]:
    found = {}
    for chunk in range(manifest.chunks):
        try:
            stored = store.read(table, "checksum", chunk, chunk + 1).tobytes()
            if store.read(table, "done", chunk, chunk + 1)[0] != 1:
                found[chunk] = "its done flag is not 1"
            elif stored != seal.stored_checksum(store, table, manifest.rows_of(chunk)):
                found[chunk] = "its rows differ from their checksum"
        except CacheError as error:
            found[chunk] = str(error)
    return found


def _hashes(
    store: Store, table: str, manifest: Manifest, sealed: dict[str, Any], *, trust_chunks: bool
) -> list[Problem]:
    now = {
        "draws": lambda: {name: seal.draw_sha256(store, table, name) for name in sorted(manifest.draws)},
        "listing": lambda: seal.array_sha256(store, table, ["labels", "ids"], manifest.rows),
    }
    if trust_chunks:  # else a chunk's own problem says why they differ, and repair seals again
        now["chunks"] = lambda: seal.array_sha256(store, table, ["checksum", "done"], manifest.chunks)
    found = []
    for part, recompute in now.items():
        try:
            what = "" if recompute() == sealed[part] else f"its {part} differ from the seal"
        except CacheError as error:
            what = str(error)
        if what:
            found.append(Problem(table, None, f"{table}: {what}; {AGAIN}"))
    return found
