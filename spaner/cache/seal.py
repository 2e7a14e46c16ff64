"""The hashes that make a flipped bit visible, and the order they are taken in.

    chunk    SHA-256 of its rows' features, status and reason bytes, one after the other
    listing  SHA-256 of all labels, then all ids (as stored, with padding)
    draws    SHA-256 of each draw's row numbers
    chunks   SHA-256 of all chunk checksums, then all done flags
    digest   SHA-256 of the canonical JSON of manifest, measured facts and the four above

All bytes little-endian, C order. The digest alone is checked when a table is opened, which costs no reading;
`verify` checks the rest. Ids and labels are not part of a chunk's checksum, so that a chunk that fails is
one that encoding again repairs, and a damaged listing is told apart from it.
"""

import hashlib
from typing import Any

import numpy as np

from spaner.cache.manifest import SCHEMA, Manifest, digest
from spaner.cache.store import LISTING_CHUNK, Store
from spaner.errors import Corrupt


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


def make(store: Store, table: str, manifest: Manifest, measured: dict[str, Any]) -> dict[str, Any]:
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


def check(where: str, attributes: dict[str, Any]) -> None:
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
