"""Caches at addresses: as names, as places to read and write, and what is said when nothing is there."""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from spaner import cache
from spaner.cache import opening
from spaner.cache.address import Address, place
from spaner.cache.lock import lock_path
from spaner.errors import CacheError, Corrupt, Mismatch, Unsealed
from tests.cache.conftest import CLASSES, N, Source
from tests.cache.test_copy import same

PLACE = "memory://folder/cache"


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """The objects of this process, none at first."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


def objects(fs: fsspec.AbstractFileSystem, folder: str = "/folder") -> dict[str, bytes]:
    return {
        key.removeprefix(folder + "/"): bytes(place(f"memory:/{key}").read_bytes()) for key in fs.find(folder)
    }


def test_an_address_is_a_path_by_its_name():
    found = place("s3://bucket/caches/pets")
    assert str(found / "image/train") == "s3://bucket/caches/pets/image/train"
    assert (str(found.parent), found.name, found.parts[1]) == ("s3://bucket/caches", "pets", "bucket")
    assert str(found.with_name(".pets.root.lock")) == "s3://bucket/caches/.pets.root.lock"
    assert found == place(Path("s3://bucket/caches/pets"))  # pathlib drops a slash on the way
    assert isinstance(pickle.loads(pickle.dumps(found)), Address)  # noqa: S301 - what workers are sent
    assert found.resolve() == found.absolute() == found
    assert place("cache/pets") == Path("cache/pets")
    assert not isinstance(place("cache/pets"), Address)
    assert place("file:///tmp/pets") == Path("/tmp/pets")


def test_objects_are_the_files_of_a_folder_and_read_alike(make, tmp_path: Path, contents, memory):
    made = make(tmp_path / "folder" / "cache") if (tmp_path / "folder").mkdir() is None else tmp_path
    assert cache.copy(made, PLACE) == []
    assert objects(memory) == contents(made)
    with cache.open(made) as one, cache.open(PLACE) as two:
        same(one, two)
        assert two.verify() == []
        table, local = two.table("image/train"), one.table("image/train")
        rows = np.array([22, 3, 3, -1])
        np.testing.assert_array_equal(table.read(rows), local.read(rows))
        np.testing.assert_array_equal(table.read(slice(3, 17)), local.read(slice(3, 17)))
        blocks = [block for _, block in table.stream(block=6)]
        np.testing.assert_array_equal(np.concatenate(blocks), local.read())
        np.testing.assert_array_equal(table.stat(), local.stat())
    cache.copy(PLACE, tmp_path / "back" / "cache")
    assert contents(tmp_path / "back" / "cache") == contents(made)


@pytest.mark.parametrize("first", ["cache", "cache.h5"])
def test_both_formats_go_there_and_a_cache_moves_on(make, tmp_path: Path, memory, first: str):
    cache.copy(make(tmp_path / first), PLACE)
    cache.copy(PLACE, "memory://folder/other")
    cache.copy("memory://folder/other", tmp_path / "back.h5")
    with cache.open(PLACE) as one, cache.open(tmp_path / "back.h5") as two:
        same(one, two)


def test_a_table_is_made_there_row_by_row_and_sealed_last(source: Source, memory):
    with cache.create(PLACE, "pets", CLASSES) as made:
        with source.begin(made) as writer:
            source.write(writer, [0, 2])
        with pytest.raises(Unsealed, match="10 of 23 rows"):
            cache.open(PLACE)
        with source.begin(made) as writer:
            assert writer.pending == [1, 3, 4]
            source.write(writer)
            assert writer.seal({"purity": 0.0})
        text = np.ones((3, 7), np.float16)
        made.add("text", "vanilla", text, np.arange(3), encoder="toy")
        made.add("text", "vanilla", 2 * text, np.arange(3), encoder="toy", overwrite=True)
    with cache.open(PLACE) as opened:
        assert opened.tables() == ["image/train", "text/vanilla"]
        np.testing.assert_array_equal(opened.table("image/train").read(), source.stored())
        assert opened.table("text/vanilla").read().max() == 2
        assert opened.table("image/train").failures() == {source.ids[7]: source.reasons[1][2]}
        assert opened.verify() == []
    assert not [name for name in objects(memory) if "/." in name or name.startswith(".")]


def test_a_table_counts_once_its_own_metadata_are_there(source: Source, memory):
    """A process that dies while it begins a table leaves objects that are no table."""
    with cache.create(PLACE, "pets", CLASSES) as made:
        source.begin(made).close()
        memory.rm_file("/folder/cache/image/train/zarr.json")
        assert made.unsealed() == []
        source.begin(made).close()
        assert made.unsealed() == ["image/train"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"\1" + data[1:], "chunk 3 differs from what was sealed"),
        (lambda data: data[:-1], "it has 279 of 280 bytes"),
        (lambda data: data + b"\0", "it has 281 of 280 bytes"),
        (None, "it is missing"),
    ],
)
def test_a_damaged_object_is_an_error_and_never_another_number(
    make, tmp_path: Path, memory, change, message: str
):
    cache.copy(make(tmp_path / "cache"), PLACE)
    key = "/folder/cache/image/train/features/c.3.0.0"
    good = memory.cat_file(key)
    if change is None:
        memory.rm_file(key)
    else:
        memory.pipe_file(key, change(good))
    with cache.open(PLACE) as opened:
        table = opened.table("image/train")
        assert len(table.read(slice(0, 15))) == 15
        with pytest.raises(Corrupt, match=message):
            table.read()
        assert [problem.chunk for problem in opened.verify()] == [3]
    with pytest.raises(Corrupt, match=message):
        cache.copy(PLACE, "memory://folder/copy")
    with pytest.raises(Unsealed, match="15 of 23 rows"):
        cache.open("memory://folder/copy")
    memory.pipe_file(key, good)
    cache.copy(PLACE, "memory://folder/copy")
    with cache.open("memory://folder/copy") as opened:
        assert opened.verify() == []
        assert opened.table("image/train").rows == N


def test_what_another_cache_holds_is_not_replaced(make, tmp_path: Path, memory):
    with cache.create(PLACE, "dogs", CLASSES) as other:
        other.add("audio", "train", np.ones((3, 4), np.float32), [0, 1, 2], encoder="toy")
    with pytest.raises(Mismatch, match=r"memory://folder/cache is not a copy of .*give a new place"):
        cache.copy(make(tmp_path / "cache"), PLACE)
    with pytest.raises(CacheError, match="is the cache that is to be copied; give a new place"):
        cache.copy(PLACE, PLACE)


def test_a_file_of_hdf5_is_read_in_place_alone(make, tmp_path: Path, memory):
    line = (
        r"memory://folder/cache.h5 is an .h5 file at an address .*`spaner cache copy cache.h5 memory://fold"
    )
    for far in (lambda path: cache.open(path), lambda path: cache.create(path, "pets", CLASSES)):
        with pytest.raises(CacheError, match=line):
            far(PLACE + ".h5")
    with pytest.raises(CacheError, match=line):
        cache.copy(make(tmp_path / "cache"), PLACE + ".h5")


def test_nothing_there_a_kind_that_nobody_knows_and_a_missing_package(memory, monkeypatch):
    with pytest.raises(CacheError, match=r"^no cache at memory://folder/cache; make one with `spaner extr"):
        cache.open(PLACE)
    with pytest.raises(CacheError, match=r"^ftpx://a/b: Protocol not known: ftpx; expected s3:, gs:, memory"):
        cache.open("ftpx://a/b")
    with pytest.raises(CacheError, match=r"^gs://a/b needs a package .*; type `pip install gcsfs`$"):
        cache.open("gs://a/b")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    line = r"^s3://a/b needs a package .*; type `pip install 'spaner\[remote\]'`$"
    with pytest.raises(CacheError, match=line):
        cache.open("s3://a/b")


def test_a_whole_bucket_is_no_place_for_a_cache(memory):
    with pytest.raises(CacheError, match=r"^s3://bucket is a bucket, expected a name in it; type for exampl"):
        lock_path(place("s3://bucket"), "root")
    assert lock_path(place(PLACE), "root") == place("memory://folder/.cache.root.lock")


def test_nothing_is_taken_for_a_folder(make, tmp_path: Path, memory, monkeypatch):
    """Merged there, begun there, asked whose it is: no folder named "memory:" comes into being."""
    one, two = make(tmp_path / "one"), tmp_path / "two"
    with cache.create(two, "pets", CLASSES) as made:
        made.add("audio", "train", np.ones((3, 4), np.float32), [0, 1, 2], encoder="toy")
    monkeypatch.chdir(tmp_path)
    cache.merge([one, two], Path(PLACE))
    with cache.open(PLACE) as opened:
        assert opened.tables() == ["audio/train", "image/train", "text/vanilla"]
    assert opening.whose(Path(PLACE)) == ("pets", CLASSES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
