"""A cache as one HDF5 file, written in one pass from finished tables and read in place.

HDF5 cannot promise what is on disk when a process is killed while it writes, so a file is never changed:
`write` makes a new one beside it and renames. The first 512 bytes, which HDF5 leaves to the user, hold the
schema, the length and the SHA-256 of everything after them, so that a flip in any byte is found.
Features are contiguous in the file and come as views of its mapping.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from spaner.cache import files
from spaner.cache.layout import ArraySpec, Damage, Store, stored_layout
from spaner.cache.manifest import Manifest, canonical
from spaner.errors import CacheError, Corrupt

HEADER = 512
BLOCK = 1 << 22
WRITE = 1 << 24  # bytes at once: in large writes the system keeps large pages, which are read faster
VERSION = ("v110", "v110")  # fixed, so that the bytes do not follow the library's newest format


def header(schema: str, size: int, sha256: str) -> bytes:
    """The only first 512 bytes that a file of `size` bytes may have."""
    text = f"{schema}\nbytes {size}\nsha256 {sha256}\n"
    return text.encode().ljust(HEADER, b"\0")


class Hdf5Store:
    """Reads one cache file; see `layout.Store`.

    Raises:
        Corrupt: the file is shorter than its first bytes say, or HDF5 cannot open it.
    """

    far = False

    def __init__(self, path: Path) -> None:
        self.path = path
        _check_length(path)
        try:
            self._file: Any = h5py.File(path, "r")
        except (OSError, RuntimeError) as error:
            raise Corrupt(
                f"{path} is damaged: {_first_line(error)}; copy it again, or delete it and run the same "
                "`spaner extract` again, which starts anew"
            ) from error
        with path.open("rb") as stream:
            self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._arrays: dict[str, Any] = {}

    def __reduce__(self) -> tuple[type["Hdf5Store"], tuple[Path]]:
        """Another process opens the file by its path."""
        return Hdf5Store, (self.path.absolute(),)

    def tables(self) -> list[str]:
        try:
            return sorted(f"{group}/{name}" for group, members in self._file.items() for name in members)
        except Exception as error:
            raise self._corrupt("its list of tables", error) from error

    def attributes(self, table: str = "") -> dict[str, Any]:
        try:
            stored = self._file["/" + table].attrs
            return {name: json.loads(stored[name].tobytes()) for name in sorted(stored)}
        except Exception as error:
            raise self._corrupt(f"the metadata of {table or 'the cache'}", error) from error

    def read(self, table: str, array: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        name = f"{table}/{array}"
        try:
            if name not in self._arrays:
                self._arrays[name] = self._mapped(self._file[name])
            return self._arrays[name][start:stop]
        except Exception as error:
            raise self._corrupt(f"{array} of {table}", error) from error

    def _mapped(self, data: Any) -> Any:
        """The whole array as a view of the file; a chunked one, whose parts may be absent, stays HDF5's."""
        offset = data.id.get_offset()
        if offset is None:
            return data
        return np.frombuffer(self._bytes, data.dtype, data.size, offset).reshape(data.shape)

    def ahead(self, table: str, arrays: Sequence[str], chunks: Sequence[int]) -> None:
        """Nothing: the file is mapped."""

    def damage(self, table: str = "") -> list[Damage]:
        if table:
            return []  # the file has one hash for all tables
        with self.path.open("rb") as stream:
            first, size, sha256 = stream.read(HEADER), self.path.stat().st_size, _hash_rest(stream)
        if first == header(self.attributes().get("schema", ""), size, sha256):
            return []
        return [Damage(f"{self.path} differs from the SHA-256 in its first {HEADER} bytes", "file")]

    def close(self) -> None:
        self._arrays.clear()
        self._file.close()

    def _corrupt(self, what: str, error: Exception) -> CacheError:
        """What to raise instead of whatever h5py stumbled on, which has no common base."""
        if not self._file:
            return CacheError(f"{self.path} is closed; read from it before closing the cache")
        return Corrupt(
            f"{self.path} is damaged in {what}: {_first_line(error)}; copy it again, or delete it and run "
            "the same `spaner extract` again, which starts anew"
        )


