"""Another place, and the other format and back, without losing a bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spaner import cache
from spaner.errors import CacheError, Corrupt, Mismatch, Unsealed
from tests.cache.conftest import CLASSES


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
    cache.copy(made, tmp_path / second)
    with cache.open(made) as one, cache.open(tmp_path / second) as two:
        same(one, two)
        assert two.verify() == []
    (tmp_path / "b").mkdir()
    cache.copy(tmp_path / second, tmp_path / "b" / first)
    there, back = contents(tmp_path / "a" / first), contents(tmp_path / "b" / first)
    assert there == back
    assert not list(tmp_path.glob(".*"))


def test_a_copy_in_the_same_format_is_byte_identical(make, path: Path, tmp_path: Path, contents):
    (tmp_path / "copy").mkdir()
    made = make(path)
    assert cache.copy(made, tmp_path / "copy" / path.name) == []
    assert contents(tmp_path / "copy" / path.name) == {
        name: data for name, data in contents(made).items() if not name.startswith("copy")
    }


def test_a_damaged_source_leaves_an_unfinished_copy_which_continues(make, path: Path, tmp_path: Path):
    made, target = make(tmp_path / "source"), path.with_name(f"copy{path.suffix}")
    file = made / "image/train/features/c.3.0.0"
    good = file.read_bytes()
    file.write_bytes(b"\1" + good[1:])
    with pytest.raises(Corrupt, match=r"image/train of .*source is damaged: chunk 3"):
        cache.copy(made, target)
    with pytest.raises(Unsealed, match="15 of 23 rows"):
        cache.open(target)
    file.write_bytes(good)
    told = []
    cache.copy(made, target, lambda done, total, what: told.append((done, total, what)))
    assert told == [
        *((rows, 23, "image/train") for rows in (15, 20, 23)),
        *((rows, 3, "text/vanilla") for rows in (0, 3)),
    ]
    with cache.open(made) as one, cache.open(target) as two:
        same(one, two)
        assert two.verify() == []


def test_a_finished_copy_is_left_as_it_is(make, path: Path, contents):
    made = make(path)
    target = path.parent / "copies" / path.name
    cache.copy(made, target)
    before = {name: (target.parent.parent / name).stat().st_mtime_ns for name in contents(path)}
    cache.copy(made, target)
    assert before == {name: (target.parent.parent / name).stat().st_mtime_ns for name in contents(path)}


def test_what_is_not_finished_is_left_out_and_said(make, tmp_path: Path, source):
    made = make(tmp_path / "cache")
    with cache.create(made, "pets", CLASSES) as opened:
        other = replace(source.manifest, split="test")
        opened.begin(other, source.ids, source.labels, source.draws).close()
    (line,) = cache.copy(made, tmp_path / "copy.h5")
    assert line.startswith("image/test of ")
    assert line.endswith("continue (left out)")
    with cache.open(tmp_path / "copy.h5") as opened:
        assert opened.tables() == ["image/train", "text/vanilla"]


def test_a_target_that_is_no_copy_is_refused(make, tmp_path: Path, source):
    made = make(tmp_path / "cache")
    with pytest.raises(CacheError, match="is the cache that is to be copied; give a new place"):
        cache.copy(made, tmp_path / "." / "cache")
    with cache.create(tmp_path / "more", "pets", CLASSES) as more:
        more.add("audio", "train", np.ones((3, 4), np.float32), [0, 1, 2], encoder="toy")
    with pytest.raises(Mismatch, match="it has another table audio/train; give a new place"):
        cache.copy(made, tmp_path / "more")
    with cache.create(tmp_path / "dogs", "dogs", CLASSES):
        pass
    with pytest.raises(Mismatch, match=r"not a copy of .*cache of dataset 'dogs', asked for 'pets'; give"):
        cache.copy(made, tmp_path / "dogs")
    with cache.create(tmp_path / "other", "pets", CLASSES) as other:
        manifest = replace(source.manifest, seed=4)
        other.begin(manifest, source.ids, source.labels, source.draws).close()
    with pytest.raises(Mismatch, match=r"is not a copy of .*seed 4 there, 3 asked; give a new place"):
        cache.copy(made, tmp_path / "other")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CacheError, match="file is not a spaner cache"):
        cache.copy(made, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
