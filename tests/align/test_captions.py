"""Captions: the list of them, recall both ways against a loop, and the commands from a list to a table.

The caption set is made of class names and templates: its sentences say which digit a scan shows and nothing
else, so that many images share a caption and no method can be sure of one.
"""

import csv
import itertools
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import spaner.cache
from spaner.align.methods import loop
from spaner.align.report import measured, space_tables
from spaner.align.report import write as report
from spaner.align.score.captions import caption_retrieval
from spaner.align.score.evaluate import Frozen, evaluate
from spaner.align.train.config import TrainConfig
from spaner.align.train.fit import fit, scored
from spaner.align.train.task import task
from spaner.errors import CacheError, DatasetError, Mismatch
from spaner.extract import texts
from spaner.extract.datasets import digits
from spaner.extract.datasets.dataset import Split, read
from tests.conftest import Outcome, made_up_spec
from tests.extract.conftest import TINY

WORDINGS = ("a photo of the number {}.", "a {} in white ink", "{}, drawn by hand", "the digit {}")


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans of five digits as files, 8 a digit to train and 4 to test, with one to three captions each."""
    folder = tmp_path_factory.mktemp("captions")
    scans, labels = digits.load()
    lines = []
    for label in range(5):
        for i, number in enumerate(np.flatnonzero(labels == label)[:12]):
            name, word = f"{number:04d}.png", digits.CLASS_NAMES[label]
            Image.fromarray(scans[number]).save(folder / name)
            for k in range(1 + number % 3):
                said = WORDINGS[(number + k) % len(WORDINGS)].format(word)
                lines.append([name, word, "train" if i < 8 else "test", said])
    with (folder / "list.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["path", "label", "split", "caption"], *lines])
    return folder / "list.csv"


@pytest.fixture(scope="module")
def cache(listed: Path) -> Path:
    from spaner.extract.config import ExtractConfig
    from spaner.extract.extract import extract

    told: Any = {"dataset": f"csv:{listed}", "caption_column": ("caption",), "encoder": "digits"}
    extract(ExtractConfig(**told, cache=listed.parent / "cache", device="cpu"))
    return listed.parent / "cache"


def test_several_lines_and_several_columns_are_captions_of_an_image(tmp_path: Path) -> None:
    lines = tmp_path / "lines.csv"
    lines.write_text('path,split,said\na.png,train,one\nb.png,train,two\na.png,train,"three, four"\n')
    columns = tmp_path / "columns.csv"
    columns.write_text('path,split,x,y\na.png,train,one,"three, four"\nb.png,train,two,\n')
    for file, names in ((lines, ("said",)), (columns, ("x", "y"))):
        found = read(f"csv:{file}", caption_column=names)
        said = found.splits["caption"]["train"]
        assert list(said.ids) == ["a.png#0", "a.png#1", "b.png#0"]
        assert [said.open(key) for key in said.ids] == ["one", "three, four", "two"]
        assert found.splits["image"]["train"].ids == ["a.png", "b.png"]
        assert found.class_names == ["image"], "a list without labels has one class"


MISTAKES = [
    ("path,split\na.png,train\n", r"column 'said' is missing"),
    ("path,split,said\na.png,train,\n", r"line 2 has no said; expected a caption in every line"),
    ("path,split,said\na.png,train,x\na.png,train,x\n", r"'a.png' has the caption 'x' twice"),
    ("path,split,said\na.png,train,x\na.png,test,y\n", r"'a.png' has split 'train' in one line and 'test'"),
    ("path,split,said\na.wav,train,x\n", r"lists sounds, first 'a.wav'; expected images"),
    ("path,split,said\n", r"found no rows below the header"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_mistakes_in_a_list(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        read(f"csv:{tmp_path / 'list.csv'}", caption_column=("said",))


def test_captions_are_of_csv_images_alone(listed: Path) -> None:
    with pytest.raises(DatasetError, match="--caption-column said: digits has no such column"):
        read("digits", caption_column=("said",))
    with pytest.raises(DatasetError, match="expected one of the two; leave --modality-column out"):
        read(f"csv:{listed}", caption_column=("caption",), modality_column="kind")


def drawn(path: Path, sizes: list[int], sha256: str = "ab") -> spaner.cache.Cache:
    """Images with that many captions each, all drawn; some captions close to their image."""
    rng = np.random.default_rng(5)
    image = rng.normal(size=(len(sizes), 1, 6)).astype(np.float32)
    about = np.repeat(np.arange(len(sizes)), sizes)
    near = image[about] + rng.normal(size=(len(about), 1, 6)).astype(np.float32)
    ids = [f"i{i}#{k}" for i, size in enumerate(sizes) for k in range(size)]
    with spaner.cache.create(path, "drawn", ["a", "b"]) as made:
        labels = np.arange(len(sizes)) % 2
        names = [f"i{i}" for i in range(len(sizes))]
        made.add("image", "test", image, labels, names, encoder=made_up_spec("image", 6))
        spec = made_up_spec("text", 6, sha256)
        order = rng.permutation(len(ids))
        shuffled = [ids[i] for i in order]
        made.add("caption", "test", near[order], labels[about][order], shuffled, encoder=spec)
        for name in ("vanilla", "classname", "mined"):
            made.add("text", name, np.eye(2, 6)[:, None], np.arange(2), encoder=made_up_spec("text", 6))
    return spaner.cache.open(path)


SIZES = [3, 1, 2, 5, 0, 2, 4, 1, 3, 2, 2, 1, 4]


def test_recall_is_that_of_a_loop(tmp_path: Path) -> None:
    cache = drawn(tmp_path / "c", SIZES)
    found = caption_retrieval(Frozen(), cache, "image/test")
    assert found is not None
    images, said = cache.table("image/test"), cache.table("caption/test")
    x, y = (t.read()[:, 0].astype(np.float64) for t in (images, said))
    x, y = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (x, y))
    owner = [str(name).split("#")[0] for name in said.ids]
    kept = [i for i, name in enumerate(images.ids) if str(name) in owner]
    assert (found["images"], found["captions"], found["left_out"]) == (len(SIZES) - 1, sum(SIZES), 1)
    for k in (1, 5, 10):
        hits = [str(images.ids[i]) in [owner[j] for j in np.argsort(-(y @ x[i]))[:k]] for i in kept]
        assert found["image_to_caption"][f"recall@{k}"] == pytest.approx(np.mean(hits))
        back = [
            owner[j] in [str(images.ids[kept[i]]) for i in np.argsort(-(x[kept] @ y[j]))[:k]]
            for j in range(len(y))
        ]
        assert found["caption_to_image"][f"recall@{k}"] == pytest.approx(np.mean(back))


def test_chance_is_counted_out(tmp_path: Path) -> None:
    """Every choice of k captions of six, for images with three, one and two."""
    found = caption_retrieval(Frozen(), drawn(tmp_path / "c", [3, 1, 2]), "image/test")
    assert found is not None
    owner = [0, 0, 0, 1, 2, 2]
    for k in (1, 5):
        choices = list(itertools.combinations(owner, k))
        shares = [np.mean([i in choice for choice in choices]) for i in range(3)]
        assert found["image_to_caption"][f"chance@{k}"] == pytest.approx(np.mean(shares))
    assert found["caption_to_image"]["chance@1"] == pytest.approx(1 / 3)
    assert found["image_to_caption"]["chance@10"] == 1


def test_captions_without_their_images_and_of_another_encoder_are_refused(tmp_path: Path) -> None:
    cache = drawn(tmp_path / "c", [0, 0, 2])
    with spaner.cache.create(tmp_path / "other", "drawn", ["a", "b"]) as other:
        for name, ids in (("image", ["x", "y"]), ("caption", ["a#0", "b#0"])):
            told: Any = {"encoder": made_up_spec("image" if name == "image" else "text", 6)}
            other.add(name, "test", np.ones((2, 1, 6)), np.arange(2), ids, **told)
    with pytest.raises(
        CacheError, match=r"no caption of caption/test has its image .* found 'a#0' beside 'x'"
    ):
        caption_retrieval(Frozen(), spaner.cache.open(tmp_path / "other"), "image/test")
    cache.close()


def test_a_run_scores_captions_as_texts(cache: Path, tmp_path: Path) -> None:
    run = fit(cache, method="zero_shot", device="cpu")
    with spaner.cache.open(cache) as opened:
        found = caption_retrieval(run, opened, "image/test")
        frozen = caption_retrieval(Frozen(), opened, "image/test")
        lite = caption_retrieval(
            fit(cache, method="campe_lite", epochs=3, device="cpu"), opened, "image/test"
        )
        assert caption_retrieval(fit(cache, method="gda", device="cpu"), opened, "image/test") is None
    assert found == frozen
    assert frozen is not None
    assert lite is not None
    assert frozen["caption_to_image"]["recall@5"] > 1.5 * frozen["caption_to_image"]["chance@5"]
    assert lite["caption_to_image"]["recall@5"] > 1.5 * lite["caption_to_image"]["chance@5"]
    run.encoders["text"] = made_up_spec("text", 48)
    with (
        spaner.cache.open(cache) as opened,
        pytest.raises(Mismatch, match="caption/test was made by another"),
    ):
        caption_retrieval(run, opened, "image/test")


def test_captions_train_beside_images_and_names_by_id(cache: Path) -> None:
    """A sample's caption is one of its own, by lot, and each gets its turn."""
    config = TrainConfig(modalities="image,text,caption", pair="id")
    with spaner.cache.open(cache) as opened:
        material = task(opened, config)
        said, images = opened.table("caption/train"), opened.table("image/train")
        x = F.normalize(torch.from_numpy(said.read()[:, 0].astype(np.float32)), dim=1)
        own = {str(name): [] for name in images.ids}
        for row, name in zip(x, said.ids, strict=True):
            own[str(name).split("#")[0]].append(row)
    (pool,) = loop.pairs_of(material).others
    generator, seen = torch.Generator().manual_seed(0), {name: set() for name in own}
    for _ in range(30):
        drawn = pool.rows()[pool.partners(generator)]
        for name, row in zip(np.repeat(images.ids, 2), drawn, strict=True):
            near = [float((row - each).norm()) for each in own[str(name)]]
            assert min(near) < 1e-5
            seen[str(name)].add(int(np.argmin(near)))
    distinct = {name: len({tuple(row.tolist()) for row in rows}) for name, rows in own.items()}
    assert {name: len(each) for name, each in seen.items()} == distinct
    run = fit(cache, config.replace(epochs=3, batch_size=8))
    with spaner.cache.open(cache) as opened:
        metrics = scored(run, opened)
    assert {pair["query"] for pair in metrics["modalities"]["pairs"]} == {"image", "text", "caption"}
    assert metrics["captions"]["image_to_caption"]["queries"] == 20