class _Sink:
    """The file that HDF5 writes into. It keeps the first refusal of the disk and swallows what follows:
    HDF5 takes the whole process down when it cannot write while closing a file."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._error: OSError | None = None
        self.read, self.seek, self.tell, self.truncate = stream.read, stream.seek, stream.tell, self._truncate

    def write(self, data: memoryview) -> int:
        rest = memoryview(data)
        try:
            while rest and self._error is None:
                rest = rest[self._stream.write(rest) :]
        except OSError as error:
            self._error = error
        return len(data)

    def readinto(self, buffer: memoryview) -> int:
        return self._stream.readinto(buffer) if self._error is None else len(buffer)  # pyright: ignore

    def _truncate(self, size: int) -> int:
        try:
            return self._stream.truncate(size) if self._error is None else size
        except OSError as error:
            self._error = error
            return size

    def flush(self) -> None:
        """Nothing is held back."""

    def check(self) -> None:
        """Raise what the disk refused."""
        if self._error is not None:
            raise self._error


def is_hdf5(path: Path) -> bool:
    """Whether a name asks for HDF5."""
    return path.suffix in (".h5", ".hdf5")


def write(path: Path, attributes: dict[str, Any], tables: Iterable[tuple[str, Store]]) -> None:
    """Make (or replace) a cache file of sealed tables, in one step.

    Raises:
        CacheError: the disk is full or the folder cannot be written.
    """
    temporary = files.temporary(path)
    with files.writing(path):
        try:
            with temporary.open("x+b", buffering=0) as stream:
                sink = _Sink(stream)
                with h5py.File(sink, "w", userblock_size=HEADER, libver=VERSION) as file:
                    _set_attributes(file, attributes)
                    for name, store in sorted(tables, key=lambda item: item[0]):
                        _copy_table(file, name, store)
                sink.check()
            _finish(temporary, attributes["schema"])
            temporary.replace(path)
            files.settle([path])
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _copy_table(file: h5py.File, name: str, store: Store) -> None:
    attributes = store.attributes(name)
    group = file.create_group(name)
    _set_attributes(group, attributes)
    manifest = Manifest.from_json(attributes["manifest"])
    for array, spec in stored_layout(store, name, manifest).items():
        _copy_array(group, array, spec, store)


def _copy_array(group: h5py.Group, array: str, spec: ArraySpec, store: Store) -> None:
    sparse = array in ("reason", "stat")  # mostly zeros, or all: such chunks take no space
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    data = group.create_dataset(array, spec.shape, dtype, chunks=spec.chunk_shape if sparse else None)
    step = spec.chunk if sparse else spec.chunk * max(1, WRITE // spec.chunk_bytes)
    for start in range(0, spec.shape[0], step):
        block = store.read(str(group.name).strip("/"), array, start, start + step)
        if not sparse or block.any():
            data[start : start + len(block)] = block


def _set_attributes(group: h5py.Group, attributes: dict[str, Any]) -> None:
    for name, value in sorted(attributes.items()):
        text = canonical(value).encode("utf-8", "surrogatepass")
        group.attrs.create(name, np.bytes_(text), dtype=h5py.string_dtype("utf-8", len(text)))


def _finish(path: Path, schema: str) -> None:
    with path.open("r+b") as stream:
        stream.seek(HEADER)
        sha256 = _hash_rest(stream)
        stream.seek(0)
        stream.write(header(schema, path.stat().st_size, sha256))
        stream.flush()
        os.fsync(stream.fileno())  # before the rename, so that the name never stands for less


def _hash_rest(stream: Any) -> str:
    state = hashlib.sha256()
    while block := stream.read(BLOCK):
        state.update(block)
    return state.hexdigest()


def _check_length(path: Path) -> None:
    with path.open("rb") as stream:
        lines = stream.read(HEADER).decode("utf-8", "replace").split("\n")
    found = path.stat().st_size
    expected = lines[1].removeprefix("bytes ") if len(lines) > 1 else ""
    if expected.isdigit() and int(expected) != found:
        raise Corrupt(
            f"{path} is truncated or was copied badly: {found:,} of {int(expected):,} bytes; copy it again, "
            "or delete it and run the same `spaner extract` again, which starts anew"
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
