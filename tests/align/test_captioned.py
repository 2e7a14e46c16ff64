"""CAMPE and CAMPE-lite on captions: their loss by hand, what each learns, and negated captions.

The caption set is made of class names and templates, and its negated forms with "no" in front of the name: it
says which digit a scan shows and nothing else.
"""

import csv
import json
import math
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
from spaner.align.methods import captioned
from spaner.align.methods.blocks import diversity, joined
from spaner.align.methods.campe import SentencePrompts, SuffixPrompts
from spaner.align.methods.campe_lite import CachedCaptions, TemplateQueries
from spaner.align.score.captions import caption_retrieval
from spaner.align.score.evaluate import Frozen, evaluate
from spaner.align.train import run as checkpoint
from spaner.align.train.config import TrainConfig
from spaner.align.train.fit import fit
from spaner.align.train.task import task
from spaner.cli.towers import Towers
from spaner.errors import CacheError, DatasetError, Mismatch, RunError
from spaner.extract.config import ExtractConfig
from spaner.extract.datasets import digits
from spaner.extract.datasets.dataset import read
from spaner.extract.extract import extract
from spaner.extract.repair import repair
from tests.conftest import Outcome

WORDINGS = ("a photo of the number {}.", "a {} in white ink", "{}, drawn by hand", "the digit {}")
DENIED = ("a photo of no number {}.", "no {} in white ink", "", "not the digit {}")
CLASSES, TRAINED = 10, 16
WIDTH = 64
TOLD: dict[str, Any] = {"texts": "caption", "batch_size": 32, "device": "cpu"}


def write_list(folder: Path, name: str, columns: tuple[str, ...]) -> Path:
    """Scans as files, 16 a digit to train and 6 to test, with one to three captions each."""
    scans, labels = digits.load()
    lines = []
    for label in range(CLASSES):
        for i, number in enumerate(np.flatnonzero(labels == label)[: TRAINED + 6]):
            file, word = f"{number:04d}.png", digits.CLASS_NAMES[label]
            Image.fromarray(scans[number]).save(folder / file)
            for k in range(1 + number % 3):
                said, denied = (each[(number + k) % 4].format(word) for each in (WORDINGS, DENIED))
                split = "train" if i < TRAINED else "test"
                line = {"path": file, "label": word, "split": split, "said": said, "denied": denied}
                lines.append([line[column] for column in columns])
    with (folder / name).open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *lines])
    return folder / name


