"""The arrays of one sealed table, every byte checked against the seal the first time that it is handed out.

A chunk is hashed when a row of it is first asked for, ids and labels together, a draw by itself; after that
the same open table gives them without looking again. So nothing that is trained on or scored is unchecked, at
the price of one SHA-256 over what is read (docs/speed.md has the numbers).
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np

from spaner.cache import integrity
from spaner.cache.layout import CHECKSUM_BYTES, Store
from spaner.cache.manifest import FIRST, Manifest
from spaner.errors import Corrupt

AHEAD = 3
"""Chunks that are on their way while one is used."""


class SealedArrays:
    """Reads one table of a store.

    Args:
        where: "table of path", for messages.
        seal: as stored, its digest checked already.
    """

    def __init__(self, store: Store, manifest: Manifest, seal: dict[str, Any], where: str) -> None:
        self._store = store
        self._manifest = manifest
        self._seal = seal
        self._where = where
        self._checked: set[str | int] = set()  # parts of the seal by name, chunks by number
        self._checksums = np.empty((0, CHECKSUM_BYTES), np.uint8)
        self._expected: list[int] = []
        self._far_listing: dict[str, np.ndarray] = {}

    def expect(self, chunks: Iterable[int]) -> None:
        """Chunks whose rows are going to be read, in order: at an address they are fetched ahead."""
        self._expected = list(chunks) if self._store.far else []

    def listing(self, array: str) -> np.ndarray:
        """All of "labels" or "ids"."""
        if self._store.far:
            return self._fetched_listing(array)
        if "listing" not in self._checked:
            rows = self._manifest.rows
            found = integrity.array_sha256(self._store, self._manifest.table, ["labels", "ids"], rows)
            self._agree("listing", found, self._seal["listing"], "its listing")
        return self._all(array)

    def draw(self, name: str) -> np.ndarray:
        """Row numbers of a stored draw."""
        if f"draws/{name}" not in self._checked:
            found = integrity.draw_sha256(self._store, self._manifest.table, name)
            self._agree(f"draws/{name}", found, self._seal["draws"].get(name), f"its draw {name}")
        return self._all(f"draws/{name}")

    def status(self) -> np.ndarray:
        """Status of every row. The first schema has no hash of it but those of whole chunks."""
        if self._manifest.schema == FIRST:
            self._check(range(self._manifest.chunks))
        elif "status" not in self._checked:
            rows = self._manifest.rows
            found = integrity.array_sha256(self._store, self._manifest.table, ["status"], rows)
            self._agree("status", found, self._seal["status"], "its row status")
        return self._all("status")

    def rows(self, array: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of "features", "reason" or "stat"; a view of the file where that is possible."""
        size = self._manifest.chunk
        chunks = range(start // size, (stop - 1) // size + 1) if start < stop else range(0)
        if self._store.far and len(chunks) > 1:  # while a chunk that was fetched for its check is near
            self._expected = self._expected or list(chunks)
            borders = [start, *(chunk * size for chunk in chunks[1:]), stop]
            return np.concatenate([self.rows(array, *pair) for pair in pairwise(borders)])
        self._check(chunks)
        return self._store.read(self._manifest.table, array, start, stop)

    def _fetched_listing(self, array: str) -> np.ndarray:
        """Both arrays are checked together; the one that was not asked for stays until it is."""
        if array not in self._far_listing:
            arrays = {name: self._all(name) for name in ("labels", "ids")}
            found = integrity.chunk_checksum(*arrays.values()).hex()
            self._agree("listing", found, self._seal["listing"], "its listing")
            self._far_listing = arrays
        return self._far_listing.pop(array)

    def _all(self, array: str) -> np.ndarray:
        return self._store.read(self._manifest.table, array)

    def _check(self, chunks: range) -> None:
        for chunk in chunks:
            if chunk in self._checked and not self._store.far:  # what is fetched again is checked again
                continue
            self._ahead(chunk)
            if not len(self._checksums):
                self._read_checksums()
            found = integrity.stored_checksum(self._store, self._manifest, chunk)
            self._agree(chunk, found, self._checksums[chunk].tobytes(), f"chunk {chunk}")

    def _ahead(self, chunk: int) -> None:
        """Fetch all arrays of a chunk together, and the next ones that are expected."""
        behind = self._expected.index(chunk) + 1 if chunk in self._expected else 0
        coming = self._expected[behind : behind + AHEAD] if behind else []
        self._expected = self._expected[max(0, behind - 1) :]
        self._store.ahead(
            self._manifest.table, integrity.checked_arrays(self._manifest.schema), [chunk, *coming]
        )

    def _read_checksums(self) -> None:
        manifest = self._manifest
        found = integrity.array_sha256(self._store, manifest.table, ["checksum", "done"], manifest.chunks)
        self._agree("chunks", found, self._seal["chunks"], "the checksums of its chunks")
        self._checksums = np.array(self._all("checksum"))

    def _agree(self, part: str | int, found: str | bytes, sealed: str | bytes | None, what: str) -> None:
        if found != sealed:
            raise Corrupt(
                f"{self._where} is damaged: {what} differs from what was sealed; to mend it, type "
                f"`spaner cache repair {self._store.path}`"
            )
        self._checked.add(part)