def test_captions_that_the_encoder_cuts_are_counted_and_named() -> None:
    class Short:
        def cuts(self, text: str) -> bool:
            return len(text.split()) > 3

    said = {"a.png#0": "one two three", "a.png#1": "one two three four", "b.png#0": "a b c d e"}
    split: Any = Split(list(said), np.zeros(3, np.int32), said.__getitem__)
    told: Any = Short()
    assert texts.cut_captions(told, split, "caption/train") == [
        "caption/train: 2 of 3 captions longer than the encoder reads are cut, first a.png#1: "
        "'one two three four'"
    ]
    told.cuts = lambda text: False
    assert texts.cut_captions(told, split, "caption/train") == []


def test_captions_longer_than_a_real_encoders_window_are_cut_and_named(
    listed: Path, cli: Callable[..., Outcome], tmp_path: Path
) -> None:
    """By a small CLIP of 19 tokens: what lies behind them makes no difference to a row."""
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    shutil.copytree(listed.parent, tmp_path / "here", ignore=shutil.ignore_patterns("cache"))
    with (tmp_path / "here" / "list.csv").open(newline="") as stream:
        image = next(csv.DictReader(stream))
    long = " ".join(["very"] * 30)
    with (tmp_path / "here" / "list.csv").open("a", newline="") as stream:
        said = (f"{long} white", f"{long} black", "white", "black")
        csv.writer(stream).writerows([*[*image.values()][:3], each] for each in said)
    model = ("--model", tmp_path / "tiny.json", "--pretrained", "random", "--device", "cpu")
    told = ("--caption-column", "caption", *model)
    done = cli(
        "extract", "--dataset", f"csv:{tmp_path / 'here' / 'list.csv'}", *told, "--cache", tmp_path / "c"
    )
    assert done.status == 0, done.err
    with spaner.cache.open(tmp_path / "c") as opened:
        table = opened.table("caption/train")
        own = [row for row, name in enumerate(table.ids) if name.startswith(image["path"])][-4:]
        first, second, *short = table.read(np.array(own))[:, 0].astype(np.float32)
    told_of = (
        f"2 of {table.rows:,} captions longer than the encoder reads are cut, first {table.ids[own[0]]}:"
    )
    assert f"caption/train: {told_of}" in " ".join(done.err.split())
    assert np.array_equal(first, second)
    assert not np.allclose(*short, atol=1e-3)


