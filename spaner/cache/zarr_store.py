"""A cache as a Zarr v3 directory.

It writes the plainest part of Zarr v3 itself: regular chunks along the first axis, raw little-endian bytes,
no compression, chunk files "c.<i>.0.0". Three things follow that a library in between would not promise:
a chunk file is `np.fromfile`-able and mapped into memory as it is, the bytes on disk do not depend on a
library version (so a killed table can end bit-identical), and every metadata file can be checked bit by bit.
zarr-python reads all of it (the store contract holds that), and it is how this store reads an array that
somebody has compressed since. At an address a file is an object, and chunks are fetched instead of mapped.
"""

import json
import mmap
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

from spaner.cache import files
from spaner.cache.address import Address, fetch, place
from spaner.cache.layout import ArraySpec, Damage, stored_layout
from spaner.cache.manifest import Manifest
from spaner.cache.objects import Objects, window
from spaner.cache.zarr_json import array_json, group_json, plain_spec
from spaner.errors import CacheError, Corrupt

MAP_FROM = 1 << 16  # bytes from which mapping a chunk beats reading it
MAPS = 256  # each live map holds a file descriptor; beyond these, chunks are read
_LIVE: WeakSet[mmap.mmap] = WeakSet()
OPTIONAL = ("status", "reason", "stat", "checksum", "done")  # a chunk that is absent reads as zeros
PER_CHUNK = ("features", *OPTIONAL)  # what encoding a chunk again writes anew


