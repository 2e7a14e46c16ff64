"""The hashes that make a flipped bit visible, and the order they are taken in.

    chunk    SHA-256 of its rows' features, status, reason and stat bytes, one after the other
    listing  SHA-256 of all labels, then all ids (as stored, with padding)
    draws    SHA-256 of each draw's row numbers
    status   SHA-256 of the status of all rows
    chunks   SHA-256 of all chunk checksums, then all done flags
    digest   SHA-256 of the canonical JSON of manifest, measured facts and the five above

The first schema had neither `stat` nor the hash of the status. All bytes little-endian, C order. The digest
alone is checked when a table is opened, which costs no reading; what is read later is checked by
`sealed.SealedArrays`, and `verify` reads every file once, in blocks, so that memory does not grow. Ids and
labels are not part of a chunk's checksum, so that a chunk that fails is one that encoding again repairs, and
a damaged listing is told apart from it.
"""

import hashlib
from typing import Any

import numpy as np

from spaner.cache.layout import LISTING_CHUNK, Store
from spaner.cache.manifest import FIRST, Manifest, digest
from spaner.errors import Corrupt

AGAIN = "run the same `spaner extract` again, which mends it"


def checked_arrays(schema: str) -> tuple[str, ...]:
    """The arrays that a chunk's checksum is taken of, in order."""
    return ("features", "status", "reason") + (() if schema == FIRST else ("stat",))


def chunk_checksum(*parts: np.ndarray) -> bytes:
    """SHA-256 of one chunk: features (n, V, D), status (n,), reason (n, R), and stat (n, 3)."""
    state = hashlib.sha256()
    for part in parts:
        state.update(bytes_of(part))
    return state.digest()


def stored_checksum(store: Store, manifest: Manifest, chunk: int) -> bytes:
    """The checksum that a chunk's stored rows have now. Raises Corrupt if they cannot be read."""
    rows, arrays = manifest.rows_of(chunk), checked_arrays(manifest.schema)
    return chunk_checksum(*(store.read(manifest.table, each, rows.start, rows.stop) for each in arrays))


def array_sha256(store: Store, table: str, arrays: list[str], length: int) -> str:
    """SHA-256 of whole arrays one after the other, read in blocks."""
    state = hashlib.sha256()
    for array in arrays:
        for start in range(0, length, LISTING_CHUNK):
            state.update(bytes_of(store.read(table, array, start, min(start + LISTING_CHUNK, length))))
    return state.hexdigest()


def make_seal(store: Store, table: str, manifest: Manifest, measured: dict[str, Any]) -> dict[str, Any]:
    """Everything that a seal holds, from what is stored. `store` may be unsealed."""
    hashes = {
        "chunks": array_sha256(store, table, ["checksum", "done"], manifest.chunks),
        "draws": {name: draw_sha256(store, table, name) for name in sorted(manifest.draws)},
        "listing": array_sha256(store, table, ["labels", "ids"], manifest.rows),
    }
    if manifest.schema != FIRST:
        hashes["status"] = array_sha256(store, table, ["status"], manifest.rows)
    return hashes | {"digest": _digest(manifest.to_json(), measured, hashes)}


def draw_sha256(store: Store, table: str, name: str) -> str:
    """SHA-256 of one stored draw."""
    return hashlib.sha256(bytes_of(store.read(table, f"draws/{name}"))).hexdigest()


def check_seal(where: str, attributes: dict[str, Any]) -> None:
    """Raise Corrupt unless the seal's digest fits the attributes it seals."""
    seal = attributes.get("seal")
    if not isinstance(seal, dict) or set(attributes) != {"manifest", "measured", "seal"}:
        raise Corrupt(f"the metadata of {where} is damaged; {AGAIN}")
    hashes = {name: value for name, value in seal.items() if name != "digest"}
    if seal.get("digest") != _digest(attributes["manifest"], attributes["measured"], hashes):
        raise Corrupt(
            f"the metadata of {where} differs from its seal: a bit has flipped or it was edited; {AGAIN}"
        )


def _digest(manifest: Any, measured: Any, hashes: dict[str, Any]) -> str:
    return digest({"manifest": manifest, "measured": measured, "seal": hashes})


def bytes_of(rows: np.ndarray) -> memoryview:
    little = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data
