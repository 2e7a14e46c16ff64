"""Are the files still those that the rows were made of?

When a row is encoded, size and time of its file are kept beside it, and with `--check content` the first 8
bytes of the file's SHA-256. When a table is continued or asked for again they are compared: a half-done table
encodes the chunks of changed files again, so that old and new rows never mix; a finished one is refused.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import file_digest
from pathlib import Path

import numpy as np
from jaxtyping import Int

from spaner.cache.cache import Cache, Writer
from spaner.errors import Mismatch
from spaner.extract.datasets.dataset import Split

SIZE, TIME, CONTENT = range(3)


class Watch:
    """Notes what each file looks like at the moment before it is opened.

    Attributes:
        split: the split to open samples through.
    """

    def __init__(self, split: Split, check: str) -> None:
        self._split = split
        self._content = check == "content"
        self._seen: dict[str, tuple[int, int, int]] = {}
        self.split = replace(split, open=self._open)

    def _open(self, key: str) -> object:
        self._seen[key] = self.now(key)
        return self._split.open(key)

    def now(self, key: str) -> tuple[int, int, int]:
        """Size, time and content of a sample's file; zeros where there is none, or it is not asked for."""
        found = self._split.stat(key)
        if found is None:
            return 0, 0, 0
        place = self._split.place
        return (*found, content(place(key)) if self._content and place else 0)

    def take(self, keys: Iterable[str]) -> Int[np.ndarray, "n 3"]:
        """What was noted of these samples, which is then forgotten."""
        return np.array([self._seen.pop(key, (0, 0, 0)) for key in keys], np.int64).reshape(-1, 3)


def content(path: Path) -> int:
    """The first 8 bytes of a file's SHA-256 as a number; 0 if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return int.from_bytes(file_digest(stream, "sha256").digest()[:8], "little", signed=True)
    except OSError:
        return 0


class Noted:
    """A writer that stores what the watch has noted along with the rows."""

    def __init__(self, writer: Writer, watch: Watch) -> None:
        self.manifest, self.pending = writer.manifest, list(writer.pending)
        self._writer, self._watch = writer, watch

    def rows(self, chunk: int) -> slice:
        """Row numbers of one chunk."""
        return self._writer.rows(chunk)

    def write(self, chunk: int, features: np.ndarray, /, *, reasons: dict[int, str]) -> None:
        """Store one chunk."""
        stat = self._watch.take(self._watch.split.ids[self.rows(chunk)])
        self._writer.write(chunk, features, reasons=reasons, stat=stat)


@dataclass(frozen=True)
class Changed:
    """Rows whose files differ from what they were when they were encoded.

    Attributes:
        surely: another size or content.
        maybe: another time only.
    """

    surely: list[int]
    maybe: list[int]


def compare(watch: Watch, first: int, stored: Int[np.ndarray, "n 3"]) -> Changed:
    """Rows `first` and following against their files now. What was not noted then cannot be compared."""
    surely, maybe = [], []
    for row, then in enumerate(stored.tolist(), first):
        if not any(then):
            continue
        now = watch.now(watch.split.ids[row])
        if now[SIZE] != then[SIZE] or (now[CONTENT] and then[CONTENT] and now[CONTENT] != then[CONTENT]):
            surely.append(row)
        elif now[TIME] != then[TIME] and not (now[CONTENT] and now[CONTENT] == then[CONTENT]):
            maybe.append(row)
    return Changed(surely, maybe)


def compare_table(cache: Cache, writer: Writer, watch: Watch) -> list[str]:
    """Let a half-done table encode the chunks of changed files again; what to say.

    Raises:
        Mismatch: the table is finished, and files have another size or content; the line names the first.
    """
    if writer.sealed:
        return _compare_sealed(cache, writer.manifest.table, watch)
    changed: list[int] = []
    for chunk in writer.finished:
        stored = writer.stat(chunk)
        if stored is not None:
            found = compare(watch, writer.rows(chunk).start, stored)
            changed += found.surely + found.maybe
    if not changed:
        return []
    chunks = sorted({row // writer.manifest.chunk for row in changed})
    writer.reset(chunks)
    return [
        f"{writer.manifest.table}: {_files(changed, watch)} changed since their rows were encoded; their "
        f"{len(chunks):,} chunks are encoded again"
    ]


def _compare_sealed(cache: Cache, table: str, watch: Watch) -> list[str]:
    stored = cache.table(table).stat()
    if stored is None:
        return []
    found = compare(watch, 0, stored)
    if found.surely:
        raise Mismatch(
            f"{table} of {cache.path}: {_files(found.surely, watch)} changed since their rows were encoded; "
            "encode them again with `--overwrite`, or keep the rows with `--check off`"
        )
    if not found.maybe:
        return []
    return [
        f"{table}: {_files(found.maybe, watch)} have another time than when their rows were encoded, and the "
        "same size; if they changed, type `--overwrite`"
    ]


def _files(rows: list[int], watch: Watch) -> str:
    return f"{len(rows):,} files (first {watch.split.ids[rows[0]]})"
