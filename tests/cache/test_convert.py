"""The other format and back, without losing a bit; and plain files for other tools."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

from spaner import cache
from spaner.errors import CacheError, Corrupt


def same(first: cache.Cache, second: cache.Cache) -> None:
    assert first.tables() == second.tables()
    assert (first.dataset, first.class_names) == (second.dataset, second.class_names)
    for name in first.tables():
        one, two = first.table(name), second.table(name)
        assert (one.manifest, one.measured, one.failures()) == (two.manifest, two.measured, two.failures())
        assert one.manifest.sha256 == two.manifest.sha256
        for array in ("labels", "ids", "status"):
            np.testing.assert_array_equal(getattr(one, array), getattr(two, array))
        assert one.read().tobytes() == two.read().tobytes()
        assert one.draw(2, 1).tolist() == two.draw(2, 1).tolist()


@pytest.mark.parametrize(("first", "second"), [("cache", "other.h5"), ("cache.h5", "other")])
def test_there_and_back_is_byte_identical(make, tmp_path: Path, contents, first: str, second: str):
    made = make(tmp_path / "a" / first) if (tmp_path / "a").mkdir() is None else None
    assert made is not None
    cache.convert(made, tmp_path / second)
    with cache.open(made) as one, cache.open(tmp_path / second) as two:
        same(one, two)
        assert two.verify() == []
    (tmp_path / "b").mkdir()
    cache.convert(tmp_path / second, tmp_path / "b" / first)
    there, back = contents(tmp_path / "a" / first), contents(tmp_path / "b" / first)
    assert there == back
    assert not list(tmp_path.glob(".*"))


def test_conversion_refuses_damage_and_an_existing_target(make, tmp_path: Path):
    made = make(tmp_path / "cache")
    (tmp_path / "there.h5").write_text("")
    with pytest.raises(CacheError, match=r"there\.h5 exists already; convert into a new name"):
        cache.convert(made, tmp_path / "there.h5")
    file = made / "image/train/features/c.1.0.0"
    file.write_bytes(b"\1" + file.read_bytes()[1:])
    with pytest.raises(Corrupt, match=r"is damaged and was not converted: image/train chunk 1"):
        cache.convert(made, tmp_path / "new.h5")
    assert not (tmp_path / "new.h5").exists()


def test_export_is_numpy_and_a_list_of_rows(make, path: Path, tmp_path: Path, source, monkeypatch):
    for name in ("pyarrow", "pyarrow.parquet"):  # as where it is not installed
        monkeypatch.setitem(sys.modules, name, None)
    with cache.open(make(path)) as opened:
        made = cache.export(opened, tmp_path / "out")
    place = tmp_path / "out" / "image" / "train"
    np.testing.assert_array_equal(np.load(place / "features.npy", mmap_mode="r"), source.stored())
    assert set(made) == {
        *(place / name for name in ("features.npy", "rows.csv")),
        *(tmp_path / "out" / "text" / "vanilla" / name for name in ("features.npy", "rows.csv")),
    }
    with (place / "rows.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["id"] for row in rows] == source.ids
    assert [int(row["label"]) for row in rows] == source.labels.tolist()
    assert rows[7] == {"id": source.ids[7], "label": "1", "class_name": "dog", "ok": "False"}
