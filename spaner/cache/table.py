"""One sealed table, read lazily: opening it costs a few milliseconds whatever its size.

Blocks come as views of the mapped file where they can, so memory does not grow with the table and the bytes
are read once. They are read-only, and whatever is read is checked against the seal when it is first touched.
Rows of failed samples are zeros: drop them with `ok`.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Int32, UInt8

from spaner.cache import integrity
from spaner.cache.draws import few_shot
from spaner.cache.layout import FAILED, OK, Store, unpack
from spaner.cache.manifest import FIRST, Manifest
from spaner.cache.sealed import SealedArrays
from spaner.errors import CacheError, Corrupt


class Table:
    """N rows of V views of D numbers, with labels and ids. Made by `Cache.table`."""

    def __init__(self, store: Store, name: str, where: str) -> None:
        attributes = store.attributes(name)
        integrity.check_seal(where, attributes)
        self.name = name
        self.manifest = Manifest.from_json(attributes["manifest"])
        self.measured: dict[str, Any] = attributes["measured"]
        self._dtype = np.dtype(self.manifest.dtype)
        self._arrays = SealedArrays(store, self.manifest, attributes["seal"], where)
        self._where = where

    @property
    def rows(self) -> int:
        """N."""
        return self.manifest.rows

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the V views; for text, the templates."""
        return self.manifest.views

    @property
    def dim(self) -> int:
        """D."""
        return self.manifest.dim

    @cached_property
    def labels(self) -> Int32[np.ndarray, " N"]:
        """Class index of every row."""
        return np.array(self._arrays.listing("labels"), np.int32)

    @cached_property
    def ids(self) -> np.ndarray:
        """Id of every row, an array of str."""
        return unpack(self._arrays.listing("ids"))

    @cached_property
    def status(self) -> UInt8[np.ndarray, " N"]:
        """1 ok, 2 failed."""
        status = np.array(self._arrays.status(), np.uint8)
        if not np.isin(status, (OK, FAILED)).all():
            raise Corrupt(f"the row status of {self._where} is damaged; run `spaner cache verify`")
        return status

    @cached_property
    def ok(self) -> Bool[np.ndarray, " N"]:
        """True where a row holds an embedding."""
        return self.status == OK

    def failures(self) -> dict[str, str]:
        """Id -> reason, of the samples that could not be encoded."""
        rows = np.flatnonzero(self.status == FAILED).tolist()
        return {str(self.ids[row]): str(unpack(self._arrays.rows("reason", row, row + 1))[0]) for row in rows}

    def stat(self) -> Int[np.ndarray, "N 3"] | None:
        """Of the file behind every row, when it was encoded: size in bytes, time of its last change (ns since
        1970), first 8 bytes of its SHA-256 or 0; all 0 where there was no file. None in the first schema."""
        if self.manifest.schema == FIRST:
            return None
        return np.concatenate(
            [self._arrays.rows("stat", *self._span(chunk)) for chunk in range(self.manifest.chunks)]
        )

    def _span(self, chunk: int) -> tuple[int, int]:
        rows = self.manifest.rows_of(chunk)
        return rows.start, rows.stop

    def read(self, rows: slice | Int[np.ndarray, " n"] | None = None) -> Float[np.ndarray, "n V D"]:
        """Embeddings in the stored dtype, as they left the encoder (not normalised).

        Args:
            rows: a slice, row numbers in any order (repeats allowed), a mask, or None for all.

        Raises:
            IndexError: a row number outside the table.
            Corrupt: a file is missing or short, or what is read differs from its seal.
        """
        rows = slice(None) if rows is None else rows
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self.rows)
            if step == 1:
                return self._block(start, max(start, stop))
            rows = np.arange(start, stop, step)
        return self._gather(self._positions(np.asarray(rows)))

    def stored(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows [start, stop) array by array as they are stored, failed ones too: what checksums are taken of.

        Raises:
            Corrupt: a file is missing or short, or what is read differs from its seal.
        """
        arrays = integrity.checked_arrays(self.manifest.schema)
        return {name: self._arrays.rows(name, start, stop) for name in arrays}

    def stream(self, block: int | None = None) -> Iterator[tuple[slice, Float[np.ndarray, "n V D"]]]:
        """All rows in order, `block` at a time (default: a chunk, which needs no copy)."""
        step = block or self.manifest.chunk
        if step < 1:
            raise CacheError(f"block must be at least 1 row, found {block}")
        self._arrays.expect(range(self.manifest.chunks))
        for start in range(0, self.rows, step):
            rows = slice(start, min(start + step, self.rows))
            yield rows, self._block(rows.start, rows.stop)

    def draw(self, shots: int, seed: int, kind: str = "") -> Int[np.ndarray, " K"]:
        """Rows of the few-shot draw: the stored one, else computed from the labels (see `few_shot`).

        Args:
            kind: "equal" in a validation table: as many rows as train has, not min(shots, 4).

        Raises:
            CacheError: the table lacks rows, so that only its stored draws can be used.
        """
        name = f"{shots}-shot-seed-{seed}" + f"-{kind}" * bool(kind)
        if name in self.manifest.draws:
            return self.stored_draw(name)
        if self.manifest.complete:
            return few_shot(self.labels, shots, seed)
        stored = ", ".join(sorted(self.manifest.draws)) or "none"
        raise CacheError(
            f"{self._where} holds only the rows of its draws ({stored}), not {name}; "
            "use one of these or extract again with the shots and seeds you need"
        )

    def stored_draw(self, name: str) -> Int[np.ndarray, " K"]:
        """Rows of a draw by its name, one of `manifest.draws`."""
        return np.array(self._arrays.draw(name), np.int64)

    def _block(self, start: int, stop: int) -> np.ndarray:
        if start == stop:
            return np.empty((0, len(self.views), self.dim), self.manifest.dtype)
        return self._shaped(self._arrays.rows("features", start, stop), stop - start)

    def _shaped(self, block: np.ndarray, rows: int) -> np.ndarray:
        expected = (rows, len(self.views), self.dim)
        if block.shape != expected or block.dtype != self._dtype:
            raise Corrupt(
                f"features of {self._where} have shape {block.shape} and type {block.dtype}, its manifest "
                f"says {expected} {self.manifest.dtype}; run `spaner cache verify`"
            )
        return block

    def _positions(self, rows: np.ndarray) -> np.ndarray:
        if rows.dtype == bool:
            if rows.shape != (self.rows,):
                raise IndexError(f"a mask of {self._where} needs {self.rows} values, found {rows.shape}")
            return np.flatnonzero(rows)
        rows = rows.astype(np.int64, casting="safe" if rows.size else "unsafe")
        rows = np.where(rows < 0, rows + self.rows, rows)
        if rows.size and not 0 <= rows.min() <= rows.max() < self.rows:
            raise IndexError(f"{self._where} has rows 0 to {self.rows - 1}")
        return rows

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), len(self.views), self.dim), self.manifest.dtype)
        chunks = rows // self.manifest.chunk
        order = np.argsort(chunks, kind="stable")
        self._arrays.expect(np.unique(chunks).tolist())
        for chunk, places in _runs(chunks, order):
            span = self.manifest.rows_of(chunk)
            out[places] = self._block(span.start, span.stop)[rows[places] - span.start]
        return out


def _runs(keys: np.ndarray, order: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Positions grouped by key, keys ascending: [3, 1, 3] gives (1, [1]) and (3, [0, 2])."""
    if not len(order):
        return
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    for places in np.split(order, edges):
        yield int(keys[places[0]]), places
