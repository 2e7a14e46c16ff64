"""Data sets of several modalities: lines or folders of one id are one sample, from files to a trained run."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

import spaner.cache
from spaner.align.train import run as checkpoint
from spaner.errors import DatasetError
from spaner.extract.datasets import dtmf
from spaner.extract.datasets.dataset import Dataset, read
from tests.conftest import Outcome
from tests.extract.conftest import picture

CLASSES = ("one", "seven")
KEYS = {"one": "1", "seven": "7"}


def put_picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, (8, 8)).save(path)


def put_sound(path: Path, digit: str, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, dtmf.clip(KEYS[digit], name)[0], dtmf.RATE)


@pytest.fixture
def things(tmp_path: Path) -> Path:
    """Five samples a class; number 4 has no sound, number 0 no picture."""
    for label in CLASSES:
        for i in range(5):
            if i != 0:
                put_picture(tmp_path / "things" / "image" / label / f"{i}.png", i)
            if i != 4:
                put_sound(tmp_path / "things" / "audio" / label / f"{i}.wav", label, f"{label}{i}")
    return tmp_path / "things"


@pytest.fixture
def listed(things: Path) -> Path:
    lines = ["path,label,split,id,kind"]
    for file in sorted(things.rglob("*.*")):
        kind, label, name = file.relative_to(things).parts
        split = "test" if name[0] == "3" else "train"
        lines.append(f"things/{kind}/{label}/{name},{label},{split},{label}-{name[0]},{kind}")
    path = things.parent / "list.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def ids(dataset: Dataset, modality: str, split: str) -> list[str]:
    return list(dataset.splits[modality][split].ids)


def test_folders_of_folders_are_modalities(things: Path) -> None:
    found = read(f"folder:{things}", holdout=0.2, seed=1)
    assert found.class_names == list(CLASSES)
    assert list(found.splits) == ["audio", "image"]
    assert found.encoders == {"audio": "esresnext"}
    every = {m: set(ids(found, m, "train") + ids(found, m, "test")) for m in found.splits}
    assert every["image"] == {f"{c}/{i}" for c in CLASSES for i in range(1, 5)}
    assert every["image"] & every["audio"] == {f"{c}/{i}" for c in CLASSES for i in range(1, 4)}
    tested = {key for m in found.splits for key in ids(found, m, "test")}
    trained = {key for m in found.splits for key in ids(found, m, "train")}
    assert len(tested) == 2, "one of five a class"
    assert not tested & trained, "a sample is tested in every modality or in none"
    row = ids(found, "image", "train").index("seven/4") if "seven/4" in trained else 0
    assert found.splits["image"]["train"].open(ids(found, "image", "train")[row]).size == (8, 8)


def test_split_folders_below_a_modality_stay_splits(things: Path) -> None:
    for modality, ending in (("image", "png"), ("audio", "wav")):
        for label in CLASSES:
            source = things / modality / label / f"3.{ending}"
            target = things / modality / "test" / label / f"3.{ending}"
            target.parent.mkdir(parents=True)
            source.replace(target)
            target = things / modality / "train" / label
            target.parent.mkdir(exist_ok=True)
            (things / modality / label).replace(target)
    found = read(f"folder:{things}")
    assert ids(found, "image", "test") == ids(found, "audio", "test") == ["one/3", "seven/3"]


def test_a_column_says_which_modality_a_line_is(listed: Path) -> None:
    found = read(f"csv:{listed}", modality_column="kind")
    assert list(found.splits) == ["audio", "image"]
    assert ids(found, "image", "test") == ids(found, "audio", "test") == ["one-3", "seven-3"]
    assert len(ids(found, "image", "train")) == 6
    assert found.ledger["modality column"] == "kind"


def test_from_files_to_a_run_with_missing_rows(
    listed: Path, cli: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(listed.parent)
    done = cli(
        *("extract", "--dataset", "csv:list.csv", "--modality-column", "kind", "--encoder", "digits"),
        *("--cache", "cache"),
    )
    assert done.status == 0, done.err
    with spaner.cache.open(Path("cache")) as cache:
        assert {"image/train", "audio/train", "audio/test"} <= set(cache.tables())
        assert "one-0" not in set(cache.table("image/train").ids)
    done = cli(
        *("train", "--cache", "cache", "--modalities", "image,text,audio", "--pair", "id"),
        *("--epochs", 2, "--batch-size", 4),
    )
    assert done.status == 0, done.err
    assert "between modalities" in done.out


def test_samples_without_classes_are_trained_and_found_by_id(
    listed: Path, cli: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(listed.parent)
    fields = [line.split(",") for line in listed.read_text().splitlines()]
    listed.write_text("".join(",".join([line[0], *line[2:]]) + "\n" for line in fields))
    told = ("--modality-column", "kind", "--encoder", "digits", "--cache", "cache")
    done = cli("extract", "--dataset", "csv:list.csv", *told)
    assert done.status == 0, done.err
    with spaner.cache.open(Path("cache")) as cache:
        assert cache.class_names == ["sample"]
        tables = {name: cache.table(f"{name}/test") for name in ("image", "audio")}
        rows = {name: (table.ids.tolist(), table.read()[:, 0]) for name, table in tables.items()}
    told = ("--modalities", "image,audio", "--pair", "id", "--epochs", 3, "--batch-size", 4, "--out", "run")
    done = cli("train", "--cache", "cache", *told)
    assert done.status == 0, done.err
    pairs = json.loads(Path("run/result.json").read_text())["metrics"]["modalities"]["pairs"]
    run = checkpoint.load("run")
    for pair in pairs:
        ids, queries = rows[pair["query"]]
        other, targets = rows[pair["target"]]
        scores = run.embed(pair["query"], queries) @ run.embed(pair["target"], targets).T
        best = [other[int(row.argmax())] for row in scores]
        assert pair["recall@1"] == np.mean([a == b for a, b in zip(ids, best, strict=True)])
        assert pair["chance"] == 1 / 2
    done = cli("report", "run", "-o", "r.html")
    assert done.status == 0, done.err
    listed.write_text(listed.read_text().replace(",id,", ",name,", 1))
    with pytest.raises(DatasetError, match="column 'label' is missing, and column 'id' too"):
        read(f"csv:{listed}", modality_column="kind")


MISTAKES = [
    (lambda text: text.replace("one-1,image", "one-2,image"), r"id 'one-2' occurs twice in image"),
    (
        lambda text: text.replace("one,train,one-1,audio", "seven,train,one-1,audio"),
        r"id 'one-1' has label 'seven' in audio and 'one' in image; expected one sample under one id",
    ),
    (
        lambda text: text.replace("train,one-1,audio", "test,one-1,audio"),
        r"id 'one-1' has split 'test' in audio and 'train' in image",
    ),
    (lambda text: text.replace(",image\n", ",text\n", 1), r"has modality 'text'; expected a name such as"),
    (lambda text: text.replace(",image\n", ",\n", 1), r"line \d+ has no kind"),
    (lambda text: text.replace("kind", "sort"), r"column 'kind' is missing"),
]


@pytest.mark.parametrize(("spoil", "message"), MISTAKES)
def test_list_mistakes(listed: Path, spoil: Callable[[str], str], message: str) -> None:
    listed.write_text(spoil(listed.read_text()))
    with pytest.raises(DatasetError, match=message):
        read(f"csv:{listed}", modality_column="kind")


def test_folder_mistakes(things: Path) -> None:
    with pytest.raises(DatasetError, match="--modality-column: a folder has no columns"):
        read(f"folder:{things}", modality_column="kind")
    with pytest.raises(DatasetError, match="--modality-column kind: digits has no such column"):
        read("digits", modality_column="kind")
    Image.new("L", (8, 8)).save(things / "image" / "one" / "1.bmp")
    with pytest.raises(DatasetError, match="two files are sample 'one/1' of one split"):
        read(f"folder:{things}")


def test_arrays_come_in_by_id_with_rows_missing(tmp_path: Path) -> None:
    from spaner.align.train.config import TrainConfig
    from spaner.align.train.task import task

    rng, labels = np.random.default_rng(0), np.repeat(np.arange(3, dtype=np.int32), 5)
    names = [f"sample {i}" for i in range(15)]
    with spaner.cache.create(tmp_path / "mine", dataset="mine", class_names=["a", "b", "c"]) as cache:
        cache.add("image", "train", rng.normal(size=(15, 8)), labels, names, encoder="e")
        cache.add("smell", "train", rng.normal(size=(7, 5)), labels[::2][:7], names[::2][:7], encoder="f")
        cache.add("text", "mined", rng.normal(size=(3, 8)), np.arange(3), encoder="e")
    with spaner.cache.open(tmp_path / "mine") as cache:
        found = task(cache, TrainConfig(modalities="image,text,smell", pair="id", logit_scale=20.0))
    (companion,) = found.companions.values()
    assert companion.start is not None
    assert companion.count is not None
    there = [i % 2 == 0 and i < 14 for i in range(15)]
    assert companion.count.tolist() == [int(each) for each in there]
    assert [s for s, each in zip(companion.start.tolist(), there, strict=True) if each] == list(range(7))
