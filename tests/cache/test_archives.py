"""Caches of every released schema must stay readable, to the bit."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from spaner import cache

ARCHIVES = Path(__file__).parent / "archives"


@pytest.mark.parametrize("name", ["spaner-cache-1", "spaner-cache-1.h5"])
def test_archive_still_opens(tmp_path: Path, name: str):
    place = tmp_path / name
    if (ARCHIVES / name).is_dir():
        shutil.copytree(ARCHIVES / name, place)
    else:
        shutil.copyfile(ARCHIVES / name, place)
    with cache.open(place) as opened:
        assert (opened.dataset, opened.class_names, opened.tables()) == (
            "archive",
            ["cat", "dog"],
            ["image/train"],
        )
        assert opened.verify() == []
        table = opened.table("image/train")
        expected = (np.arange(42).reshape(7, 2, 3) / 8).astype(np.float16)
        expected[6] = 0
        np.testing.assert_array_equal(table.read(), expected)
        assert table.labels.tolist() == [1, 0, 1, 1, 0, 1, 0]
        assert table.ids.tolist() == [f"train/{row}-é.jpg" for row in range(7)]
        assert table.failures() == {"train/6-é.jpg": "not an image"}
        assert table.draw(2, 1).tolist() == [2, 3, 1, 4]
        assert table.measured == {"purity": 0.25}
        assert (table.manifest.encoder.logit_scale, table.manifest.options) == (100.0, {"crop": True})


def test_both_formats_hold_the_same(tmp_path: Path):
    cache.convert(ARCHIVES / "spaner-cache-1.h5", tmp_path / "again")
    files = [
        file.relative_to(ARCHIVES / "spaner-cache-1") for file in (ARCHIVES / "spaner-cache-1").rglob("*")
    ]
    assert files
    for file in files:
        if (tmp_path / "again" / file).is_file():
            assert (tmp_path / "again" / file).read_bytes() == (
                ARCHIVES / "spaner-cache-1" / file
            ).read_bytes()
