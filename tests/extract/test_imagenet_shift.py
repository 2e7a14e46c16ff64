"""Readers of the domain-shift sets on small trees: class order, names, 200-way sets, and each message."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spaner.errors import DatasetError
from spaner.extract.datasets import dataset
from spaner.extract.datasets.imagenet import class_names, synsets
from spaner.extract.datasets.imagenet_shift import SKETCH, V2, A, R, Shift, read

NUMBERED = Shift("imagenet-v2", 13, 27, "archive", numbered=True)
BY_WNID = Shift("imagenet-a", 3, 4, "archive")


def tree(base: Path, folders: dict[str, int]) -> Path:
    for folder, images in folders.items():
        (base / folder).mkdir(parents=True)
        for i in range(images):
            (base / folder / f"{i}.jpg").touch()
    return base


def test_numbered_folders_are_in_numeric_order(tmp_path):
    tree(tmp_path, {str(i): 2 + (i == 10) for i in range(13)})
    found = read(NUMBERED, root=tmp_path)
    split = found.splits["image"]["test"]
    assert [split.ids[i] for i in (0, 2, 4, 20, 22)] == [
        "0/0.jpg",
        "1/0.jpg",
        "2/0.jpg",
        "10/0.jpg",
        "10/2.jpg",
    ]
    assert split.labels.tolist() == sorted(i for i in range(13) for _ in range(2 + (i == 10)))
    assert found.class_names[:2] == ["tench", "goldfish"]
    assert found.class_names[10] == class_names(synsets())[10]


def test_wnid_folders_follow_the_imagenet_index_and_keep_their_names(tmp_path):
    chosen = ["n02123045", "n01443537", "n03770679"]  # tabby cat 281, goldfish 1, minivan 656
    tree(tmp_path, {chosen[0]: 1, chosen[1]: 2, chosen[2]: 1})
    (tmp_path / "README.txt").touch()
    (tmp_path / ".cache").mkdir()
    found = read(BY_WNID, root=tmp_path)
    assert found.class_names == ["goldfish", "tabby cat", "minivan"]
    assert found.splits["image"]["test"].ids == [
        "n01443537/0.jpg",
        "n01443537/1.jpg",
        "n02123045/0.jpg",
        "n03770679/0.jpg",
    ]
    assert found.splits["image"]["test"].labels.tolist() == [0, 0, 1, 2]
    assert "3-way" in found.ledger["order"]


def test_the_archives_own_folder_below_is_found_and_images_open(tmp_path):
    tree(tmp_path / "archive", dict.fromkeys(synsets()[:3], 1))
    Image.fromarray(np.full((5, 7, 3), 50, np.uint8)).save(tmp_path / "archive" / synsets()[1] / "real.png")
    split = read(BY_WNID, str(tmp_path)).splits["image"]["test"]
    assert split.ids[2] == f"{synsets()[1]}/real.png"
    assert split.open(split.ids[2]).size == (7, 5)


@pytest.mark.parametrize(("spec", "shift"), [("v2", V2), ("sketch", SKETCH), ("a", A), ("r", R)])
def test_registered_and_a_missing_tree_says_what_to_type(spec, shift, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = "folders 0 to 999" if shift is V2 else f"{shift.classes:,} folders named by wnid"
    place = f"imagenet-{spec} not found at data/imagenet-{spec}: no such folder"
    with pytest.raises(DatasetError, match=f"{place}; expected {folders}; type `--data-root PATH`"):
        dataset.read(f"imagenet-{spec}")


def test_the_whole_of_v2(tmp_path):
    for i in range(1000):
        (tmp_path / str(i)).mkdir()
        for j in range(10):
            (tmp_path / str(i) / f"{j}.jpeg").touch()
    found = dataset.read("imagenet-v2", tmp_path)
    assert np.array_equal(found.splits["image"]["test"].labels, np.repeat(np.arange(1000), 10))
    assert found.class_names == class_names(synsets())


def test_bad_trees(tmp_path):
    with pytest.raises(DatasetError, match="found no class folders; expected 3 folders named by wnid"):
        read(BY_WNID, root=tmp_path)
    few = tree(tmp_path / "few", dict.fromkeys(["0", "1", "3"], 1))
    with pytest.raises(
        DatasetError, match=r"found 3 class folders \(the first missing is 2\); imagenet-v2 has 13; unpack"
    ):
        read(NUMBERED, root=few)
    two = tree(tmp_path / "two", dict.fromkeys(synsets()[:2], 1))
    with pytest.raises(DatasetError, match="found 2 class folders; imagenet-a has 3; unpack all of it"):
        read(BY_WNID, root=two)
    strange = tree(tmp_path / "strange", {"n00000001": 1, **dict.fromkeys(synsets()[:3], 1)})
    with pytest.raises(
        DatasetError, match=r"n00000001: no class of imagenet-a \(1 such folders\); expected 3 folders"
    ):
        read(BY_WNID, root=strange)
    empty = tree(tmp_path / "empty", {synsets()[0]: 0, **dict.fromkeys(synsets()[1:3], 2)})
    with pytest.raises(DatasetError, match=f"{synsets()[0]}: found no samples; expected at least one file"):
        read(BY_WNID, root=empty)
    short = tree(tmp_path / "short", dict.fromkeys(synsets()[:3], 1))
    with pytest.raises(
        DatasetError, match=r"found 3 images; imagenet-a has 4; unpack all of it, or type `--dataset folder:"
    ):
        read(BY_WNID, root=short)
