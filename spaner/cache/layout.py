"""What a table consists of on disk: its arrays, text as fixed-width bytes, and the seam between the formats.

A text (an id, a failure reason) is its UTF-8 bytes padded with zeros to the width of the widest, which reads
fast in any language and needs no string type. A file name that is not valid UTF-8 keeps its bytes
(surrogateescape). A `Store` is reading only, because that is where the formats must agree: writing goes
through the Zarr store chunk by chunk, and `hdf5_store.write` makes an HDF5 file of finished tables at once.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int, UInt8

from spaner.cache.manifest import FIRST, Manifest
from spaner.errors import CacheError

REASON_BYTES = 160
PENDING, OK, FAILED = 0, 1, 2
LISTING_CHUNK = 65_536
CHECKSUM_BYTES = 32
AXES = {
    "features": ("row", "view", "feature"),
    "labels": ("row",),
    "ids": ("row", "id_byte"),
    "status": ("row",),
    "reason": ("row", "reason_byte"),
    "checksum": ("chunk", "checksum_byte"),
    "done": ("chunk",),
    "stat": ("row", "size_time_content"),
}
"""What xarray calls the axes; those of a draw have its name, as draws differ in length."""


class Damage(NamedTuple):
    """Something wrong with what is stored.

    Attributes:
        what: one line.
        part: "rows" of a chunk; "listing" (labels, ids, draws); "metadata" that the layout determines;
            "seal": the table's own metadata; "file": bytes of an HDF5 file; "stray": what does not belong.
        chunk: which one, where encoding a chunk again mends it.
    """

    what: str
    part: str = "metadata"
    chunk: int | None = None


class Store(Protocol):
    """A cache on disk, open for reading. `table` is "modality/split"; an array may be "draws/<name>".

    Attributes:
        far: its bytes come over a network, so that what is read twice is fetched twice.
    """

    path: Path
    far: bool

    def tables(self) -> list[str]:
        """Names of all tables, finished or not, sorted."""
        ...

    def attributes(self, table: str = "") -> dict[str, Any]:
        """JSON attributes of a table, or of the cache itself. Raises Corrupt if they do not parse."""
        ...

    def read(self, table: str, array: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows [start, stop) as a read-only view of the file where possible. Raises Corrupt."""
        ...

    def ahead(self, table: str, arrays: Sequence[str], chunks: Sequence[int]) -> None:
        """Begin to fetch what is going to be read, where that helps."""
        ...

    def damage(self, table: str = "") -> list["Damage"]:
        """What is wrong with bytes that are not values: metadata, padding, sizes. Empty when sound."""
        ...

    def close(self) -> None:
        """Release the files."""
        ...


@dataclass(frozen=True)
class ArraySpec:
    """Shape, type, chunk length and names of the axes of one array; chunks split the first axis only."""

    shape: tuple[int, ...]
    dtype: str
    chunk: int
    axes: tuple[str, ...] = ()

    @property
    def chunks(self) -> int:
        """Number of chunks, the last one padded with zeros to full length in Zarr."""
        return -(-self.shape[0] // self.chunk)

    @cached_property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of one chunk."""
        return (self.chunk, *self.shape[1:])

    @cached_property
    def stored(self) -> np.dtype:
        """The type as it is on disk: little-endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    @cached_property
    def chunk_bytes(self) -> int:
        """Size of one chunk."""
        return math.prod(self.chunk_shape) * self.stored.itemsize


def table_layout(manifest: Manifest, id_bytes: int, draws: dict[str, int]) -> dict[str, ArraySpec]:
    """Every array of a table. `draws` maps the name of a draw to its length. The first schema had neither
    `stat` nor names of axes."""
    n, rows, listed = manifest.chunk, manifest.rows, min(manifest.rows, LISTING_CHUNK)
    features = (rows, len(manifest.views), manifest.dim)
    arrays = {
        "features": ArraySpec(features, manifest.dtype, n),
        "labels": ArraySpec((rows,), "int32", listed),
        "ids": ArraySpec((rows, id_bytes), "uint8", listed),
        "status": ArraySpec((rows,), "uint8", n),
        "reason": ArraySpec((rows, REASON_BYTES), "uint8", n),
        "checksum": ArraySpec((manifest.chunks, CHECKSUM_BYTES), "uint8", 1),
        "done": ArraySpec((manifest.chunks,), "uint8", 1),
        "stat": ArraySpec((rows, 3), "int64", n),
    }
    arrays |= {f"draws/{name}": ArraySpec((size,), "int64", size) for name, size in draws.items()}
    if manifest.schema == FIRST:
        return {name: spec for name, spec in arrays.items() if name != "stat"}
    drawn = {name: (f"{name.removeprefix('draws/')} row",) for name in arrays}
    return {name: replace(spec, axes=AXES.get(name, drawn[name])) for name, spec in arrays.items()}


def stored_layout(store: Store, table: str, manifest: Manifest) -> dict[str, ArraySpec]:
    """Every array of a table that exists, with the two sizes that only the arrays know."""
    draws = {name: len(store.read(table, f"draws/{name}")) for name in sorted(manifest.draws)}
    return table_layout(manifest, store.read(table, "ids", 0, 1).shape[1], draws)


def encode(text: str) -> bytes:
    """UTF-8 of one id.

    Raises:
        CacheError: the text is empty, holds NUL or cannot be written as UTF-8.
    """
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise CacheError(f"id {text!r} cannot be written as UTF-8; rename the sample") from None
    if not data or b"\0" in data:
        raise CacheError(f"id {text!r} is empty or holds a NUL character; give every sample a printable id")
    return data


def pack(texts: Iterable[str]) -> UInt8[np.ndarray, "N L"]:
    """Ids as zero-padded rows of bytes."""
    packed = np.array([encode(text) for text in texts], dtype=np.bytes_)
    return packed.view(np.uint8).reshape(len(packed), -1)


def unpack(rows: UInt8[np.ndarray, "N L"]) -> np.ndarray:
    """The texts of `pack`, as a NumPy array of str."""
    rows = np.ascontiguousarray(rows)
    packed = rows.view(f"S{rows.shape[1]}")[:, 0]
    if rows.max(initial=0) < 128:  # ASCII needs no decoder, which is 30 times slower
        return packed.astype(np.str_)
    return np.char.decode(packed, "utf-8", "surrogateescape")


def pack_reason(text: str) -> UInt8[np.ndarray, " R"]:
    """One failure reason: a single line, cut at a character border to 160 bytes."""
    line = " ".join(text.replace("\0", " ").split()) or "no reason given"
    data = line.encode("utf-8", "replace")[:REASON_BYTES].decode("utf-8", "ignore").encode()
    return np.frombuffer(data.ljust(REASON_BYTES, b"\0"), np.uint8)


def ids_sha256(ids: Iterable[str]) -> str:
    """SHA-256 over the ids in order, each as UTF-8 followed by one NUL."""
    state = hashlib.sha256()
    for text in ids:
        state.update(encode(text) + b"\0")
    return state.hexdigest()


def drawn_sha256(ids: Sequence[str] | np.ndarray, rows: Int[np.ndarray, " K"]) -> str:
    """The hash that a manifest keeps of a draw: `ids_sha256` of the drawn ids."""
    return ids_sha256(str(ids[row]) for row in np.asarray(rows).tolist())