def extracted(folder: Path, file: Path, **options: Any) -> Path:
    told: Any = {"dataset": f"csv:{file}", "caption_column": ("said",), "encoder": "digits", "device": "cpu"}
    extract(ExtractConfig(**told | options))
    return options["cache"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With `list.csv` and its cache, captions and their negated forms; `plain.csv` has no classes."""
    folder = tmp_path_factory.mktemp("captioned")
    file = write_list(folder, "list.csv", ("path", "label", "split", "said", "denied"))
    write_list(folder, "plain.csv", ("path", "split", "said"))
    extracted(folder, file, negated_column=("denied",), cache=folder / "cache")
    return folder


def towers_of(folder: Path, name: str = "list.csv") -> Towers:
    return Towers(pixels=f"csv:{folder / name}")


def fitted(folder: Path, method: str, **changes: Any) -> Any:
    told = TOLD | {"method": method} | changes
    return fit(folder / "cache", **told, **towers_of(folder)(folder / "cache", method, "cpu"))


def test_negated_forms_are_rows_of_the_same_id(folder: Path) -> None:
    with (folder / "list.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    found = read(f"csv:{folder / 'list.csv'}", caption_column=("said",), negated_column=("denied",))
    said, denied = (found.splits[name]["train"] for name in ("caption", "negated"))
    pairs = {said.open(key): denied.open(key) for key in denied.ids}
    assert pairs == {each["said"]: each["denied"] for each in lines if each["denied"]}
    assert len(denied) == sum(bool(each["denied"]) for each in lines if each["split"] == "train") < len(said)
    with spaner.cache.open(folder / "cache") as cache:
        table = cache.table("negated/train")
        assert (table.ids.tolist(), table.dim) == (denied.ids, cache.table("caption/train").dim)
        assert table.manifest.encoder == cache.table("caption/train").manifest.encoder


def test_columns_of_negated_forms_stand_beside_those_of_captions(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path,split,x,y,nx,ny\na.png,train,one,two,,no two\n")
    found = read(f"csv:{tmp_path / 'l.csv'}", caption_column=("x", "y"), negated_column=("nx", "ny"))
    said = found.splits["negated"]["train"]
    assert {key: said.open(key) for key in said.ids} == {"a.png#1": "no two"}


@pytest.mark.parametrize(
    ("line", "columns", "message"),
    [
        ("a.png,train,one,one", ("no",), "line 2 has the caption 'one' as its own negated form"),
        ("a.png,train,,none", ("no",), "line 2 negates 'none' and has no said; expected the caption"),
        ("a.png,train,one,", ("no",), "found no negated rows"),
        ("a.png,train,one,none", ("other",), "column 'other' is missing"),
        ("a.png,train,one,none", ("no", "no"), "--negated-column no,no: 2 beside 1 of captions"),
    ],
)
def test_mistakes_in_negated_forms(tmp_path: Path, line: str, columns: Any, message: str) -> None:
    (tmp_path / "l.csv").write_text(f"path,split,said,no\n{line}\n")
    with pytest.raises(DatasetError, match=message):
        read(f"csv:{tmp_path / 'l.csv'}", caption_column=("said",), negated_column=columns)
    with pytest.raises(DatasetError, match="found no --caption-column; expected the captions"):
        read(f"csv:{tmp_path / 'l.csv'}", negated_column=columns)


def test_the_loss_by_hand() -> None:
    """Two pairs: the first image has a negated caption, the second none."""
    logits = torch.tensor([[2.0, 1.0], [0.5, 3.0]], dtype=torch.float64)
    negated, denied = torch.tensor([1.5, 9.0], dtype=torch.float64), torch.tensor([True, False])
    e = math.exp
    for weight in (0.0, 0.5):
        images = [math.log(e(2) + e(1) + weight * e(1.5)) - 2, math.log(e(0.5) + e(3)) - 3]
        captions = [math.log(e(2) + e(0.5)) - 2, math.log(e(1) + e(3)) - 3]
        found = captioned.pair_entropy(logits, negated, denied, weight)
        assert float(found) == pytest.approx(sum(images + captions) / 4)


def test_a_batch_is_images_with_a_caption_of_their_own(folder: Path) -> None:
    """The first loss and its measures, from the task and the list, by a loop."""
    config = TrainConfig(method="campe_lite", **TOLD)
    with spaner.cache.open(folder / "cache") as cache:
        material = task(cache, config)
        ids = cache.table("image/train").ids.tolist()
        caption_ids = cache.table("caption/train").ids.tolist()
    captions = material.captions
    assert captions is not None
    torch.manual_seed(0)
    learned, seen = TemplateQueries(4, WIDTH), []
    with torch.no_grad():
        learned.heads.maps.normal_()
    cached = CachedCaptions(learned, captions, torch.device("cpu"))

    def worded(chosen: torch.Tensor, *, negated: bool) -> Any:
        seen.append(chosen)
        return cached(chosen, negated=negated)

    rows, measured = torch.tensor([3, 50, 101, 7]), []
    plan = {"rates": [0.0], "batches": [rows], "weight_decay": 0.0, "seed": 4}
    told: Any = {"scale": 20.0, "div": 0.5, "neg": 2.0} | plan
    x = material.x[:, 0]
    (loss,) = captioned.train_captioned(worded, learned.parameters(), measured, x, captions, **told)
    own = [caption_ids[captions.rows[row]].split("#")[0] for row in seen[0].tolist()]
    assert own == [ids[row] for row in rows.tolist()]
    blocks, forms = (learned(each[seen[0]][:, None]) for each in (captions.x, captions.negated))
    text, none = joined(blocks), ~captions.denied[seen[0]]
    logits, away = 20 * x[rows] @ text.T, 20 * (x[rows] * joined(forms)).sum(1)
    expected = captioned.pair_entropy(logits, away, ~none, 2.0) + 0.5 * diversity(blocks)
    torch.testing.assert_close(loss, expected.detach())
    right = (logits.diagonal() > away)[~none].double().mean()
    assert measured == [
        {
            "diversity": pytest.approx(float(diversity(blocks.detach()))),
            "negation": pytest.approx(float(right)),
        }
    ]


def test_another_caption_every_epoch(folder: Path) -> None:
    with spaner.cache.open(folder / "cache") as cache:
        captions = task(cache, TrainConfig(method="campe_lite", **TOLD)).captions
    assert captions is not None
    learned = TemplateQueries(4, WIDTH)
    cached, seen = CachedCaptions(learned, captions, torch.device("cpu")), set()

    def worded(chosen: torch.Tensor, *, negated: bool) -> Any:
        seen.update(chosen.tolist())
        return cached(chosen, negated=negated)

    count = len(captions.count)
    plan: Any = {"rates": [0.0] * 30, "batches": [torch.arange(count)] * 30, "weight_decay": 0.0}
    told: Any = {"seed": 0, "scale": 20.0, "div": 0.0, "neg": 0.0} | plan
    x = torch.ones(count, WIDTH)
    assert len(list(captioned.train_captioned(worded, learned.parameters(), [], x, captions, **told))) == 30
    assert seen == set(range(len(captions.x)))


@pytest.mark.parametrize("method", ["campe", "campe_lite"])
def test_it_learns_captions_and_finds_them(folder: Path, tmp_path: Path, method: str) -> None:
    """Better than the frozen encoder on test rows both ways; the saved run finds the same."""
    told: Any = {"epochs": 8 if method == "campe" else 25, "lr": 3e-3, "neg": 1.0}
    run = fitted(folder, method, **told)
    metrics = evaluate(run, folder / "cache")
    found, frozen = metrics["captions"], metrics["zero_shot"]["captions"]
    for way in ("image_to_caption", "caption_to_image"):
        assert found[way]["recall@5"] > frozen[way]["recall@5"] + 0.03
    assert found["negation"] > frozen["negation"] + 0.04
    assert run.history[-1]["loss"] < 0.85 * run.history[0]["loss"]
    assert {"diversity", "negation"} <= run.history[-1].keys()
    loaded = checkpoint.load(run.save(tmp_path / "run"))
    loaded.towers = towers_of(folder)
    assert evaluate(loaded, folder / "cache")["captions"] == found


@pytest.mark.parametrize("method", ["campe", "campe_lite"])
def test_the_same_seed_gives_the_same_bits(folder: Path, method: str) -> None:
    first, again, other = (fitted(folder, method, epochs=2, seed=s).model.state() for s in (1, 1, 2))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["heads.maps"], other["heads.maps"])


@pytest.mark.parametrize("method", ["campe", "campe_lite"])
def test_each_loss_has_its_switch_on_captions(folder: Path, method: str) -> None:
    short = {"epochs": 4, "lr": 3e-3}
    plain = fitted(folder, method, div=0.0, neg=0.0, **short)
    spread = fitted(folder, method, div=5.0, neg=0.0, **short).history[-1]
    aware = fitted(folder, method, div=0.0, neg=5.0, **short)
    assert spread["diversity"] < 0.8 * plain.history[-1]["diversity"]
    negation = [evaluate(run, folder / "cache")["captions"]["negation"] for run in (plain, aware)]
    assert negation[1] > negation[0] + 0.02


def test_negation_of_captions_is_that_of_a_loop(folder: Path) -> None:
    with spaner.cache.open(folder / "cache") as cache:
        found = caption_retrieval(Frozen(), cache, "image/test")
        tables = [cache.table(f"{name}/test") for name in ("image", "caption", "negated")]
        rows = [F.normalize(torch.tensor(table.read()[:, 0]).float(), dim=1) for table in tables]
        image, said, denied = (
            dict(zip(t.ids.tolist(), x, strict=True)) for t, x in zip(tables, rows, strict=True)
        )
    assert found is not None
    about = {key: image[key.split("#")[0]] for key in denied}
    right = [float(x @ said[key]) > float(x @ denied[key]) for key, x in about.items()]
    assert (found["negated"], found["negation"]) == (len(denied), pytest.approx(np.mean(right)))
    assert 0 < len(denied) < len(said)


def test_other_words_under_the_same_ids_are_another_table(folder: Path, tmp_path: Path) -> None:
    path = shutil.copytree(folder / "cache", tmp_path / "cache")
    other = folder / "changed.csv"
    other.write_text((folder / "list.csv").read_text().replace("white ink", "black ink"))
    told: Any = {"negated_column": ("denied",), "cache": path, "modality": "caption"}
    extracted(folder, folder / "list.csv", **told)
    other.replace(tmp_path / "list.csv")
    with pytest.raises(Mismatch, match=r"caption/train.*words"):
        extracted(folder, tmp_path / "list.csv", data_root=folder, **told)


def test_repair_reads_the_list_again_and_no_other(folder: Path, tmp_path: Path) -> None:
    path = shutil.copytree(folder / "cache", tmp_path / "cache")
    with spaner.cache.open(path) as cache:
        before = {name: cache.table(name).read().copy() for name in ("caption/train", "negated/test")}
    for name in before:
        file = next((path / name / "features").glob("c.0*"))
        file.write_bytes(bytes([file.read_bytes()[0] ^ 4]) + file.read_bytes()[1:])
    other = folder / "changed.csv"
    other.write_text((folder / "list.csv").read_text().replace("white ink", "black ink"))
    with pytest.raises(Mismatch, match="was made of other sentences"):
        repair(path, dataset=f"csv:{other}")
    assert repair(path, dataset=f"csv:{folder / 'list.csv'}").repaired == 2
    with spaner.cache.open(path) as cache:
        assert not cache.verify()
        assert all(np.array_equal(cache.table(name).read(), rows) for name, rows in before.items())


def test_sentences_are_the_plain_tower(folder: Path) -> None:
    """A caption's full stop goes behind the suffix, and what does not fit is cut from the sentence's end."""
    tower = towers_of(folder)(folder / "cache", "campe", "cpu")["text_tower"]
    start = tower.context_of(" in a photo")
    learned = SuffixPrompts(start.expand(2, -1, -1).clone(), WIDTH)
    long = "seven " * 40
    prompts: Any = SentencePrompts(learned, tower, ["a nine in ink.", long], {1: "a seven"}, "is not", 0)
    found, denied, there = prompts(torch.tensor([1, 0]), negated=True)
    found, denied = found.flip(0), denied.flip(0)
    assert there.all()
    whole = tower.prompted(["a nine in ink"], len(start), "front")(start[None])[0]
    torch.testing.assert_close(joined(found)[:1], F.normalize(whole, dim=1))
    room = tower.window - 2 - len(start) - len(tower.words("."))
    cut = tower.prompted([long[:room]], len(start), "front")(start[None])[0]
    torch.testing.assert_close(joined(found)[1:], F.normalize(cut, dim=1))
    before = torch.cat([tower.context_of(" is not"), start])
    behind = tower.prompted(["a nine in ink"], len(before), "front")(before[None])[0]
    opposed = tower.prompted(["a seven"], len(start), "front")(start[None])[0]
    torch.testing.assert_close(joined(denied), F.normalize(torch.cat([behind, opposed]), dim=1))


class TestRefusals:
    """One line each."""

    def test_no_captions(self, toy_cache: Path) -> None:
        with pytest.raises(CacheError, match=r"has no table caption/train; .* --caption-column NAME"):
            fit(toy_cache, method="campe_lite", texts="caption", device="cpu")

    def test_no_negated_captions(self, folder: Path, tmp_path: Path) -> None:
        path = extracted(folder, folder / "list.csv", cache=tmp_path / "cache")
        with pytest.raises(RunError, match=r"no caption of the training rows has a negated form.*use neg=0"):
            fit(path, method="campe_lite", neg=1.0, **TOLD)

    def test_no_words(self, folder: Path) -> None:
        tools = towers_of(folder)(folder / "cache", "campe", "cpu")
        with pytest.raises(RunError, match="campe reads captions as words, and a cache keeps none"):
            fit(folder / "cache", method="campe", text_tower=tools["text_tower"], **TOLD)

    def test_no_list(self, folder: Path, cli: Callable[..., Outcome], tmp_path: Path) -> None:
        line = ["train", "--method", "campe", "--texts", "caption", "--cache", folder / "cache"]
        done = cli(*line, "--out", tmp_path / "run")
        assert (done.status, done.err.count("\n")) == (1, 1)
        assert "keeps no words of caption/train" in done.err
        assert "--pixels csv:FILE" in done.err

    def test_another_list(self, folder: Path) -> None:
        other = folder / "other.csv"
        other.write_text((folder / "list.csv").read_text().replace("white ink", "black ink"))
        tools = towers_of(folder, "other.csv")(folder / "cache", "campe", "cpu")
        with pytest.raises(Mismatch, match="caption/train was made of other sentences than its list has now"):
            fit(folder / "cache", method="campe", **TOLD, **tools)


@pytest.mark.usefixtures("few_rows_in_the_plane")
def test_the_commands(
    folder: Path, cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a list without classes to recall beside the frozen encoder's, and to a report."""
    monkeypatch.chdir(folder)
    told = ("--caption-column", "said", "--encoder", "digits", "--cache", tmp_path / "plain")
    assert cli("extract", "--dataset", "csv:plain.csv", *told).status == 0
    short = ("--texts", "caption", "--epochs", 2, "--cache", tmp_path / "plain", "--pixels", "csv:plain.csv")
    for method in ("campe", "campe_lite"):
        out = tmp_path / method
        done = cli("train", "--method", method, *short, "--out", out)
        assert done.status == 0, done.err
        assert "no class is asked by name" in done.out
        assert [line.split()[:2] for line in done.out.splitlines()].count(["zero-shot", "image,"]) == 1
        metrics = json.loads((out / "result.json").read_text())["metrics"]
        assert metrics["captions"]["image_to_caption"]["queries"] == 6 * CLASSES
        assert metrics["frozen"]["captions"]["images"] == 6 * CLASSES
        done = cli("eval", "--run", out, "--cache", tmp_path / "plain", "--pixels", "csv:plain.csv", "--json")
        assert done.status == 0, done.err
        assert json.loads(done.out)["captions"] == metrics["captions"]
        done = cli("report", out, "-o", tmp_path / "r.html", "--pixels", "csv:plain.csv")
        assert done.status == 0, done.err
        text = (tmp_path / "r.html").read_text()
        assert "Does an image find its sentence" in text
        assert "frozen encoder" in text[text.index("Does an image find its sentence") :]
        recall = 100 * metrics["captions"]["image_to_caption"]["recall@1"]
        assert f"<b>{recall:.1f} / " in text, "the first number on the page"


def test_a_list_without_classes_is_compared_and_swept(
    folder: Path, cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    extracted(folder, folder / "plain.csv", cache=tmp_path / "plain")
    quick = ("--cache", "plain", "--seeds", 1, "--workers", 1)
    done = cli("compare", *quick, "--methods", "zero_shot,campe_lite", "--shots", 16)
    assert done.status == 0, done.err
    rows = json.loads(Path("compare/plain/compare.json").read_text())["rows"]
    with spaner.cache.open("plain") as cache:
        found = caption_retrieval(Frozen(), cache, "image/test")
    assert found is not None
    assert [row["method"] for row in rows if row["failed"] == 0] == ["zero_shot", "campe_lite"]
    assert rows[0]["image_to_caption"][0] == pytest.approx(found["image_to_caption"]["recall@1"])
    assert rows[0]["text"] is None
    options = ("--method", "campe_lite", "--texts", "caption", "--epochs", 5, "--divs", "0,5")
    done = cli("sweep", *quick, *options)
    assert done.status == 0, done.err
    cells = json.loads(Path("sweeps/plain/sweep.json").read_text())
    recalls = [cell["metrics"]["captions"]["caption_to_image"]["mAP"] for cell in cells]
    assert len(set(recalls)) == len(cells) == 2


def test_a_comparison_shows_the_negation_of_captions(
    folder: Path, cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--methods", "zero_shot", "--shots", 1, "--seeds", 1, "--workers", 1)
    done = cli("compare", "--cache", folder / "cache", *options)
    assert done.status == 0, done.err
    (row,) = json.loads((tmp_path / "compare" / "cache" / "compare.json").read_text())["rows"]
    with spaner.cache.open(folder / "cache") as cache:
        found = caption_retrieval(Frozen(), cache, "image/test")
    assert found is not None
    assert row["negation"][0] == pytest.approx(found["negation"])