def caption_commands() -> list[str]:
    """What README tells to type about captions."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    return [line[2:] for line in readme.splitlines() if line.startswith("$ spaner") and "caption" in line]


def test_the_commands_of_the_readme(
    listed: Path, cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As written, in a folder with such a list, but for the encoder, since CLIP's weights are not here."""
    shutil.copytree(listed.parent, tmp_path / "here", ignore=shutil.ignore_patterns("cache"))
    (tmp_path / "here" / "list.csv").rename(tmp_path / "here" / "captions.csv")
    monkeypatch.chdir(tmp_path / "here")
    extract, *trained = caption_commands()
    assert "--caption-column" in extract
    done = cli(*shlex.split(extract)[1:], "--encoder", "digits")
    assert done.status == 0, done.err
    assert any("campe_lite" in line for line in trained)
    for train in trained:
        done = cli(*shlex.split(train)[1:], "--epochs", 1, "--batch-size", 8)
        assert done.status == 0, done.err
        assert "image, caption" in done.out


@pytest.fixture(scope="module")
def denied(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same cache with negated forms of its class names: the templates' vectors, moved."""
    path = shutil.copytree(cache, tmp_path_factory.mktemp("denied") / "cache")
    with spaner.cache.open(path) as opened:
        table, names = opened.table("text/vanilla"), opened.class_names
        away = table.read() + 0.2 * np.random.default_rng(0).normal(size=table.read().shape)
    with spaner.cache.create(path, opened.dataset, names) as made:
        told: Any = {"encoder": table.manifest.encoder, "views": ["no {}"]}
        made.add("text", "negated", away.astype(np.float32), table.labels, **told)
    return path


@pytest.mark.usefixtures("few_rows_in_the_plane")
def test_a_report_shows_recall_and_negation_beside_the_frozen_encoder(denied: Path, tmp_path: Path) -> None:
    run = fit(denied, method="campe_lite", epochs=3, device="cpu")
    run.metrics = evaluate(run, denied)
    entries = measured.measure([run.save(tmp_path / "run")])
    content = space_tables.captions(entries)
    assert content is not None
    frozen, ours = content.rows
    for row, told in ((frozen, run.metrics["zero_shot"]), (ours, run.metrics)):
        numbers: Any = row.numbers
        assert numbers["negation"].value == told["negation"]
        for way in ("image_to_caption", "caption_to_image"):
            assert numbers[f"{way} recall@1"].value == pytest.approx(told["captions"][way]["recall@1"])
            assert numbers[f"{way} chance@1"].value == told["captions"][way]["chance@1"]
    page, *_ = report.write([tmp_path / "run"], tmp_path / "r.html", figures=False)
    assert "Does an image find its sentence" in page.read_text()


def test_a_comparison_shows_recall_and_negation(
    denied: Path, cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--methods", "zero_shot,gda", "--shots", 1, "--seeds", 1, "--workers", 1)
    done = cli("compare", "--cache", denied, *options)
    assert done.status == 0, done.err
    head = next(line for line in done.out.splitlines() if line.startswith("method"))
    assert "image, caption" in head
    assert "negation" in head
    rows = json.loads((tmp_path / "compare" / "cache" / "compare.json").read_text())["rows"]
    by_name = {row["method"]: row for row in rows}
    with spaner.cache.open(denied) as opened:
        found = caption_retrieval(Frozen(), opened, "image/test")
    assert found is not None
    told = by_name["zero_shot"]["image_to_caption"]
    assert told[0] == pytest.approx(found["image_to_caption"]["recall@1"])
    assert by_name["zero_shot"]["negation"][0] > 0
    assert by_name["gda"]["caption_to_image"] is None, "a head reads no caption"


def test_from_a_list_to_recall(
    listed: Path, cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of the documentation; captions without classes are scored, too."""
    monkeypatch.chdir(tmp_path)
    told = ("--caption-column", "caption", "--encoder", "digits", "--cache")
    assert cli("extract", "--dataset", f"csv:{listed}", *told, "cache/mine").status == 0
    done = cli("train", "--cache", "cache/mine", "--epochs", 2, "--batch-size", 8, "--out", "runs/mine")
    assert done.status == 0, done.err
    assert "images and their captions" in done.out
    found = json.loads(cli("eval", "--run", "runs/mine", "--cache", "cache/mine", "--json").out)
    assert found["captions"]["image_to_caption"]["queries"] == 20
    assert found["zero_shot"]["captions"]["images"] == 20
    plain = listed.parent / "plain.csv"
    with listed.open(newline="") as stream, plain.open("w", newline="") as out:
        csv.writer(out).writerows([row[:1] + row[2:] for row in csv.reader(stream)])
    assert cli("extract", "--dataset", f"csv:{plain}", *told, "cache/plain").status == 0
    done = cli("eval", "--run", "runs/mine", "--cache", "cache/plain")
    assert done.status == 0, done.err
    assert "image, caption" in done.out
    assert "semantic" not in done.out
    assert cli("cache", "verify", "cache/plain").status == 0
    joint = ("--modalities", "image,caption", "--pair", "id", "--epochs", 1, "--batch-size", 8)
    done = cli("train", "--cache", "cache/plain", *joint, "--out", "runs/plain")
    assert done.status == 0, done.err
    assert "no class is asked by name" in done.out
    assert "caption, image" in done.out
    done = cli("report", "runs/plain", "--out", "plain.html")
    assert done.status == 0, done.err
    with next(Path.cwd().rglob("numbers.csv")).open(newline="") as stream:
        ways = {n["row"]: float(n["value"]) for n in csv.DictReader(stream) if n["number"] == "recall@1"}
    assert ways["image → caption"] < 0.9, "by id, not by a class that all rows share"
    head = Path("plain.html").read_text().partition("<section")[0]
    assert "mean recall@1 by id" in head
    assert "chance" not in head
