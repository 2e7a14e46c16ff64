"""Draws must equal the published ones item for item, or no few-shot number can be compared."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from spaner.cache import few_shot, few_shot_splits, read_draw
from spaner.errors import CacheError

LABELS = np.array([5, 5, 0, 5, 0, 2, 0, 5, 2, 5, 0])
SPLITS = {"dtd": "split_zhou_DescribableTextures.json", "eurosat": "split_zhou_EuroSAT.json"}


def test_draw_is_pinned_to_literal_rows():
    # class 5 (rows 0 1 3 7 9) comes first, then 0 (rows 2 4 6 10), then 2, which has only rows 5 and 8
    assert few_shot(LABELS, 3, seed=1).tolist() == [1, 0, 9, 2, 4, 6, 5, 8]
    assert few_shot(LABELS, 3, seed=2).tolist() == [0, 9, 7, 6, 2, 4, 5, 8]


def test_a_class_with_too_few_rows_gives_all_and_draws_nothing():
    # the stream after the short class 2 is the same as if the class were not there
    labels = np.array([2, 2, 7, 7, 7, 7, 7])
    assert few_shot(labels, 3, seed=1).tolist() == [0, 1, *(few_shot(labels[2:], 3, seed=1) + 2).tolist()]


def test_validation_continues_the_stream_with_at_most_four():
    train, val = np.repeat(np.arange(3), 23), np.repeat(np.arange(3), 19)
    drawn, held = few_shot_splits(train, val, 16, seed=1)
    assert drawn.tolist() == few_shot(train, 16, seed=1).tolist()
    assert np.bincount(val[held]).tolist() == [4, 4, 4]
    assert held.tolist() != few_shot(val, 4, seed=1).tolist()
    assert np.bincount(val[few_shot_splits(train, val, 2, seed=1)[1]]).tolist() == [2, 2, 2]


def test_global_random_state_is_neither_read_nor_changed():
    random.seed(3)
    before, first = random.getstate(), few_shot(LABELS, 2, seed=1)
    random.random()
    assert few_shot(LABELS, 2, seed=1).tolist() == first.tolist()
    random.setstate(before)
    few_shot(LABELS, 2, seed=1)
    assert random.getstate() == before


def test_every_published_index_file_is_reproduced(sample_data: Path):
    files = sorted((sample_data / "coop").glob("*-seed_*.json"))
    assert len(files) >= 6
    for file in files:
        dataset, shots, seed = _parse(file)
        split = json.loads((sample_data / "coop" / SPLITS[dataset]).read_text())
        rows = few_shot_splits(_labels(split["train"]), _labels(split["val"]), shots, seed)
        published = json.loads(file.read_text())
        for part, drawn in zip(("train", "val"), rows, strict=True):
            listed = published[part]["data"]
            ours = [split[part][row] for row in drawn]
            assert [item[1] for item in ours] == [item["label"] for item in listed], (file, part)
            assert all(
                there["impath"].endswith("/" + mine[0]) for mine, there in zip(ours, listed, strict=True)
            ), (file, part)


def test_published_index_file_is_imported_by_path(sample_data: Path):
    file = sample_data / "coop" / "dtd_shot_4-seed_2.json"
    split = json.loads((sample_data / "coop" / SPLITS["dtd"]).read_text())
    ids = [item[0] for item in split["train"]]
    expected = few_shot(_labels(split["train"]), 4, 2)
    assert read_draw(file, ids).tolist() == expected.tolist()


def test_an_id_longer_than_the_published_path_matches_too(tmp_path: Path):
    ids = [f"images/more/{name}" for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg")]
    assert _import({"train": {"data": [{"impath": "b/1.jpg"}, {"impath": "./a/2.jpg"}]}}, ids, tmp_path) == [
        2,
        1,
    ]


def _import(content: object, ids: list[str], folder: Path) -> list[int]:
    file = folder / "draw.json"
    file.write_text(json.dumps(content))
    return read_draw(file, ids).tolist()


def test_coop_list_form_is_read(tmp_path: Path):
    content = {"train": [["a/2.jpg", 0, "a"], ["a/1.jpg", 0, "a"]]}
    assert _import(content, ["a/1.jpg", "a/2.jpg"], tmp_path) == [1, 0]


@pytest.mark.parametrize(
    ("content", "ids", "words"),
    [
        (
            {"train": {"data": [{"impath": "x/9.jpg"}]}},
            ["a/1.jpg"],
            ["x/9.jpg", "matches no id", "another dataset"],
        ),
        ({"train": [["1.jpg", 0, "a"]]}, ["a/1.jpg", "b/1.jpg"], ["matches 2 ids", "a/1.jpg"]),
        ({"test": []}, ["a"], ["not a few-shot index file", "'train'", "shot_K-seed_S.json"]),
        ([1], ["a"], ["not a few-shot index file"]),
    ],
)
def test_import_says_what_does_not_fit(content: object, ids: list[str], words: list[str], tmp_path: Path):
    with pytest.raises(CacheError) as caught:
        _import(content, ids, tmp_path)
    for word in words:
        assert word in str(caught.value)


def test_missing_index_file_and_zero_shots_are_one_line(tmp_path: Path):
    with pytest.raises(CacheError, match=r"no index file .*draw\.json; give the path"):
        read_draw(tmp_path / "draw.json", ["a"])
    with pytest.raises(CacheError, match="at least 1 shot, found 0"):
        few_shot(LABELS, 0, 1)


def _labels(items: list[list]) -> np.ndarray:
    return np.array([item[1] for item in items])


def _parse(file: Path) -> tuple[str, int, int]:
    dataset, _, rest = file.stem.partition("_shot_")
    shots, _, seed = rest.partition("-seed_")
    return dataset, int(shots), int(seed)


NAMES = ("red fox", "sea", "wall clock")
IDS = ("a/0.jpg", "b/0.jpg", "c/0.jpg", "a/1.jpg")


def _checked(items: Sequence[object], tmp_path: Path, name: str = "draw.json") -> list[int]:
    file = tmp_path / name
    lines = "\n".join(json.dumps(item) for item in items)
    file.write_text(lines if name.endswith("l") else json.dumps({"train": items}))
    return read_draw(file, IDS, labels=np.array([0, 1, 2, 0]), class_names=NAMES).tolist()


@pytest.mark.parametrize("name", ["draw.json", "draw.jsonl"])
def test_an_index_file_agrees_by_name_or_else_by_number(name: str, tmp_path: Path):
    assert _checked([["c/0.jpg", 2, "Wall_Clock"], ["a/1.jpg", 0, "red_fox"]], tmp_path, name) == [2, 3]
    sorted_differently = [["a/0.jpg", 5, "red fox"], ["b/0.jpg", 0, "sea"], ["c/0.jpg", 1, "strange name"]]
    assert _checked(sorted_differently, tmp_path, name) == [0, 1, 2]
    assert _checked([{"impath": "a/0.jpg", "label": 0}, {"impath": "b/0.jpg"}], tmp_path, name) == [0, 1]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([["a/0.jpg", 0, "sea"]], r"gives a/0.jpg the class 'sea', here it is 'red fox' \(0\)"),
        ([["a/0.jpg", 1]], r"gives a/0.jpg the class 1, here it is 'red fox' \(0\)"),
        ([["a/0.jpg", 0, "x"], ["b/0.jpg", 0, "y"]], "gives b/0.jpg the class 'y', here it is 'sea'"),
        ([["a/0.jpg", 0, "x"], ["a/1.jpg", 1, "y"]], "gives a/1.jpg the class 'y', here it is 'red fox'"),
        ([["a/0.jpg", 0], ["./data/a/0.jpg", 0]], "lists ./data/a/0.jpg twice"),
        ([["a/0.jpg", 0.7]], "not a few-shot index file.*0.7 is no label"),
        ([[1, 0]], "not a few-shot index file.*1 is no path"),
    ],
)
def test_an_index_file_that_contradicts_is_one_line(items: Sequence[object], message: str, tmp_path: Path):
    with pytest.raises(CacheError, match=message):
        _checked(items, tmp_path)


def test_a_nested_or_marked_index_file(tmp_path: Path):
    file = tmp_path / "draw.json"
    file.write_text("[" * 200_000)
    with pytest.raises(CacheError, match="not a few-shot index file"):
        read_draw(file, IDS)
    file.write_text(json.dumps({"train": [["a/0.jpg", 0]]}), encoding="utf-8-sig")
    assert read_draw(file, IDS).tolist() == [0]


def test_validation_may_have_as_many_rows_as_train():
    train, val = np.repeat([0, 1], 20), np.repeat([0, 1], 20)
    few, many = (few_shot_splits(train, val, 16, 1, most) for most in (4, 16))
    assert few[0].tolist() == many[0].tolist()
    assert (len(few[1]), len(many[1])) == (8, 32)
