"""Readers: the right rows from every layout, and one line for every layout that is wrong."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from spaner.cache import few_shot
from spaner.cache.draws import read_draw
from spaner.errors import DatasetError
from spaner.extract.datasets.dataset import Dataset, read
from spaner.extract.datasets.imagenet import class_names, synsets
from tests.extract.conftest import CLASSES, fill_folder, picture

WNIDS = ("n01514668", "n01514859", "n04548280")  # rooster, hen, wall clock


def wrong(spec: str, root: Path | None = None, **options: float) -> str:
    with pytest.raises(DatasetError) as caught:
        read(spec, root, **options)  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows(dataset: Dataset, split: str) -> list[tuple[str, int]]:
    part = dataset.splits["image"][split]
    assert part.labels.dtype == np.int32
    return list(zip(part.ids, part.labels.tolist(), strict=True))


# -- folder ----------------------------------------------------------------------------------------


def test_split_folders_become_splits(class_folders: Path) -> None:
    dataset = read(f"folder:{class_folders}")
    assert dataset.name == "photos"
    assert dataset.class_names == ["red fox", "sea", "wall clock"]
    assert rows(dataset, "train")[6:8] == [("train/red_fox/6.jpg", 0), ("train/sea/0.jpg", 1)]
    assert {split: len(part) for split, part in dataset.splits["image"].items()} == {"train": 21, "test": 15}
    assert dataset.splits["image"]["test"].open("test/sea/0.jpg").size == (41, 37)


def test_without_split_folders_a_seeded_stratified_holdout_is_set_apart(class_folders: Path) -> None:
    first = read("folder:train", class_folders)
    train, test = rows(first, "train"), rows(first, "test")
    assert not {key for key, _ in train} & {key for key, _ in test}
    assert [sum(label == c for _, label in test) for c in range(3)] == [1, 1, 1]
    assert rows(read("folder:train", class_folders), "test") == test
    assert any(rows(read("folder:train", class_folders, seed=s), "test") != test for s in range(1, 5))
    assert len(rows(read("folder:train", class_folders, holdout=0.5), "test")) == 12
    assert list(read("folder:train", class_folders, holdout=0).splits["image"]) == ["train"]


def test_a_class_of_one_image_is_for_training(tmp_path: Path) -> None:
    fill_folder(tmp_path / "x" / "a", 1, 0)
    fill_folder(tmp_path / "x" / "b", 2, 0)
    assert rows(read(f"folder:{tmp_path / 'x'}"), "train")[0] == ("a/0.jpg", 0)


def test_classes_txt_gives_order_and_names(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fill_folder(tmp_path / "train" / name, 2, 0)
    (tmp_path / "classes.txt").write_text("b  the second\na\n")
    dataset = read(f"folder:{tmp_path}")
    assert dataset.class_names == ["the second", "a"]
    assert rows(dataset, "train")[0] == ("train/b/0.jpg", 0)
    (tmp_path / "classes.txt").write_text("b  the second\n")
    assert "no line for class folder 'a'" in wrong(f"folder:{tmp_path}")


def test_hidden_files_are_ignored_and_links_followed(tmp_path: Path, class_folders: Path) -> None:
    (tmp_path / "x" / ".git").mkdir(parents=True)
    (tmp_path / "x" / "sea").symlink_to(class_folders / "test" / "sea")
    fill_folder(tmp_path / "x" / "fox", 2, 0)
    (tmp_path / "x" / "fox" / ".DS_Store").touch()
    dataset = read(f"folder:{tmp_path / 'x'}", holdout=0)
    assert dataset.class_names == ["fox", "sea"]
    assert len(dataset.splits["image"]["train"]) == 7


def test_folder_mistakes(tmp_path: Path, class_folders: Path) -> None:
    assert "no such folder" in wrong("folder:nowhere", tmp_path)
    assert "no such folder" in wrong("folder:")
    assert "found no class folders" in wrong(f"folder:{tmp_path}")
    (tmp_path / "train" / "sea").mkdir(parents=True)
    assert "train/sea: found no samples; expected at least one file" in wrong(f"folder:{tmp_path}")
    assert "--holdout 1.0: expected a share" in wrong("folder:train", class_folders, holdout=1.0)


def test_a_test_class_that_train_lacks_is_named(tmp_path: Path, class_folders: Path) -> None:
    shutil.copytree(class_folders, tmp_path / "x")
    fill_folder(tmp_path / "x" / "test" / "zebra", 1, 0)
    assert "class 'zebra' is in test but not in train (1 such)" in wrong(f"folder:{tmp_path / 'x'}")


def test_whatever_is_no_row_is_counted(tmp_path: Path, class_folders: Path) -> None:
    base = tmp_path / "x"
    shutil.copytree(class_folders, base)
    (base / "train" / "sea" / "deep" / "er").mkdir(parents=True)
    for path in (
        "train/loose.jpg",
        "train/sea/deep/1.jpg",
        "train/sea/deep/er/2.jpg",
        "train/sea/LICENSE.txt",
    ):
        (base / path).touch()
    for folder in ("__MACOSX", "train/@eaDir", "train/sea/.git"):
        (base / folder).mkdir()
    dataset = read(f"folder:{base}")
    assert {split: len(part) for split, part in dataset.splits["image"].items()} == {"train": 21, "test": 15}
    assert dataset.left_out == {
        "left by other programs": (2, "__MACOSX"),
        "beside the class folders": (1, "train/loose.jpg"),
        "hidden": (1, "train/sea/.git"),
        "no samples by their ending": (1, "train/sea/LICENSE.txt"),
        "in folders inside a class folder": (2, "train/sea/deep/1.jpg"),
    }


def test_what_cannot_be_opened_is_a_row_that_fails(tmp_path: Path) -> None:
    fill_folder(tmp_path / "x" / "a", 1, 0)
    (tmp_path / "x" / "a" / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "x" / "a" / "pipe.jpg")
    split = read(f"folder:{tmp_path / 'x'}", holdout=0).splits["image"]["train"]
    assert list(split.ids) == ["a/0.jpg", "a/gone.jpg", "a/pipe.jpg"]
    for key in split.ids[1:]:
        with pytest.raises(ValueError, match=r"a link to nothing|a pipe"):
            split.open(key)
    (tmp_path / "x" / "b").symlink_to("nowhere")
    assert "x/b: a link to nothing where class folders are" in wrong(f"folder:{tmp_path / 'x'}")


def test_splits_may_be_written_in_capitals_but_not_twice(tmp_path: Path, class_folders: Path) -> None:
    base = tmp_path / "x"
    shutil.copytree(class_folders / "train", base / "Train")
    shutil.copytree(class_folders / "test", base / "VALID")
    assert rows(read(f"folder:{base}"), "val")[0] == ("VALID/red_fox/0.jpg", 0)
    shutil.copytree(class_folders / "test", base / "val")
    assert "VALID/ and val/ are both the split val" in wrong(f"folder:{base}")


def test_split_folders_beside_another_are_not_taken_for_classes(tmp_path: Path, class_folders: Path) -> None:
    base = tmp_path / "x"
    shutil.copytree(class_folders, base)
    fill_folder(base / "extra", 1, 0)
    assert "split folders (test, train) beside another folder, extra/" in wrong(f"folder:{base}")
    for name in ("car", "train"):
        fill_folder(tmp_path / "vehicles" / name, 2, 0)
    assert read(f"folder:{tmp_path / 'vehicles'}").class_names == ["car", "train"]


def test_one_file_a_class_leaves_no_test_split(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fill_folder(tmp_path / "x" / name, 1, 0)
    dataset = read(f"folder:{tmp_path / 'x'}")
    assert list(dataset.splits["image"]) == ["train"]
    assert dataset.left_out == {"splits without rows": (1, "image/test")}


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a_b", "a b", "c"):
        fill_folder(tmp_path / "x" / name, 1, 0)
    assert "classes 'a b' and 'a_b' are both named 'a b'" in wrong(f"folder:{tmp_path / 'x'}")
    listing = tmp_path / "x" / "classes.txt"
    listing.write_text("a b  second\na_b first\nc\nd never\n")
    dataset = read(f"folder:{tmp_path / 'x'}")
    assert dataset.class_names == ["second", "first", "c"]
    assert dataset.left_out["lines of classes.txt without a folder"] == (1, "d")
    listing.write_text("a b  one\na_b one\nc\n")
    assert "classes 'one' and 'one' are both named 'one'" in wrong(f"folder:{tmp_path / 'x'}")
    listing.write_text("a b  one\na_b two\nc\na_b three\n")
    assert "line 4 names folder 'a_b' again" in wrong(f"folder:{tmp_path / 'x'}")


def test_sounds_with_a_licence_are_sounds_and_a_mixture_is_refused(tmp_path: Path) -> None:
    for name in ("LICENSE.txt", "1.wav", "2.WAV"):
        (tmp_path / "x" / "bark").mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / "bark" / name).touch()
    dataset = read(f"folder:{tmp_path / 'x'}", holdout=0)
    assert list(dataset.splits["audio"]["train"].ids) == ["bark/1.wav", "bark/2.WAV"]
    picture(0).save(tmp_path / "x" / "bark" / "3.jpg")
    assert "holds sounds and pictures (bark/1.wav, bark/3.jpg)" in wrong(f"folder:{tmp_path / 'x'}")


def test_the_home_folder_may_be_written_as_a_tilde(
    class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(class_folders.parent))
    assert len(read("folder:~/photos").splits["image"]["train"]) == 21
    assert len(read("folder:photos", Path("~")).splits["image"]["train"]) == 21


# -- csv -------------------------------------------------------------------------------------------


def listing(folder: Path, lines: list[tuple[str, ...]], header: tuple[str, ...]) -> Path:
    with (folder / "list.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *lines])
    return folder / "list.csv"


def test_a_csv_gives_its_rows_in_order(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "p.jpg")
    lines = [
        ("p.jpg", "big dog", "train", "one"),
        ("q.jpg", "ant", "train", ""),
        ("p.jpg", "ant", "test", "x"),
    ]
    dataset = read(f"csv:{listing(tmp_path, lines, ('path', 'label', ' split', 'id'))}")
    assert dataset.class_names == ["ant", "big dog"]
    assert rows(dataset, "train") == [("one", 1), ("q.jpg", 0)]
    assert dataset.splits["image"]["test"].open("x").size == (41, 37)
    with pytest.raises(ValueError, match="file not found"):
        dataset.splits["image"]["train"].open("q.jpg")


def test_csv_mistakes(tmp_path: Path) -> None:
    head = ("path", "label", "split")
    assert "no such file" in wrong("csv:nowhere.csv")
    found = wrong(f"csv:{listing(tmp_path, [('a', 'b')], ('path', 'class'))}")
    assert "column 'label' is missing; found path, class; expected path, label, split" in found
    assert "found no rows" in wrong(f"csv:{listing(tmp_path, [], head)}")
    double = [("a.jpg", "x", "train"), ("a.jpg", "x", "test")]
    assert "id 'a.jpg' occurs twice" in wrong(f"csv:{listing(tmp_path, double, head)}")
    assert "line 2 has no label" in wrong(f"csv:{listing(tmp_path, [('a.jpg', '', 'train')], head)}")
    assert "is absolute" in wrong(f"csv:{listing(tmp_path, [('/a.jpg', 'x', 'train')], head)}")
    strange = [("a.jpg", "x", "train"), ("b.jpg", "y", "test")]
    assert "class 'y' is in test but not in train" in wrong(f"csv:{listing(tmp_path, strange, head)}")


# -- CoOp ------------------------------------------------------------------------------------------


def test_coop_splits_replay_the_published_draws(sample_data: Path) -> None:
    folder = sample_data / "coop"
    dataset = read(f"coop:{folder / 'split_zhou_EuroSAT.json'}", folder)
    assert dataset.name == "EuroSAT"
    train = dataset.splits["image"]["train"]
    for index in folder.glob("eurosat_shot_*.json"):
        shots, seed = (int(part.split("_")[1]) for part in index.stem.removeprefix("eurosat_").split("-"))
        assert few_shot(train.labels, shots, seed).tolist() == read_draw(index, train.ids).tolist()


def test_coop_mistakes(tmp_path: Path) -> None:
    assert "no such file" in wrong("coop:split.json")
    (tmp_path / "split.json").write_text(json.dumps({"train": [["a.jpg", 0]]}))
    assert "found another layout" in wrong(f"coop:{tmp_path / 'split.json'}")


# -- ImageNet --------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An ImageNet of three classes, two training images each, and a val without labels yet."""
    for c, wnid in enumerate(WNIDS):
        fill_folder(tmp_path / "train" / wnid, 2, 10 * c)
    return tmp_path


