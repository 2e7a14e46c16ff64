"""What a user reads when a path is not what it should be: one line, with what to type next."""

from pathlib import Path

import h5py
import pytest
import zarr

from spaner import cache
from spaner.errors import CacheError, Corrupt, Mismatch, Unsealed

CLASSES = ["cat", "dog", "Häher"]


def message(error: type[Exception], path: Path) -> str:
    with pytest.raises(error) as caught:
        cache.open(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_path_says_how_to_make_one(path: Path):
    assert message(CacheError, path) == f"no cache at {path}; make one with `spaner extract --cache {path}`"


def test_folders_and_files_that_are_no_cache(tmp_path: Path):
    (tmp_path / "holiday").mkdir()
    assert "is a folder without zarr.json, not a spaner cache" in message(CacheError, tmp_path / "holiday")
    zarr.create_group(tmp_path / "other", attributes={"schema": "ome"})
    assert "is not a spaner cache: no schema spaner-cache/2 in it" in message(CacheError, tmp_path / "other")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    assert "is not a spaner cache" in message(CacheError, tmp_path / "other.h5")
    (tmp_path / "empty.h5").write_bytes(b"")
    assert "is not a spaner cache" in message(CacheError, tmp_path / "empty.h5")


def test_newer_schema_asks_for_a_newer_spaner(make, path: Path):
    made = make(path)
    file = made if made.is_file() else made / "zarr.json"
    file.write_bytes(file.read_bytes().replace(b"spaner-cache/2", b"spaner-cache/3"))
    said = message(CacheError, made)
    assert "has schema spaner-cache/3, this spaner reads spaner-cache/2" in said
    assert "pip install -U spaner" in said


def test_truncated_hdf5_says_how_much_is_there(make, tmp_path: Path):
    made = make(tmp_path / "cache.h5")
    whole = made.read_bytes()
    made.write_bytes(whole[:-1000])
    said = message(Corrupt, made)
    assert f"is truncated or was copied badly: {len(whole) - 1000:,} of {len(whole):,} bytes" in said
    assert "copy it again" in said


def test_damaged_root_metadata_is_one_line(make, tmp_path: Path):
    made = make(tmp_path / "cache")
    (made / "zarr.json").write_bytes(b'{"attributes": ')
    assert "zarr.json is damaged: it is not JSON" in message(Corrupt, made)
    (made / "zarr.json").write_bytes(b"[1]")
    assert "it is not a JSON object" in message(Corrupt, made)


def test_cache_without_a_table_and_with_an_unfinished_one(tmp_path: Path, source):
    with cache.create(tmp_path / "cache", "pets", CLASSES) as made:
        assert "holds no table yet; fill it with `spaner extract" in message(CacheError, tmp_path / "cache")
        source.begin(made).close()
    assert "image/train of" in message(Unsealed, tmp_path / "cache")


def test_missing_table_names_those_that_exist(make, path: Path):
    with cache.open(make(path)) as opened:
        assert opened.has("image/train")
        assert not opened.has("image/test")
        with pytest.raises(CacheError) as caught:
            opened.table("image/test")
    assert "has no table image/test, only image/train, text/vanilla; make it with" in str(caught.value)
    assert "--modality image" in str(caught.value)


def test_another_dataset_or_other_classes_are_a_mismatch(make, path: Path):
    make(path)
    with pytest.raises(Mismatch, match="is a cache of dataset 'pets', asked for 'cars'"):
        cache.create(path, "cars", CLASSES)
    with pytest.raises(Mismatch, match="of 3 classes, asked for 2"):
        cache.create(path, "pets", CLASSES[:2])
    with pytest.raises(Mismatch, match="classes of which number 1 is 'dog', asked for 'cow'"):
        cache.create(path, "pets", ["cat", "cow", "Häher"])


def test_something_else_in_the_way_is_not_touched(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_text("me")
    with pytest.raises(CacheError, match=r"holds me\.jpg but is no cache; give an empty or new folder"):
        cache.create(tmp_path / "photos", "pets", CLASSES)
    (tmp_path / "x.h5").mkdir()
    with pytest.raises(CacheError, match="is a folder, which its name does not say"):
        cache.create(tmp_path / "x.h5", "pets", CLASSES)
    (tmp_path / "x").write_text("")
    with pytest.raises(CacheError, match="is a file, which its name does not say"):
        cache.create(tmp_path / "x", "pets", CLASSES)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["photos", "x", "x.h5"]


def test_a_closed_hdf5_cache_answers_in_one_line(make, tmp_path: Path):
    with cache.open(make(tmp_path / "cache.h5")) as opened:
        table = opened.table("image/train")
    with pytest.raises(CacheError, match="is closed"):
        table.read()