class ZarrStore:
    """Reads and writes one cache directory; see `layout.Store` for the reading half.

    Args:
        snapshot: at an address, what was read may be kept and is not asked for again; for reading alone.
    """

    def __init__(self, path: Path, *, snapshot: bool = False) -> None:
        self.path = path
        self.far = isinstance(path, Address)
        self._specs: dict[str, ArraySpec | None] = {}
        self._objects = Objects(keep=snapshot)
        self._listed: list[str] | None = None
        self._metadata_bytes: dict[str, bytes] = {}

    # -- reading ---------------------------------------------------------------------------------

    def tables(self) -> list[str]:
        if self._listed is not None:
            return self._listed
        found = self.path.glob("[!.]*/[!.]*/zarr.json")
        names = sorted(f"{file.parent.parent.name}/{file.parent.name}" for file in found)
        self._listed = names if self.far else None
        return names

    def refresh(self) -> None:
        """Forget what is known of tables and metadata at an address, where others may have changed them."""
        self._listed = None
        self._metadata_bytes.clear()

    def attributes(self, table: str = "") -> dict[str, Any]:
        metadata = self._metadata(table)
        if metadata.get("node_type") != "group" or not isinstance(metadata.get("attributes"), dict):
            raise Corrupt(_damaged(self.path / table / "zarr.json", "it is not a Zarr v3 group"))
        return metadata["attributes"]

    def read(self, table: str, array: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        spec = self.spec(table, array)
        if spec is None:
            return self._read_foreign(table, array, start, stop)
        stop = spec.shape[0] if stop is None else min(stop, spec.shape[0])
        first, last = start // spec.chunk, max(start, stop - 1) // spec.chunk
        if first == last:
            offset = first * spec.chunk
            return self._chunk(table, array, spec, first)[start - offset : stop - offset]
        out = np.empty((stop - start, *spec.shape[1:]), spec.dtype)
        for index, block in self._chunks(table, array, spec, range(first, last + 1)):
            low, high = max(start, index * spec.chunk), min(stop, (index + 1) * spec.chunk)
            out[low - start : high - start] = block[low - index * spec.chunk : high - index * spec.chunk]
        return out

    def spec(self, table: str, array: str) -> ArraySpec | None:
        """Layout of an array; None if it is valid Zarr that this store did not write."""
        name = f"{table}/{array}"
        if name not in self._specs:
            self._specs[name] = plain_spec(self._metadata(name))
        return self._specs[name]

    def _metadata(self, node: str) -> dict[str, Any]:
        file = self.path / node / "zarr.json"
        try:
            content = self._metadata_bytes.get(node) or file.read_bytes()
            metadata = json.loads(content)
        except FileNotFoundError:
            raise Corrupt(_damaged(file, "it is missing")) from None
        except (ValueError, RecursionError) as error:
            raise Corrupt(_damaged(file, f"it is not JSON ({error})")) from None
        if not isinstance(metadata, dict):
            raise Corrupt(_damaged(file, "it is not a JSON object"))
        if self.far:
            self._metadata_bytes[node] = content
        return metadata

    def ahead(self, table: str, arrays: Sequence[str], chunks: Sequence[int]) -> None:
        if not self.far:
            return
        self._read_metadata([f"{table}/{array}" for array in arrays if f"{table}/{array}" not in self._specs])
        wanted = []
        for array in arrays:
            if spec := self.spec(table, array):
                files_ = (self.chunk_file(table, array, spec, chunk) for chunk in chunks)
                wanted += [(file, spec.chunk_bytes) for file in files_]
        self._objects.ask(wanted)

    def _read_metadata(self, nodes: list[str]) -> None:
        """Those of several arrays in one round trip; what is missing is told when it is used."""
        if len(nodes) > 1 and isinstance(self.path, Address):
            found = fetch([(self.path / node / "zarr.json", MAP_FROM) for node in nodes])
            self._metadata_bytes |= {node: data for node, data in zip(nodes, found, strict=True) if data}
            for node in nodes:
                with suppress(Corrupt):
                    self.spec(*node.rsplit("/", 1))

    def _chunks(
        self, table: str, array: str, spec: ArraySpec, indices: range
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Chunks in order; at an address as many are on their way together as are worth it."""
        step = window(spec.chunk_bytes)
        for index in indices:
            if (index - indices.start) % step == 0:
                self.ahead(table, [array], indices[index - indices.start :][:step])
            yield index, self._chunk(table, array, spec, index)

    def _chunk(self, table: str, array: str, spec: ArraySpec, index: int) -> np.ndarray:
        file = self.chunk_file(table, array, spec, index)
        try:
            data = self._data(file, spec.chunk_bytes)
        except FileNotFoundError:
            if array not in OPTIONAL:
                raise Corrupt(_damaged(file, "it is missing")) from None
            return np.broadcast_to(np.zeros((), spec.stored), spec.chunk_shape)
        if len(data) != spec.chunk_bytes:
            raise Corrupt(_damaged(file, f"it has {len(data):,} of {spec.chunk_bytes:,} bytes"))
        return np.frombuffer(data, spec.stored).reshape(spec.chunk_shape)

    def _data(self, file: str, size: int) -> bytes | mmap.mmap:
        if not self.far:
            return _bytes(file, mapped=size >= MAP_FROM)
        if (data := self._objects.get(file, size)) is None:
            raise FileNotFoundError(file)
        return data

    def chunk_file(self, table: str, array: str, spec: ArraySpec, index: int) -> str:
        """Where chunk `index` of an array lies (text: a Path costs more than mapping the file)."""
        return f"{self.path}/{table}/{array}/c.{index}{'.0' * (len(spec.shape) - 1)}"

    def sent(self, table: str, array: str) -> set[int]:
        """Chunks of which an object of full size is there."""
        spec, folder = self.spec(table, array), self.path / table / array
        assert spec is not None
        assert isinstance(folder, Address)
        there = folder.sizes()
        ending = ".0" * (len(spec.shape) - 1)
        return {n for n in range(spec.chunks) if there.get(f"c.{n}{ending}") == spec.chunk_bytes}

    def _read_foreign(self, table: str, array: str, start: int, stop: int | None) -> np.ndarray:
        import zarr  # two seconds of import that no cache of ours needs

        try:
            node = zarr.open_array(f"{self.path}/{table}/{array}", mode="r")
            return np.asarray(node[start:stop])
        except Exception as error:  # zarr has no common base for what damaged metadata can raise
            file = self.path / table / array / "zarr.json"
            raise Corrupt(_damaged(file, f"zarr says {str(error).splitlines()[:1]}")) from error

    def damage(self, table: str = "") -> list[Damage]:
        if not table:
            return self._cache_damage()
        if broken := self._group_damage(table):
            return [Damage(what, "seal") for what in broken]
        try:
            manifest = Manifest.from_json(self.attributes(table).get("manifest"))
            expected = stored_layout(self, table, manifest)
        except CacheError as error:
            return [Damage(str(error))]
        draws = [array.removeprefix("draws/") for array in expected if array.startswith("draws/")]
        found = [Damage(what) for what in (self._group_damage(f"{table}/draws") if draws else ())]
        found += self._strays(table, {"zarr.json", *(array.split("/")[0] for array in expected)})
        found += self._strays(f"{table}/draws", {"zarr.json", *draws}) if draws else []
        return found + [
            each for array, spec in expected.items() for each in self._array_damage(table, array, spec)
        ]

    def _cache_damage(self) -> list[Damage]:
        try:
            listed = list(self.attributes().get("tables", {}))
        except Corrupt:
            listed = []
        tables = [name.split("/") for name in {*self.tables(), *listed}]
        modalities = {name[0] for name in tables}
        there = [group for group in sorted(modalities) if (self.path / group).is_dir()]
        found = [Damage(what) for group in ("", *there) for what in self._group_damage(group)]
        found += self._strays("", {"zarr.json", *modalities})
        for group in there:
            found += self._strays(group, {"zarr.json", *(name[-1] for name in tables if name[0] == group)})
        return found

    def _group_damage(self, node: str) -> list[str]:
        file = self.path / node / "zarr.json"
        try:
            sound = group_json(self.attributes(node)) == file.read_bytes()
        except Corrupt as error:
            return [str(error)]
        return [] if sound else [_damaged(file, "it differs from the bytes it was written with")]

    def _array_damage(self, table: str, array: str, spec: ArraySpec) -> list[Damage]:
        file = self.path / table / array / "zarr.json"
        if not file.is_file() or array_json(spec) != file.read_bytes():
            return [Damage(_damaged(file, "it differs from the bytes it was written with"))]
        last, rest = spec.chunks - 1, spec.shape[0] % spec.chunk
        chunk, part = (last, "rows") if array in PER_CHUNK else (None, "listing")
        try:
            padding = self._chunk(table, array, spec, last)[rest:].tobytes() if rest else b""
        except Corrupt as error:
            return [Damage(str(error), part, chunk)]
        ending = ".0" * (len(spec.shape) - 1)
        found = self._strays(f"{table}/{array}", {"zarr.json", *(f"c.{n}{ending}" for n in range(last + 1))})
        if any(padding):
            file = self.chunk_file(table, array, spec, last)
            found.append(Damage(_damaged(file, "the padding after the last row is not zero"), part, chunk))
        return found

    def _strays(self, node: str, expected: set[str]) -> list[Damage]:
        """Names that are no part of the cache; those with a dot at the start are work in progress."""
        folder = self.path / node
        names = sorted(entry.name for entry in folder.iterdir()) if self.far or folder.is_dir() else []
        strange = [name for name in names if name[0] != "." and name not in expected]
        return [Damage(f"{folder / name} is no part of the cache; remove it", "stray") for name in strange]

    def close(self) -> None:
        self._specs.clear()  # the files themselves are not kept open
        self._objects.forget()
        self.refresh()

    # -- writing ---------------------------------------------------------------------------------

    def set_attributes(self, table: str, attributes: dict[str, Any], *, durable: bool = True) -> None:
        """Replace the attributes of a group in one step, creating the group; wait for the disk by default."""
        folder = self.path / table
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        files.write(folder / "zarr.json", group_json(attributes), durable=durable)
        self.refresh()

    def create_array(self, table: str, array: str, spec: ArraySpec, *, durable: bool = False) -> None:
        """Make an empty array; chunks that are not written read as zeros."""
        folder = self.path / table / array
        if self.far:
            self._specs[f"{table}/{array}"] = spec  # as it would be read back
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        files.write(folder / "zarr.json", array_json(spec), durable=durable)

    def write_chunk(self, table: str, array: str, index: int, rows: np.ndarray) -> Path:
        """Replace one chunk in one step; its file. `rows` may be short only in the last chunk."""
        spec = self.spec(table, array)
        assert spec is not None, f"{table}/{array} is not written by this store"
        block = np.ascontiguousarray(rows, spec.stored)
        if len(block) < spec.chunk:
            padding = np.zeros((spec.chunk - len(block), *spec.shape[1:]), block.dtype)
            block = np.concatenate([block, padding])
        file = place(self.chunk_file(table, array, spec, index))
        files.write(file, block.reshape(-1).view(np.uint8).data)
        return file

    def write_chunks(self, table: str, chunks: Sequence[tuple[str, int, np.ndarray | None]]) -> list[Path]:
        """Replace chunks (array, index, rows; None to clear), at an address several at once; their files."""

        def replace(chunk: tuple[str, int, np.ndarray | None]) -> Path | None:
            array, index, rows = chunk
            if rows is None:
                return self.clear_chunk(table, array, index)
            return self.write_chunk(table, array, index, rows)

        if not self.far or len(chunks) < 2:
            made = [replace(chunk) for chunk in chunks]
        else:
            with ThreadPoolExecutor(files.THREADS) as pool:
                made = list(pool.map(replace, chunks))
        return [file for file in made if file is not None]

    def clear_chunk(self, table: str, array: str, index: int) -> None:
        """Make one chunk zeros by removing its file."""
        spec = self.spec(table, array)
        assert spec is not None, f"{table}/{array} is not written by this store"
        file = place(self.chunk_file(table, array, spec, index))
        if self.far:
            file.unlink(missing_ok=True)
        else:
            files.remove(file)


def _bytes(file: str, *, mapped: bool) -> bytes | mmap.mmap:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        if mapped and len(_LIVE) < MAPS and os.fstat(descriptor).st_size:
            data = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
            _LIVE.add(data)
            return data
        return FileIO(descriptor, closefd=False).readall()
    finally:
        os.close(descriptor)


def _damaged(file: Path | str, why: str) -> str:
    return f"{file} is damaged: {why}"
