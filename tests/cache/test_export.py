"""Plain files for other tools."""

import csv
import sys
from pathlib import Path

import numpy as np

from spaner import cache


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
