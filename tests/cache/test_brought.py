"""What users have as arrays: taken as it is meant, or refused in one line; never changed without a word."""

import errno
import fcntl
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spaner import cache
from spaner.cache import files
from spaner.cache.lock import Lock, lock_path
from spaner.errors import CacheError, Unsealed

X = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
NAMES = ["cat", "dog"]


def added(
    folder: Path, labels: Any = (0, 1, 0, 1), *, features: Any = X, ids: Any = None, names=NAMES
) -> cache.Table:
    with cache.create(folder / "c", "pets", names) as made:
        made.add("image", "train", features, labels, ids, encoder="e")
    return cache.open(folder / "c").table("image/train")


@pytest.mark.parametrize(
    "labels",
    [
        [0.0, 1.0, 0.0, 1.0],
        ["cat", "dog", "cat", "dog"],
        np.array(["cat", "dog", "cat", "dog"], object),
        np.array([b"cat", b"dog", b"cat", b"dog"]),
        np.array([False, True, False, True]),
        np.ma.masked_array([0, 1, 0, 1]),
    ],
)
def test_labels_as_people_have_them(tmp_path: Path, labels) -> None:
    assert added(tmp_path, labels).labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0.7, 1, 0, 1], "label 0.7 of row 0 .* is no class index"),
        ([0, 1, np.nan, 1], "label nan of row 2"),
        ([0, 1, np.inf, 1], "label inf"),
        (np.array([0, None, 1, 1], object), "is no class index"),
        (
            np.ma.masked_array([0, 1, 0, 1], mask=[False, False, False, True]),
            "labels of image/train hold 1 masked",
        ),
        (["cat", "dog", "cow", "dog"], "'cow' in image/train is none of the 2 class names"),
        (np.zeros((4, 1)), "expected one per row"),
    ],
)
def test_labels_that_mean_nothing(tmp_path: Path, labels, said: str) -> None:
    with pytest.raises(CacheError, match=said):
        added(tmp_path, labels)


def test_a_name_of_two_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="'crane' in image/train names two classes"):
        added(tmp_path, ["crane"] * 4, names=["crane", "crane"])


def test_ids_as_bytes_are_text(tmp_path: Path) -> None:
    assert added(tmp_path, ids=np.array([b"a", b"b", b"c", b"d"])).ids.tolist() == ["a", "b", "c", "d"]


@pytest.mark.parametrize("bad", [None, float("nan")])
def test_ids_that_are_missing(tmp_path: Path, bad) -> None:
    with pytest.raises(CacheError, match="of row 1 in image/train names no sample"):
        added(tmp_path, ids=["a", bad, "c", "d"])


def test_tensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    assert np.array_equal(added(tmp_path, features=torch.tensor(X, requires_grad=True)).read()[:, 0], X)
    half = torch.tensor(X).bfloat16()
    (tmp_path / "b").mkdir()
    assert np.array_equal(added(tmp_path / "b", features=half).read()[:, 0], half.float().numpy())


def test_masked_features_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="features of image/train hold 4 masked values"):
        added(tmp_path, features=np.ma.masked_array(X, mask=np.eye(4, 8, dtype=bool)))


def test_an_opened_hdf5_table_goes_to_another_process(tmp_path: Path) -> None:
    with cache.create(tmp_path / "p.h5", "pets", NAMES) as made:
        made.add("image", "train", X, [0, 1, 0, 1], encoder="e")
    again = pickle.loads(pickle.dumps(cache.open(tmp_path / "p.h5").table("image/train")))  # noqa: S301
    assert np.array_equal(again.read()[:, 0], X)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_takes_claims(tmp_path: Path, monkeypatch, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    added(tmp_path)
    left = sorted(file.name for file in tmp_path.iterdir())
    assert len(left) == 1, f"the cache alone, no lock and no claim beside it: {left}"
    assert cache.open(tmp_path / left[0]).table("image/train").rows


def test_locks_and_temporaries_follow_no_link(tmp_path: Path, monkeypatch) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    lock_path(tmp_path / "c", "image/train").symlink_to(precious)
    with pytest.raises(CacheError, match=r"\.c\.image=train\.lock is a link, .* remove it"):
        Lock(lock_path(tmp_path / "c", "image/train"), "it")
    lock_path(tmp_path / "c", "image/test").hardlink_to(precious)
    with pytest.raises(CacheError, match=r"\.c\.image=test\.lock is a link, .* remove it"):
        Lock(lock_path(tmp_path / "c", "image/test"), "it")
    assert files.temporary(tmp_path / "new") != files.temporary(tmp_path / "new")
    monkeypatch.setattr(files, "temporary", lambda path: path.with_name("foreseen"))
    (tmp_path / "foreseen").symlink_to(precious)
    with pytest.raises(CacheError, match=r"cannot write .*new: File exists"):
        files.write(tmp_path / "new", b"theirs")
    assert precious.read_text() == "mine"


def test_names_that_differ_by_a_separator_stay_apart(tmp_path: Path) -> None:
    with cache.create(tmp_path / "c", "pets", NAMES) as made:
        for modality, split, shift in (("image", "x-y", 0), ("image-x", "y", 1)):
            made.add(modality, split, X + shift, [0, 1, 0, 1], encoder="e")
    found = cache.export(cache.open(tmp_path / "c"), tmp_path / "out")
    assert len(set(found)) == 4
    assert lock_path(tmp_path / "c", "a+b/c") != lock_path(tmp_path / "c", "a/b+c")


def test_a_table_that_a_kill_left_unsealed_is_not_called_sound(tmp_path: Path) -> None:
    from spaner.cli.cache import verify

    table = added(tmp_path)
    with cache.create(tmp_path / "c", "pets", NAMES) as made:
        made.add("image", "test", X, [0, 1, 0, 1], encoder="e")
        made.begin(table.manifest, table.ids.tolist(), table.labels).reset([0])  # as repair does, then dies
        made.close()
    with pytest.raises(Unsealed, match=r"is not finished: image/train .* run the same `spaner extract`"):
        verify(tmp_path / "c")
    with cache.open(tmp_path / "c") as opened:
        (problem,) = opened.verify()
    assert (problem.table, problem.part) == ("image/train", "unfinished")
