"""ESC-50 and the ImageNet-ESC class maps, on a made-up listing in the published layout and on real clips."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spaner.align.paper.audio import other_folds
from spaner.cache.draws import first_shots
from spaner.errors import CacheError, DatasetError
from spaner.extract.datasets import dataset as datasets
from spaner.extract.datasets import esc50
from spaner.extract.datasets.audio import waveform

CATEGORIES = [category for _, _, category in esc50.class_map(27)]


def build(root: Path, rows: list[tuple], columns: tuple[str, ...] = esc50.COLUMNS) -> Path:
    """ESC-50's layout; one sound file stands for all."""
    for name in ("meta", "audio"):
        (root / name).mkdir(parents=True)
    with (root / "meta" / "esc50.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    if rows:
        soundfile.write(root / "audio" / rows[0][0], np.full(5, 0.5), 44_100)
    return root


def listing(clips: int = 2, categories: list[str] | None = None) -> list[tuple[str, int, int, str]]:
    """Folds 1 to 5, targets in reverse alphabetical order, and one category that no map has."""
    names = sorted([*(categories or CATEGORIES), "siren"], reverse=True)
    return [
        (f"{fold}-{clip}-{target}.wav", fold, target, name)
        for fold in range(1, 6)
        for clip in range(clips)
        for target, name in enumerate(names)
    ]


def test_esc50_has_folds_as_splits_and_names_by_target(tmp_path: Path) -> None:
    found = datasets.read("esc50", build(tmp_path / "esc50", listing()))
    assert list(found.splits["audio"]) == ["fold1", "fold2", "fold3", "fold4", "fold5"]
    assert found.class_names[:2] == ["water drops", "washing machine"]
    fold = found.splits["audio"]["fold3"]
    assert (len(fold), fold.ids[0], fold.labels[:3].tolist()) == (56, "audio/3-0-0.wav", [0, 1, 2])
    assert found.encoders == {"audio": "esresnext"}


@pytest.mark.parametrize("classes", [19, 27])
def test_imagenet_esc_maps_sounds_to_imagenet_names(classes: int, tmp_path: Path) -> None:
    found = datasets.read(f"imagenet-esc-{classes}", build(tmp_path / "esc50", listing()))
    assert len(found.class_names) == classes
    assert found.class_names[:5] == ["rooster", "hen", "chickadee", "tree frog", "Otterhound"]
    assert found.class_names[-1] == {19: "washing machine", 27: "sandbar"}[classes]
    fold = found.splits["audio"]["fold2"]
    assert len(fold) == 2 * classes
    target_of = {target: name for _, _, target, name in listing()}
    for key, label in zip(fold.ids, fold.labels, strict=True):
        category = target_of[int(Path(key).stem.split("-")[2])]
        assert esc50.class_map(classes)[label][2] == category


def test_the_maps_are_imagenets_own() -> None:
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    rows = esc50.class_map(27)
    assert [index for index, _, _ in rows] == sorted({index for index, _, _ in rows})
    assert all(IMAGENET_CLASSNAMES[index] == name for index, name, _ in rows)
    assert set(esc50.class_map(19)) < set(rows)
    assert len(esc50.class_map(19)) == 19


def test_imagenet_esc_brings_images_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGENET_ROOT", raising=False)
    build(tmp_path / "esc50", listing())
    from spaner.extract.datasets.imagenet import synsets

    wnids = synsets()
    for index in [0, *(index for index, _, _ in esc50.class_map(27)), 999]:
        for split in ("train", "val"):
            folder = tmp_path / "imagenet" / split / wnids[index]
            folder.mkdir(parents=True)
            (folder / "a.JPEG").touch()
    found = datasets.read("imagenet-esc-19", tmp_path)
    test = found.splits["image"]["test"]
    assert test.labels.tolist() == list(range(19))
    assert test.ids[4] == f"val/{wnids[175]}/a.JPEG"
    (tmp_path / "imagenet" / "train" / wnids[7] / "a.JPEG").unlink()
    for split in ("train", "val"):
        folder = tmp_path / "imagenet" / split / wnids[7]
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    with pytest.raises(DatasetError, match="no class rooster"):
        datasets.read("imagenet-esc-19", tmp_path)


def without(rows: list, **gone) -> list:
    return [row for row in rows if not all(row[esc50.COLUMNS.index(k)] == v for k, v in gone.items())]


BROKEN = {
    "ESC-50 not found": lambda root: root,
    "column 'fold' is missing": lambda root: build(root, [("a.wav", 1, 2)], ("filename", "split", "target")),
    # type: ignore[list-item] "found no rows": lambda root: build(root, []),
    "line 3 has fold '6'": lambda root: build(root, [("a.wav", 1, 0, "dog"), ("b.wav", 6, 0, "dog")]),
    "do not pair up": lambda root: build(root, [("a.wav", 1, 0, "dog"), ("b.wav", 1, 0, "cat")]),
    "no clip of pig": lambda root: build(root, without(listing(), category="pig")),
    "fold 4 has no clip of rooster": lambda root: build(root, without(listing(), fold=4)),
    "fold 2 has no clip of train": lambda root: build(root, without(listing(), fold=2, category="train")),
}


@pytest.mark.parametrize("problem", BROKEN)
def test_problems_end_in_one_line(problem: str, tmp_path: Path) -> None:
    root = BROKEN[problem](tmp_path / "esc50")
    with pytest.raises(DatasetError, match=problem) as caught:
        datasets.read("imagenet-esc-27", root)
    assert "\n" not in str(caught.value)


def test_zero_sound_files_end_in_one_line(tmp_path: Path) -> None:
    root = build(tmp_path / "esc50", listing())
    next((root / "audio").iterdir()).unlink()
    with pytest.raises(DatasetError, match="found none of the 280 listed clips"):
        datasets.read("esc50", root)


def test_first_shots_follow_the_listing() -> None:
    labels = np.array([2, 0, 2, 0, 1, 1, 2, 0, 2, 1, 0, 1])
    train, validate = first_shots(labels, 2)
    assert train.tolist() == [1, 3, 4, 5, 0, 2]
    assert validate.tolist() == [7, 10, 9, 11, 6, 8]
    train, validate = first_shots(labels, 1)
    assert (train.tolist(), validate.tolist()) == ([1, 4, 0], [3, 5, 2])


def test_folds_that_test_are_the_other_four() -> None:
    present = [f"fold{i}" for i in range(1, 6)]
    assert other_folds(3, present) == ["fold1", "fold2", "fold4", "fold5"]
    with pytest.raises(CacheError, match=r"fold2, fold4, fold5 missing.*--splits fold2"):
        other_folds(1, ["fold1", "fold3"])
    with pytest.raises(CacheError, match="expected 1 to 5"):
        other_folds(6, present)


@pytest.mark.parametrize(("shots", "problem"), [(0, "at least 1"), (4, "class 0 has 3")])
def test_impossible_shots_are_refused(shots: int, problem: str) -> None:
    with pytest.raises(CacheError, match=problem):
        first_shots(np.zeros(3, np.int32), shots)


def test_real_clips(sample_data: Path) -> None:
    found = datasets.read("esc50", sample_data / "esc50_sample")
    assert found.class_names == ["cat", "thunderstorm", "coughing", "clock alarm", "car horn"]
    assert {name: split.labels.tolist() for name, split in found.splits["audio"].items()} == {
        "fold1": [4, 2],
        "fold3": [0, 3, 1],
    }
    for split in found.splits["audio"].values():
        for key in split.ids:
            assert waveform(split.open(key), 5.0).shape == (1, 220_500)