def flat(tree: Path, count: int = 4) -> list[str]:
    fill_folder(tree / "val", 0, 0)
    names = [f"ILSVRC2012_val_{i + 1:08d}" for i in range(count)]
    for i, name in enumerate(names):
        picture(i).save(tree / "val" / f"{name}.JPEG", format="jpeg")
    return names


def test_a_subset_tree_gets_the_right_curated_names(tree: Path) -> None:
    for wnid in WNIDS[:2]:
        fill_folder(tree / "val" / wnid, 1, 0)
    dataset = read("imagenet", tree)
    assert dataset.class_names == ["rooster", "hen", "wall clock"]
    assert dataset.shots == (16,)
    assert rows(dataset, "test") == [("val/n01514668/0.jpg", 0), ("val/n01514859/0.jpg", 1)]
    assert "sorted" in dataset.ledger["order"]


def test_the_thousand_names_are_clips_in_synset_order() -> None:
    names = class_names(synsets())
    assert (names[7], names[892], len(names), len(set(names))) == ("rooster", "wall clock", 1000, 998)


def test_flat_val_with_kaggles_list(tree: Path) -> None:
    lines = [f"{name},{WNIDS[i % 3]} 1 2 3 4" for i, name in enumerate(flat(tree))]
    (tree / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines]))
    assert [label for _, label in rows(read("imagenet", tree), "test")] == [0, 1, 2, 0]


