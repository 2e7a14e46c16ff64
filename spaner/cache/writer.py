"""Fills one table chunk by chunk so that neither a kill nor a power cut costs more than what was in flight.

Order: rows, until they are on the disk with the folders that name them; then checksums, then done flags, then
the seal, each waited for. The waiting is done for what came together: a chunk by itself where an encoder
takes its time, some 32 MiB of chunks where arrays are copied. A chunk that is flagged done is hashed again
when work resumes, and redone if it does not match.
Several processes may fill one table, worker r of W taking chunks r, r + W, …; whoever finishes last seals.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int, UInt8

from spaner.cache import files, integrity
from spaner.cache.layout import FAILED, OK, REASON_BYTES, pack_reason, unpack
from spaner.cache.manifest import Manifest
from spaner.cache.zarr_store import PER_CHUNK, ZarrStore
from spaner.errors import CacheError, Corrupt, SpanerError, Unsealed

BATCH_BYTES, BATCH_SECONDS = 1 << 25, 0.25  # rows that wait for the disk together


class Writer:
    """Made by `Cache.begin`; use it as a context manager, which ends the lock.

    Attributes:
        manifest: the table's identity.
        mine: chunks of this worker, done or not.
        pending: chunks of this worker that are not done yet, in order.
    """

    def __init__(
        self,
        store: ZarrStore,
        manifest: Manifest,
        release: Callable[[], None],
        *,
        guard: Callable[[], AbstractContextManager[Any]] = nullcontext,
        worker: tuple[int, int] = (0, 1),
        reopen: Callable[[list[int]], None] | None = None,
    ) -> None:
        self.manifest = manifest
        self._store = store
        self._table = manifest.table
        self._release = release
        self._guard = guard  # held while the table's own metadata change: two workers may try to seal at once
        self._reopen = reopen  # brings a table that is published elsewhere back, without these chunks
        self.mine = range(worker[0], manifest.chunks, worker[1])
        self._written: dict[int, tuple[bytes, list[Path]]] = {}  # not settled: checksum, files
        self._bytes, self._settled = 0, time.monotonic()
        self._clear()
        self.pending = [] if self.sealed else self._not_done()

    @property
    def sealed(self) -> bool:
        """Whether the table is finished, so that nothing is left to write."""
        return self._reopen is not None or "seal" in self._store.attributes(self._table)

    @property
    def complete(self) -> bool:
        """Whether every chunk is written, those of other workers too."""
        if self._written:
            self._settle()
        return self.sealed or bool(self._store.read(self._table, "done").all())

    @property
    def finished(self) -> list[int]:
        """Chunks of this worker that are written, where the table as a whole is not finished."""
        return [] if self.sealed else [chunk for chunk in self.mine if chunk not in self.pending]

    def rows(self, chunk: int) -> slice:
        """Row numbers of one chunk."""
        return self.manifest.rows_of(chunk)

    def write(
        self,
        chunk: int,
        features: Float[np.ndarray, "n V D"],
        status: UInt8[np.ndarray, " n"] | None = None,
        reasons: dict[int, str] | None = None,
        stat: Int[np.ndarray, "n 3"] | None = None,
    ) -> None:
        """Store one pending chunk.

        Args:
            features: raw embeddings, cast to the table's dtype; rows of failed samples become zeros.
            status: 1 ok, 2 failed; default: failed where `reasons` says why, else ok.
            reasons: row within the chunk -> why it failed.
            stat: of the file behind each row, see `Table.stat`.

        Raises:
            Corrupt: a row that should be ok holds NaN or infinity.
            CacheError: the chunk is not pending, wrong shape or status, or the disk is full.
        """
        self._refuse_written(chunk)
        reasons = reasons or {}
        rows = self._cast(chunk, features)
        status = self._statuses(len(rows), status, reasons)
        rows[status == FAILED] = 0
        self._refuse_nan(chunk, rows)
        reason = np.zeros((len(rows), REASON_BYTES), np.uint8)
        for row in np.flatnonzero(status == FAILED):
            reason[row] = pack_reason(reasons.get(int(row), ""))
        stat = np.zeros((len(rows), 3), np.int64) if stat is None else np.asarray(stat, np.int64)
        self._put(chunk, {"features": rows, "status": status, "reason": reason, "stat": stat})

    def take(self, chunk: int, stored: Mapping[str, np.ndarray]) -> None:
        """Store one pending chunk bit by bit as its rows are stored elsewhere, see `Table.stored`.

        Raises:
            CacheError: the chunk is not pending, wrong shape, or the disk is full.
        """
        self._refuse_written(chunk)
        self._put(chunk, dict(stored) | {"features": self._cast(chunk, stored["features"])})

    def _refuse_written(self, chunk: int) -> None:
        if chunk not in self.pending:
            raise CacheError(f"chunk {chunk} of {self._table} is not waiting to be written; reset it first")

    def _put(self, chunk: int, arrays: dict[str, np.ndarray]) -> None:
        store, table = self._store, self._table
        store.clear_chunk(table, "done", chunk)
        parts = {name: arrays[name] for name in integrity.checked_arrays(self.manifest.schema)}
        absent = [name for name in ("reason", "stat") if name in parts and not parts[name].any()]
        changed = [(name, chunk, None if name in absent else rows) for name, rows in parts.items()]
        made = store.write_chunks(table, changed)
        self._written[chunk] = integrity.chunk_checksum(*parts.values()), made
        self._bytes += arrays["features"].nbytes
        if self._bytes >= BATCH_BYTES or time.monotonic() - self._settled >= BATCH_SECONDS:
            self._settle()
        self.pending = [other for other in self.pending if other != chunk]

    def _settle(self) -> None:
        """Wait for the rows written so far, then say that they are done."""
        store, written = self._store, self._written
        files.settle(file for _, made in written.values() for file in made)
        sums = [
            ("checksum", chunk, np.frombuffer(checksum, np.uint8)[None])
            for chunk, (checksum, _) in written.items()
        ]
        files.settle(store.write_chunks(self._table, sums))
        store.write_chunks(self._table, [("done", chunk, np.ones(1, np.uint8)) for chunk in written])
        self._written, self._bytes, self._settled = {}, 0, time.monotonic()

    def reset(self, chunks: Iterable[int]) -> None:
        """Reopen chunks. The table is unsealed first, so that a kill leaves it unfinished, never wrong.

        Raises:
            CacheError: a chunk number that the table does not have.
        """
        again = sorted(set(chunks))
        if outside := [chunk for chunk in again if chunk not in self.mine]:
            raise CacheError(f"{self._table} has chunks 0 to {self.manifest.chunks - 1}, asked for {outside}")
        if not again:
            return
        if self._reopen is not None:
            self._reopen(again)
            self._reopen = None
        elif self.sealed:
            attributes = dict(self._store.attributes(self._table))
            del attributes["seal"]  # what was measured stays, for whoever seals it again
            with self._guard():
                self._store.set_attributes(self._table, attributes)
        for chunk in again:
            self._store.clear_chunk(self._table, "done", chunk)
        self.pending = sorted({*self.pending, *again})

    def seal(self, measured: dict[str, Any] | None = None) -> bool:
        """Finish the table; one that is sealed already stays as it is.

        Args:
            measured: facts found while extracting, e.g. purity. They are not part of the identity.

        Returns:
            False if other workers still have chunks to write; the last of them seals.

        Raises:
            Unsealed: this writer's own chunks are not all written.
        """
        if self.sealed:
            return True
        if self.pending:
            left = ", ".join(map(str, self.pending[:5])) + (", …" if len(self.pending) > 5 else "")
            raise Unsealed(
                f"{self._table} cannot be sealed: {len(self.pending)} of {self.manifest.chunks} chunks are "
                f"not written ({left}); write them first"
            )
        if not self.complete:
            return False
        with self._guard():
            if not self.sealed:
                self._seal(measured or {})
        return True

    def _seal(self, measured: dict[str, Any]) -> None:
        attributes = {"manifest": self.manifest.to_json(), "measured": measured}
        attributes["seal"] = integrity.make_seal(self._store, self._table, self.manifest, measured)
        if not self._store.far:
            done = self._store.path / self._table / "done"
            files.settle(file for file in done.iterdir() if file.name[0] == "c")
            files.clear(done.parent)  # whoever else began to seal has died
        self._store.set_attributes(self._table, attributes)

    def read(self, rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n V D"]:
        """Rows as they are stored so far, to be checked before sealing; those of pending chunks are zeros."""
        stored = [self._store.read(self._table, "features", int(row), int(row) + 1) for row in rows]
        return np.concatenate(stored)

    def failed(self) -> list[int]:
        """Rows recorded as failed so far, in this process or another one."""
        return np.flatnonzero(self._store.read(self._table, "status") == FAILED).tolist()

    def failures(self, chunks: Sequence[int] | None = None) -> dict[str, str]:
        """Id -> reason, of the samples recorded as failed so far; of these chunks only, if given."""
        found = {}
        for row in self.failed():
            if chunks is not None and row // self.manifest.chunk not in chunks:
                continue
            name, why = (
                unpack(self._store.read(self._table, what, row, row + 1))[0] for what in ("ids", "reason")
            )
            found[str(name)] = str(why)
        return found

    @property
    def measured(self) -> dict[str, Any] | None:
        """What was measured before the table was opened again for repair; None if it never was finished."""
        return self._store.attributes(self._table).get("measured")

    def stat(self, chunk: int) -> Int[np.ndarray, "n 3"] | None:
        """Of the files behind a chunk's rows, when they were encoded; None in the first schema."""
        if "stat" not in integrity.checked_arrays(self.manifest.schema):
            return None
        rows = self.rows(chunk)
        return self._store.read(self._table, "stat", rows.start, rows.stop)

    def close(self) -> None:
        """Release the table. What is written stays, and `Cache.begin` continues from it."""
        try:
            if self._written:
                self._settle()
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        with suppress(*(() if error is None else (SpanerError,))):  # the first complaint counts
            self.close()

    # -- checks ----------------------------------------------------------------------------------

    def _clear(self) -> None:
        """Delete what writers of these chunks left behind when they were killed."""
        if self._reopen is not None or self.sealed:
            return
        for array in PER_CHUNK:
            files.clear(self._store.path / self._table / array, chosen=self._is_left)

    def _is_left(self, name: str) -> bool:
        chunk = re.match(r"c\.(\d+)", name)
        return chunk is not None and int(chunk[1]) in self.mine

    def _not_done(self) -> list[int]:
        """Chunks of this worker that are to be written. An object is whole when it is there, so that at an
        address flag and size are enough, and nothing that was sent is fetched."""
        if not self._store.far:
            return [chunk for chunk in self.mine if not self._is_done(chunk)]
        done = self._store.read(self._table, "done")
        sent = self._store.sent(self._table, "features") if done.any() else set()
        return [chunk for chunk in self.mine if not (done[chunk] and chunk in sent)]

    def _is_done(self, chunk: int) -> bool:
        store, table = self._store, self._table
        try:
            if store.read(table, "done", chunk, chunk + 1)[0] != 1:
                return False
            stored = store.read(table, "checksum", chunk, chunk + 1).tobytes()
            if stored == integrity.stored_checksum(store, self.manifest, chunk):
                return True
        except Corrupt:
            pass
        store.clear_chunk(table, "done", chunk)
        return False

    def _cast(self, chunk: int, features: np.ndarray) -> np.ndarray:
        rows = self.rows(chunk)
        expected = (rows.stop - rows.start, len(self.manifest.views), self.manifest.dim)
        features = np.asarray(features)
        if features.shape != expected:
            raise CacheError(
                f"chunk {chunk} of {self._table} has shape {features.shape}, expected {expected} "
                "(rows, views, dim); check the encoder's output"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            return features.astype(self.manifest.dtype)

    def _statuses(self, rows: int, status: np.ndarray | None, reasons: dict[int, str]) -> np.ndarray:
        if status is None:
            status = np.full(rows, OK, np.uint8)
            status[list(reasons)] = FAILED
        status = np.asarray(status, np.uint8)
        if status.shape != (rows,) or not np.isin(status, (OK, FAILED)).all():
            raise CacheError(
                f"status must be {rows} values of 1 (ok) or 2 (failed), found {status[:8].tolist()}"
            )
        return status

    def _refuse_nan(self, chunk: int, rows: np.ndarray) -> None:
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=(1, 2)))
        if len(bad):
            first = self.rows(chunk).start + bad[:3]
            names = [str(unpack(self._store.read(self._table, "ids", row, row + 1))[0]) for row in first]
            raise Corrupt(
                f"{len(bad)} rows of {self._table} hold NaN or infinity in {self.manifest.dtype}, "
                f"first {', '.join(names)}; mark them failed, or use a wider dtype"
            )
