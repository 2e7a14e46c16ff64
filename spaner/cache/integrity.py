"""The hashes that make a flipped bit visible, and the order they are taken in.

    chunk    SHA-256 of its rows' features, status and reason bytes, one after the other
    listing  SHA-256 of all labels, then all ids (as stored, with padding)
    draws    SHA-256 of each draw's row numbers
    chunks   SHA-256 of all chunk checksums, then all done flags
    digest   SHA-256 of the canonical JSON of manifest, measured facts and the four above

All bytes little-endian, C order. The digest alone is checked when a table is opened, which costs no reading;
`verify` reads every file once and compares the rest, in blocks, so that memory does not grow. Ids and labels
are not part of a chunk's checksum, so that a chunk that fails is one that encoding again repairs, and a
damaged listing is told apart from it.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from spaner.cache.layout import LISTING_CHUNK, Store
from spaner.cache.manifest import SCHEMA, Manifest, digest
from spaner.errors import CacheError, Corrupt

AGAIN = "extract it again with --overwrite"
REPAIR = "run `spaner cache repair`"


def chunk_checksum(features: np.ndarray, status: np.ndarray, reason: np.ndarray) -> bytes:
    """SHA-256 of one chunk: features (n, V, D), status (n,), reason (n, R)."""
    state = hashlib.sha256()
    for part in (features, status, reason):
        state.update(_bytes(part))
    return state.digest()


def stored_checksum(store: Store, table: str, rows: slice) -> bytes:
    """The checksum that a chunk's stored rows have now. Raises Corrupt if they cannot be read."""
    parts = [store.read(table, array, rows.start, rows.stop) for array in ("features", "status", "reason")]
    return chunk_checksum(*parts)


def array_sha256(store: Store, table: str, arrays: list[str], length: int) -> str:
    """SHA-256 of whole arrays one after the other, read in blocks."""
    state = hashlib.sha256()
    for array in arrays:
        for start in range(0, length, LISTING_CHUNK):
            state.update(_bytes(store.read(table, array, start, min(start + LISTING_CHUNK, length))))
    return state.hexdigest()


def make_seal(store: Store, table: str, manifest: Manifest, measured: dict[str, Any]) -> dict[str, Any]:
    """Everything that a seal holds, from what is stored. `store` may be unsealed."""
    hashes = {
        "chunks": array_sha256(store, table, ["checksum", "done"], manifest.chunks),
        "draws": {name: draw_sha256(store, table, name) for name in sorted(manifest.draws)},
        "listing": array_sha256(store, table, ["labels", "ids"], manifest.rows),
    }
    return hashes | {"digest": _digest(manifest.to_json(), measured, hashes)}


def draw_sha256(store: Store, table: str, name: str) -> str:
    """SHA-256 of one stored draw."""
    return hashlib.sha256(_bytes(store.read(table, f"draws/{name}"))).hexdigest()


def check_seal(where: str, attributes: dict[str, Any]) -> None:
    """Raise Corrupt unless the seal's digest fits the attributes it seals."""
    seal = attributes.get("seal")
    if not isinstance(seal, dict) or set(attributes) != {"manifest", "measured", "seal"}:
        raise Corrupt(f"the metadata of {where} is damaged; extract it again with --overwrite")
    hashes = {name: value for name, value in seal.items() if name != "digest"}
    if seal.get("digest") != _digest(attributes["manifest"], attributes["measured"], hashes):
        raise Corrupt(
            f"the metadata of {where} differs from its seal: a bit has flipped or it was edited; "
            "extract it again with --overwrite"
        )


def root_attributes(dataset: str, class_names: list[str]) -> dict[str, Any]:
    """Attributes of a cache, with their own digest."""
    attributes = {"schema": SCHEMA, "dataset": dataset, "class_names": list(class_names)}
    return attributes | {"digest": digest(attributes)}


def _digest(manifest: Any, measured: Any, hashes: dict[str, Any]) -> str:
    return digest({"manifest": manifest, "measured": measured, "seal": hashes})


def _bytes(rows: np.ndarray) -> memoryview:
    little = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data


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
            check_seal(f"{table} of {store.path}", attributes)
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
            elif stored != stored_checksum(store, table, manifest.rows_of(chunk)):
                found[chunk] = "its rows differ from their checksum"
        except CacheError as error:
            found[chunk] = str(error)
    return found


def _hashes(
    store: Store, table: str, manifest: Manifest, sealed: dict[str, Any], *, trust_chunks: bool
) -> list[Problem]:
    now = {
        "draws": lambda: {name: draw_sha256(store, table, name) for name in sorted(manifest.draws)},
        "listing": lambda: array_sha256(store, table, ["labels", "ids"], manifest.rows),
    }
    if trust_chunks:  # else a chunk's own problem says why they differ, and repair seals again
        now["chunks"] = lambda: array_sha256(store, table, ["checksum", "done"], manifest.chunks)
    found = []
    for part, recompute in now.items():
        try:
            what = "" if recompute() == sealed[part] else f"its {part} differ from the seal"
        except CacheError as error:
            what = str(error)
        if what:
            found.append(Problem(table, None, f"{table}: {what}; {AGAIN}"))
    return found