def test_flat_val_with_a_caffe_style_list(tree: Path) -> None:
    (tree / "val.txt").write_text("".join(f"{n}.JPEG {2 - i % 3}\n" for i, n in enumerate(flat(tree))))
    assert [label for _, label in rows(read("imagenet", tree), "test")] == [2, 1, 0, 2]


@pytest.mark.parametrize("kind", ["map_clsloc.txt", "meta.mat"])
def test_flat_val_with_the_devkit_uses_ilsvrc_ids_not_wnid_order(tree: Path, kind: str) -> None:
    flat(tree)
    data = tree / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n3\n1\n")
    assert "ILSVRC ids, which are not in wnid order" in wrong("imagenet", tree)
    order = {1: WNIDS[2], 2: WNIDS[0], 3: WNIDS[1]}
    if kind == "meta.mat":
        kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O")]
        savemat(data / kind, {"synsets": np.array(list(order.items()), dtype=kinds)})
    else:
        (data / kind).write_text("".join(f"{wnid} {i} name\n" for i, wnid in order.items()))
    assert [label for _, label in rows(read("imagenet", tree), "test")] == [2, 0, 1, 2]


def test_kaggles_list_may_have_a_byte_order_mark(tree: Path) -> None:
    lines = [f"{name},{WNIDS[1]} 1 2 3 4" for name in flat(tree)]
    text = "\r\n".join(["ImageId,PredictionString", *lines])
    (tree / "LOC_val_solution.csv").write_text(text, encoding="utf-8-sig")
    assert {label for _, label in rows(read("imagenet", tree), "test")} == {1}


