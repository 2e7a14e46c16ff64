"""The seam between tables and the two formats: what a store answers, and which arrays a table has.

A `Store` is reading only, because that is where the formats must agree. Writing goes through the Zarr
store chunk by chunk, and `hdf5_store.write` makes an HDF5 file of finished tables in one pass.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from spaner.cache.listing import REASON_BYTES
from spaner.cache.manifest import Manifest

PENDING, OK, FAILED = 0, 1, 2
LISTING_CHUNK = 65_536
CHECKSUM_BYTES = 32


class Store(Protocol):
    """A cache on disk, open for reading. `table` is "modality/split"; an array may be "draws/<name>"."""

    path: Path

    def tables(self) -> list[str]:
        """Names of all tables, finished or not, sorted."""
        ...

    def attributes(self, table: str = "") -> dict[str, Any]:
        """JSON attributes of a table, or of the cache itself. Raises Corrupt if they do not parse."""
        ...

    def read(self, table: str, array: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows [start, stop) as a read-only view of the file where possible. Raises Corrupt."""
        ...

    def damage(self, table: str = "") -> list[tuple[int | None, str]]:
        """What is wrong with bytes that are not values: metadata, padding, sizes. Empty when sound.

        Each is (chunk that encoding again would mend, or None; one line).
        """
        ...

    def close(self) -> None:
        """Release the files."""
        ...


@dataclass(frozen=True)
class ArraySpec:
    """Shape, type and chunk length of one array; chunks split the first axis only."""

    shape: tuple[int, ...]
    dtype: str
    chunk: int

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


def layout(manifest: Manifest, id_bytes: int, draws: dict[str, int]) -> dict[str, ArraySpec]:
    """Every array of a table. `draws` maps the name of a draw to its length."""
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
    }
    return arrays | {f"draws/{name}": ArraySpec((size,), "int64", size) for name, size in draws.items()}


def stored_layout(store: Store, table: str, manifest: Manifest) -> dict[str, ArraySpec]:
    """Every array of a table that exists, with the two sizes that only the arrays know."""
    draws = {name: len(store.read(table, f"draws/{name}")) for name in sorted(manifest.draws)}
    return layout(manifest, store.read(table, "ids", 0, 1).shape[1], draws)
