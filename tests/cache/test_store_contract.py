"""What any format must answer. A new backend adds one subclass with raw access that bypasses our code.

Raw access is the format's own library (zarr-python, h5py), so that reading and writing are tested apart:
what we write must be readable without us, and what is there must be read as it is.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

from spaner import cache
from spaner.cache.hdf5_store import Hdf5Store
from spaner.cache.layout import Store, table_layout
from spaner.cache.zarr_store import ZarrStore
from spaner.errors import Corrupt

TABLE = "image/train"


class StoreContract:
    """Subclasses say how to open the store and how to reach the bytes without it."""

    suffix: str

    def open(self, path: Path) -> Store:
        raise NotImplementedError

    def raw_array(self, path: Path, array: str) -> np.ndarray:
        raise NotImplementedError

    def raw_attributes(self, path: Path, table: str) -> dict[str, Any]:
        raise NotImplementedError

    def raw_change(self, path: Path, array: str, row: int, value: Any) -> None:
        raise NotImplementedError

    @pytest.fixture
    def made(self, make: Callable[[Path], Path], tmp_path: Path) -> Path:
        return make(tmp_path / f"cache{self.suffix}")

    @pytest.fixture
    def store(self, made: Path):
        opened = self.open(made)
        yield opened
        opened.close()

    def test_tables_are_listed_in_order(self, store: Store):
        assert store.tables() == ["image/train", "text/vanilla"]

    def test_attributes_are_those_on_disk(self, store: Store, made: Path):
        for table in ("", *store.tables()):
            assert store.attributes(table) == self.raw_attributes(made, table)
        assert store.attributes()["schema"] == "spaner-cache/2"
        assert set(store.attributes(TABLE)) == {"manifest", "measured", "seal"}

    def test_every_array_is_readable_without_us(self, store: Store, made: Path, source):
        draws = {"2-shot-seed-1": 6}
        for array, spec in table_layout(source.manifest, len("train/Häher/000.jpg".encode()), draws).items():
            raw = self.raw_array(made, array)
            assert (raw.shape, raw.dtype) == (spec.shape, spec.dtype), array
            np.testing.assert_array_equal(store.read(TABLE, array), raw, err_msg=array)

    def test_written_values_are_the_given_ones(self, made: Path, source):
        np.testing.assert_array_equal(self.raw_array(made, "features"), source.stored())
        np.testing.assert_array_equal(self.raw_array(made, "labels"), source.labels)
        np.testing.assert_array_equal(
            self.raw_array(made, "draws/2-shot-seed-1"), source.draws["2-shot-seed-1"]
        )
        texts = [bytes(row).rstrip(b"\0").decode() for row in self.raw_array(made, "ids")]
        assert texts == source.ids
        status = self.raw_array(made, "status")
        assert status.tolist() == [2 if row == 7 else 1 for row in range(23)]
        assert bytes(self.raw_array(made, "reason")[7]).rstrip(b"\0") == b"image file is truncated"
        assert self.raw_array(made, "done").tolist() == [1] * 5

    @pytest.mark.parametrize("span", [(0, 23), (0, 5), (5, 10), (3, 17), (22, 23), (20, 99), (4, 4)])
    def test_any_range_is_that_range(self, store: Store, source, span: tuple[int, int]):
        np.testing.assert_array_equal(store.read(TABLE, "features", *span), source.stored()[slice(*span)])

    def test_views_cannot_be_written_through(self, store: Store):
        with pytest.raises(ValueError, match="read-only"):
            store.read(TABLE, "features", 0, 5)[0] = 1

    def test_a_changed_value_is_read_and_seen(self, made: Path):
        self.raw_change(made, "labels", 11, 0)
        store = self.open(made)
        assert store.read(TABLE, "labels")[11] == 0
        store.close()
        with cache.open(made) as opened:
            assert any("listing" in problem.what for problem in opened.verify())

    def test_sound_bytes_have_no_damage(self, store: Store):
        assert [store.damage(table) for table in ("", *store.tables())] == [[], [], []]

    def test_a_missing_array_is_corrupt_not_a_traceback(self, store: Store):
        with pytest.raises(Corrupt, match="nothing"):
            store.read(TABLE, "nothing")
        with pytest.raises(Corrupt):
            store.attributes("image/none")


class TestZarr(StoreContract):
    suffix = ""

    def open(self, path: Path) -> Store:
        return ZarrStore(path)

    def raw_array(self, path: Path, array: str) -> np.ndarray:
        return np.asarray(zarr.open_group(path, mode="r")[f"{TABLE}/{array}"][...])  # pyright: ignore

    def raw_attributes(self, path: Path, table: str) -> dict[str, Any]:
        group = zarr.open_group(path, mode="r")
        return dict(group[table].attrs if table else group.attrs)

    def raw_change(self, path: Path, array: str, row: int, value: Any) -> None:
        zarr.open_group(path, mode="r+")[f"{TABLE}/{array}"][row] = value  # pyright: ignore

    def test_zarr_finds_every_member_without_a_warning(self, made: Path):
        names = {name for name, _ in zarr.open_group(made, mode="r").members(max_depth=None)}
        assert {"image", "text", TABLE, f"{TABLE}/features", f"{TABLE}/draws/2-shot-seed-1"} <= names
        assert len(names) == 2 + 2 + 8 * 2 + 1 + 1

    def test_a_chunk_file_is_plain_numbers(self, made: Path, source):
        file = made / TABLE / "features" / "c.1.0.0"
        np.testing.assert_array_equal(np.fromfile(file, "<f4").reshape(5, 2, 7), source.stored()[5:10])

    def test_a_table_compressed_by_zarr_is_still_read(self, made: Path, source):
        group = zarr.open_group(made, mode="r+")
        group.create_array(  # pyright: ignore
            f"{TABLE}/features", data=source.stored(), chunks=(11, 2, 7), compressors="auto", overwrite=True
        )
        with cache.open(made) as opened:
            np.testing.assert_array_equal(opened.table(TABLE).read(slice(3, 17)), source.stored()[3:17])
            assert ["differs from the bytes it was written with" in p.what for p in opened.verify()] == [True]


class TestHdf5(StoreContract):
    suffix = ".h5"

    def open(self, path: Path) -> Store:
        return Hdf5Store(path)

    def raw_array(self, path: Path, array: str) -> np.ndarray:
        with h5py.File(path) as file:
            return file[f"{TABLE}/{array}"][...]  # pyright: ignore

    def raw_attributes(self, path: Path, table: str) -> dict[str, Any]:
        with h5py.File(path) as file:
            return {name: json.loads(text) for name, text in file["/" + table].attrs.items()}

    def raw_change(self, path: Path, array: str, row: int, value: Any) -> None:
        with h5py.File(path, "r+") as file:
            file[f"{TABLE}/{array}"][row] = value  # pyright: ignore

    def test_features_are_a_view_of_the_mapped_file(self, store: Store):
        first, second = (store.read(TABLE, "features", 0, 5) for _ in range(2))
        assert np.shares_memory(first, second)

    def test_the_parts_are_gone_and_nothing_else_is_left(self, made: Path):
        assert [file.name for file in made.parent.iterdir()] == ["cache.h5"]
