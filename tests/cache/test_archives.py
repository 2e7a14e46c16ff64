"""Caches of every released schema must stay readable, to the bit."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spaner import cache
from spaner.errors import Unsealed

ARCHIVES = Path(__file__).parent / "archives"


NAMES = ["spaner-cache-1", "spaner-cache-1.h5", "spaner-cache-2", "spaner-cache-2.h5"]


@pytest.mark.parametrize("name", NAMES)
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
        stat = table.stat()
        assert table.manifest.schema == name.removesuffix(".h5").replace("-cache-", "-cache/")
        if "-1" in name:
            assert stat is None
        else:
            assert stat is not None
            assert (stat[6] - stat[0] == 18).all()


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", ["spaner-cache-1", "spaner-cache-2"])
def test_both_formats_hold_the_same(tmp_path: Path, name: str):
    cache.copy(ARCHIVES / f"{name}.h5", tmp_path / "again")
    assert bytes_of(tmp_path / "again") == bytes_of(ARCHIVES / name)
    cache.copy(ARCHIVES / name, tmp_path / "again.h5")
    assert (tmp_path / "again.h5").read_bytes() == (ARCHIVES / f"{name}.h5").read_bytes()


def test_a_cache_of_the_first_schema_is_continued_in_it(tmp_path: Path):
    """By the program of today, with a manifest of today: it ends as the program of that time would have."""
    made = tmp_path / "cache"
    shutil.copytree(ARCHIVES / "spaner-cache-1-unfinished", made)
    with cache.create(made, "archive", ["cat", "dog"]) as opened:
        with pytest.raises(Unsealed, match="holds 5 of 7 rows"):
            opened.table("image/train")
        ids = [f"train/{row}-é.jpg" for row in range(7)]
        manifest = replace(archived().manifest, schema="spaner-cache/2")
        drawn = {"2-shot-seed-1": np.array([2, 3, 1, 4])}
        with opened.begin(manifest, ids, np.array([1, 0, 1, 1, 0, 1, 0]), drawn) as writer:
            assert writer.pending == [1]
            writer.write(1, archived().read(slice(5, 7)), reasons={1: "not an image"}, stat=np.ones((2, 3)))
            writer.seal({"purity": 0.25})
        opened.add("text", "vanilla", np.eye(2), [0, 1], encoder="toy")
    assert bytes_of(made / "image") == bytes_of(ARCHIVES / "spaner-cache-1" / "image")
    with cache.open(made) as opened:
        assert opened.verify() == []
        assert opened.table("text/vanilla").manifest.schema == "spaner-cache/1"


def archived() -> cache.Table:
    return cache.open(ARCHIVES / "spaner-cache-1").table("image/train")