@pytest.mark.parametrize(
    ("line", "message"),
    {
        "{}.JPEG n01514668 tench": "line 1 has 3 words: .*; expected two, `file label`",
        "{}.JPEG": "line 1 has 1 words",
        "{}.JPEG 0\n{}.JPEG 1": r"ILSVRC2012_val_00000001 has two classes, n01514668 and n01514859",
        "{}.JPEG 0.5": r"class '0.5' has no folder in train",
    }.items(),
)
def test_a_val_list_that_is_not_understood_is_one_line(tree: Path, line: str, message: str) -> None:
    (name,) = flat(tree, 1)
    (tree / "val.txt").write_text(line.replace("{}", name) + "\n")
    with pytest.raises(DatasetError, match=message):
        read("imagenet", tree)


@pytest.mark.parametrize(("name", "text"), [("map_clsloc.txt", "n1\n"), ("meta.mat", "no matrix")])
def test_a_damaged_devkit_is_one_line(tree: Path, name: str, text: str) -> None:
    flat(tree)
    (tree / "data").mkdir()
    (tree / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n3\n1\n")
    (tree / "data" / name).write_text(text)
    assert name in wrong("imagenet", tree)
    (tree / "data" / "map_clsloc.txt").write_text("n01514668 1 cock\n")
    assert "line 2 has '2'; expected an ILSVRC id from 1 to 1" in wrong("imagenet", tree)


def test_images_beside_the_class_folders_of_val_are_not_lost(tree: Path) -> None:
    flat(tree)
    fill_folder(tree / "val" / WNIDS[0], 1, 0)
    found = wrong("imagenet", tree)
    assert "val: 4 images beside the class folders, first ILSVRC2012_val_00000001.JPEG" in found
    for image in (tree / "val").glob("*.JPEG"):
        image.unlink()
    (tree / "val" / "README.md").touch()
    (tree / "val" / "odd").touch()
    assert read("imagenet", tree).left_out == {
        "no samples by their ending": (1, "val/README.md"),
        "beside the class folders": (1, "val/odd"),
    }


def test_imagenet_mistakes(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IMAGENET_ROOT", raising=False)
    found = wrong("imagenet")
    assert "ImageNet not found at data/imagenet (found: no such folder)" in found
    assert "type `--data-root PATH` or set IMAGENET_ROOT" in found
    monkeypatch.setenv("IMAGENET_ROOT", str(tree))
    (tree / "val").mkdir()
    assert "val: found no files; expected val/<wnid>/… or val/*.JPEG" in wrong("imagenet")
    shutil.rmtree(tree / "val")
    names = flat(tree)
    assert "looked for LOC_val_solution.csv, val.txt, ILSVRC2012_validation_ground_truth.txt" in wrong(
        "imagenet"
    )
    (tree / "val.txt").write_text(f"{names[0]}.JPEG 0\n")
    assert f"no label for {names[1]}.JPEG (3 of 4 files)" in wrong("imagenet")
    (tree / "val.txt").write_text(f"{names[0]}.JPEG 3\n")
    assert "class '3' has no folder in train" in wrong("imagenet")
    (tree / "train" / "n02085620").mkdir()
    assert "n02085620: found no samples" in wrong("imagenet")


def test_a_val_class_that_train_lacks_is_named(tree: Path) -> None:
    fill_folder(tree / "val" / "n02085620", 1, 0)
    assert "n02085620: class is not in train (1 such)" in wrong("imagenet", tree)


# -- registry --------------------------------------------------------------------------------------


def test_an_unknown_data_set_names_the_nearest(class_folders: Path) -> None:
    assert "did you mean `--dataset imagenet`?" in wrong("imagnet")
    assert f"did you mean `--dataset folder:{class_folders}`?" in wrong(str(class_folders))


def test_class_folder_names_are_the_classes(class_folders: Path) -> None:
    assert read(f"folder:{class_folders}").class_names == [name.replace("_", " ") for name in CLASSES]
