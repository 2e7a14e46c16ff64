"""The root of a cache: tables that vanish are missed, and what is lost of the metadata is made anew."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from spaner import cache
from spaner.errors import CacheError, Corrupt, Mismatch, Unsealed

CLASSES = ["cat", "dog", "Häher"]
BREAKS = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "flipped": lambda data: data.replace(b'"dog"', b'"dig"'),
    "renamed": lambda data: data.replace(b"spaner-cache/2", b"spanes-cache/2"),
}


def problems(path: Path) -> list[tuple[str, str]]:
    with cache.open(path) as opened:
        return [(each.table, each.part) for each in opened.verify()]


@pytest.mark.parametrize("kind", BREAKS)
def test_a_broken_root_is_made_anew_and_said(make, tmp_path: Path, contents, kind: str):
    made = make(tmp_path / "cache")
    before = contents(made)
    file = made / "zarr.json"
    file.write_bytes(BREAKS[kind](file.read_bytes()))
    with pytest.raises(CacheError) as caught:
        cache.open(made)
    if kind != "renamed":
        assert f"type `spaner cache repair {made}`" in str(caught.value)
    with cache.create(made, "pets", CLASSES) as opened:
        assert opened.notes == [f"{file} was damaged and is made anew from 2 tables"]
    assert contents(made) == before


def test_a_missing_root_is_made_anew_only_for_the_same_classes(make, tmp_path: Path, contents):
    made = make(tmp_path / "cache")
    before = contents(made)
    (made / "zarr.json").unlink()
    with pytest.raises(Corrupt, match=r"zarr.json is damaged: it is missing; type `spaner cache repair"):
        cache.open(made)
    with pytest.raises(Mismatch, match="is a cache of other classes"):
        cache.create(made, "pets", ["cat", "dog", "jay"])
    with pytest.raises(Mismatch, match="is a cache of dataset 'pets', asked for 'cars'"):
        cache.create(made, "cars", CLASSES)
    cache.create(made, "pets", CLASSES).close()
    assert contents(made) == before


def test_the_group_of_a_modality_is_made_anew(make, tmp_path: Path, contents):
    made = make(tmp_path / "cache")
    before = contents(made)
    for data in (b"", (made / "image/zarr.json").read_bytes().replace(b'"cat"', b'"cab"')):
        (made / "image/zarr.json").write_bytes(data)
        assert problems(made) == [("", "metadata")] * (1 + (data == b""))
        with cache.create(made, "pets", CLASSES) as opened:
            assert opened.notes == [f"{made / 'image/zarr.json'} was damaged and is made anew"]
        assert contents(made) == before


def test_a_table_that_vanished_is_missed(make, source, tmp_path: Path, contents):
    made = make(tmp_path / "cache")
    before = contents(made)
    (made / "image/train/zarr.json").unlink()
    assert ("image/train", "missing") in problems(made)
    with cache.create(made, "pets", CLASSES) as opened, source.begin(opened) as writer:
        assert opened.notes == [f"{made / 'image/train/zarr.json'} was damaged and is made anew"]
        assert writer.pending == []  # its rows are as their checksums say
        writer.seal({"purity": 0.0})
    assert contents(made) == before
    shutil.rmtree(made / "text/vanilla")
    assert problems(made) == [("text/vanilla", "missing")]


def test_rows_of_other_settings_are_never_adopted(make, source, encoder, tmp_path: Path):
    made = make(tmp_path / "cache")
    (made / "image/train/zarr.json").write_bytes(b"")
    other = type(source)(encoder, seed=4)
    with cache.create(made, "pets", CLASSES) as opened:
        with pytest.raises(Mismatch, match=r"made with other settings than those asked for.*--overwrite"):
            other.begin(opened)
        other.begin(opened, overwrite=True).close()
    assert problems(made) == [("image/train", "unfinished")]


@pytest.mark.parametrize(
    "name", ["notes.txt", "image/other", "image/train/x", "image/train/features/c.9.0.0"]
)
def test_what_does_not_belong_is_named(make, tmp_path: Path, name: str):
    made = make(tmp_path / "cache")
    (made / name).write_text("mine")
    with cache.open(made) as opened:
        (problem,) = opened.verify()
    assert problem.part == "stray"
    assert f"{made / name} is no part of the cache; remove it" in problem.what
    (made / name).unlink()
    assert problems(made) == []


def test_a_table_put_there_by_hand_is_not_the_listed_one(make, source, encoder, tmp_path: Path):
    made, other = make(tmp_path / "cache"), tmp_path / "other"
    changed = type(source)(encoder, seed=4)
    with cache.create(other, "pets", CLASSES) as opened, changed.begin(opened) as writer:
        changed.write(writer)
        writer.seal({})
    shutil.rmtree(made / "image/train")
    shutil.copytree(other / "image/train", made / "image/train")
    assert problems(made) == [("image/train", "metadata")]


def test_an_unsealed_table_is_never_sound(path: Path, source):
    with cache.create(path, "pets", CLASSES) as made, source.begin(made) as writer:
        source.write(writer, [0])
    with pytest.raises(Unsealed):
        cache.open(path)
    with cache.create(path, "pets", CLASSES) as made:
        (problem,) = made.verify()
    assert (problem.part, "holds 5 of 23 rows" in problem.what) == ("unfinished", True)


def test_an_hdf5_file_lists_its_tables_too(make, tmp_path: Path):
    import h5py

    made = make(tmp_path / "cache.h5")
    with h5py.File(made, "r+") as file:
        listed = json.loads(np.asarray(file.attrs["tables"]).tobytes())
        assert list(listed) == ["image/train", "text/vanilla"]
        del file["text/vanilla"]
    assert ("text/vanilla", "missing") in problems(made)


def test_long_ids_do_not_fill_the_disk(tmp_path: Path):
    with cache.create(tmp_path / "c", "pets", ["a"]) as made:
        given = ("image", "train", np.ones((2, 3)), np.zeros(2, int), ["a", "x" * 20_000])
        with pytest.raises(CacheError, match=r"the id 'xxx.* has 20,000 bytes; expected at most 1,024"):
            made.add(*given, encoder="e")
