"""A cache as a Zarr v3 directory.

It writes the plainest part of Zarr v3 itself: regular chunks along the first axis, raw little-endian bytes,
no compression, chunk files "c.<i>.0.0". Three things follow that a library in between would not promise:
a chunk file is `np.fromfile`-able and mapped into memory as it is, the bytes on disk do not depend on a
library version (so a killed table can end bit-identical), and every metadata file can be checked bit by bit.
zarr-python reads all of it (the store contract holds that), and it is how this store reads an array that
somebody has compressed since.
"""

import json
import mmap
import os
from io import FileIO
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

from spaner.cache import files
from spaner.cache.layout import ArraySpec, Damage, stored_layout
from spaner.cache.manifest import Manifest
from spaner.cache.zarr_json import array_json, group_json, plain_spec
from spaner.errors import CacheError, Corrupt

MAP_FROM = 1 << 16  # bytes from which mapping a chunk beats reading it
MAPS = 256  # each live map holds a file descriptor; beyond these, chunks are read
_LIVE: WeakSet[mmap.mmap] = WeakSet()
OPTIONAL = ("status", "reason", "stat", "checksum", "done")  # a chunk that is absent reads as zeros
PER_CHUNK = ("features", *OPTIONAL)  # what encoding a chunk again writes anew


class ZarrStore:
    """Reads and writes one cache directory; see `layout.Store` for the reading half."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._specs: dict[str, ArraySpec | None] = {}

    # -- reading ---------------------------------------------------------------------------------

    def tables(self) -> list[str]:
        found = self.path.glob("[!.]*/[!.]*/zarr.json")
        return sorted(f"{file.parent.parent.name}/{file.parent.name}" for file in found)

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
        for index in range(first, last + 1):
            low, high = max(start, index * spec.chunk), min(stop, (index + 1) * spec.chunk)
            block = self._chunk(table, array, spec, index)
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
            metadata = json.loads(file.read_bytes())
        except FileNotFoundError:
            raise Corrupt(_damaged(file, "it is missing")) from None
        except (ValueError, RecursionError) as error:
            raise Corrupt(_damaged(file, f"it is not JSON ({error})")) from None
        if not isinstance(metadata, dict):
            raise Corrupt(_damaged(file, "it is not a JSON object"))
        return metadata

    def _chunk(self, table: str, array: str, spec: ArraySpec, index: int) -> np.ndarray:
        file = self.chunk_file(table, array, spec, index)
        try:
            data = _bytes(file, mapped=spec.chunk_bytes >= MAP_FROM)
        except FileNotFoundError:
            if array not in OPTIONAL:
                raise Corrupt(_damaged(file, "it is missing")) from None
            return np.broadcast_to(np.zeros((), spec.stored), spec.chunk_shape)
        if len(data) != spec.chunk_bytes:
            raise Corrupt(_damaged(file, f"it has {len(data):,} of {spec.chunk_bytes:,} bytes"))
        return np.frombuffer(data, spec.stored).reshape(spec.chunk_shape)

    def chunk_file(self, table: str, array: str, spec: ArraySpec, index: int) -> str:
        """Where chunk `index` of an array lies (text: a Path costs more than mapping the file)."""
        return f"{self.path}/{table}/{array}/c.{index}{'.0' * (len(spec.shape) - 1)}"

    def _read_foreign(self, table: str, array: str, start: int, stop: int | None) -> np.ndarray:
        import zarr  # two seconds of import that no cache of ours needs

        try:
            node = zarr.open_array(self.path / table / array, mode="r")
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
        names = sorted(entry.name for entry in os.scandir(folder)) if folder.is_dir() else []
        strange = [name for name in names if name[0] != "." and name not in expected]
        return [Damage(f"{folder / name} is no part of the cache; remove it", "stray") for name in strange]

    def close(self) -> None:
        self._specs.clear()  # the files themselves are not kept open

    # -- writing ---------------------------------------------------------------------------------

    def set_attributes(self, table: str, attributes: dict[str, Any], *, durable: bool = True) -> None:
        """Replace the attributes of a group in one step, creating the group; wait for the disk by default."""
        folder = self.path / table
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        files.write(folder / "zarr.json", group_json(attributes), durable=durable)

    def create_array(self, table: str, array: str, spec: ArraySpec, *, durable: bool = False) -> None:
        """Make an empty array; chunks that are not written read as zeros."""
        folder = self.path / table / array
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
        file = Path(self.chunk_file(table, array, spec, index))
        files.write(file, block.reshape(-1).view(np.uint8).data)
        return file

    def clear_chunk(self, table: str, array: str, index: int) -> None:
        """Make one chunk zeros by removing its file."""
        spec = self.spec(table, array)
        assert spec is not None, f"{table}/{array} is not written by this store"
        files.remove(Path(self.chunk_file(table, array, spec, index)))


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
