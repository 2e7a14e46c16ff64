"""CoOp and CoCoOp from a cache of the embedded digits, with the tower that `cli` hands over."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import typer.testing

from spaner import cache as caches
from spaner.align.methods.task import Query
from spaner.align.paper.reproduce import Setup, reproduce
from spaner.align.report.table import plain
from spaner.align.score.evaluate import evaluate
from spaner.align.score.tables import queries
from spaner.align.train import run as checkpoint
from spaner.align.train.compare import compare, refused
from spaner.align.train.fit import fit
from spaner.cli import app
from spaner.cli.towers import Towers
from spaner.errors import EncoderError, Mismatch, RunError
from spaner.extract.config import ExtractConfig
from spaner.extract.encoders import encoder
from spaner.extract.extract import extract
from tests.align import pictured

FEW = {"shots": 1, "device": "cpu", "epochs": 2}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "digits"
    for modality in ("image", "text"):
        extract(ExtractConfig(dataset="digits", cache=path, modality=modality, device="cpu"))
    return path


@pytest.fixture(scope="module")
def x(cache: Path) -> torch.Tensor:
    with caches.open(cache) as opened:
        rows = torch.tensor(opened.table("image/test").read()[:7, 0]).float()
    return torch.nn.functional.normalize(rows, dim=1)


def tower_of(cache: Path) -> Any:
    return Towers()(cache, "coop", "cpu")["text_tower"]


def asked(cache: Path) -> dict[str, Query]:
    with caches.open(cache) as opened:
        return queries(opened)


@pytest.mark.parametrize("method", ["coop", "cocoop"])
def test_it_learns_scores_and_comes_back(cache: Path, x: torch.Tensor, method: str, tmp_path: Path) -> None:
    tower = tower_of(cache)
    run = fit(cache, method=method, text_tower=tower, **FEW)
    assert len(run.history) == 2
    loaded = checkpoint.load(run.save(tmp_path / "run"))
    if method == "cocoop":
        loaded.model.tower = tower
    for query in asked(cache).values():
        scores = run.model.scores(x, query)
        assert scores.shape == (7, 10)
        assert torch.equal(loaded.model.scores(x, query), scores)
    again = fit(cache, method=method, text_tower=tower, **FEW).model.state()
    assert all(torch.equal(tensor, again[name]) for name, tensor in run.model.state().items())
    assert run.versions["arithmetic"] == "float32"


def test_raw_names_are_asked_through_the_untouched_tower(cache: Path, x: torch.Tensor) -> None:
    run = fit(cache, method="coop", text_tower=tower_of(cache), **FEW)
    query = asked(cache)["semantic"]
    expected = run.logit_scale * x @ query.texts.classes.T
    assert torch.equal(run.model.scores(x, query), expected)
    metrics = evaluate(run, cache)
    assert metrics["text"]["accuracy"] > 0.5
    assert metrics["gap"] is not None


def test_coop_needs_a_tower(cache: Path) -> None:
    with pytest.raises(RunError, match="method coop needs a text tower beside the cache"):
        fit(cache, method="coop", **FEW)


def test_another_tower_is_refused(cache: Path) -> None:
    other = encoder.text_tower("digits", weights="random", device="cpu")
    with pytest.raises(Mismatch, match="the cache's texts were embedded with"):
        fit(cache, method="coop", text_tower=other, **FEW)


def test_a_loaded_cocoop_says_what_it_lacks(cache: Path, x: torch.Tensor, tmp_path: Path) -> None:
    tower = tower_of(cache)
    run = fit(cache, method="cocoop", text_tower=tower, **FEW)
    loaded = checkpoint.load(run.save(tmp_path / "run"))
    with pytest.raises(RunError, match="cocoop makes a prompt of every image and needs the text tower"):
        loaded.model.scores(x, asked(cache)["text"])


@pytest.fixture(scope="module")
def few(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictured.some_of(cache, tmp_path_factory.mktemp("few") / "digits")


def test_the_command_scores_a_saved_cocoop(few: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    """`eval` puts the tower beside it."""
    run = fit(few, method="cocoop", text_tower=tower_of(few), **FEW, batch_size=10)
    metrics = evaluate(run, few)
    done = cli("eval", "--run", run.save(tmp_path / "run"), "--cache", few, "--json")
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert found["text"] == metrics["text"]
    assert found["text"]["margin"] is not None
    assert found["text"]["centred_cosine"] is None, "each image has class vectors of its own"


def test_a_tower_method_stands_in_a_comparison(few: Path, tmp_path: Path) -> None:
    told: Any = {"shots": [1], "seeds": [1], "workers": 1, "towers": Towers()}
    (found,) = compare([few], ["zero_shot", "coop"], out=tmp_path / "compared", **told)
    rows = {row["method"]: row for row in found.rows}
    assert rows["coop"]["failed"] == 0
    assert rows["coop"]["cosine"] is not None
    assert rows["coop"]["parameters"].value > 0


def test_a_comparison_asks_a_tower_method_about_new_classes(few: Path, tmp_path: Path) -> None:
    told: Any = {"shots": [1], "seeds": [1], "workers": 1, "towers": Towers(), "base_to_new": True}
    (found,) = compare([few], ["zero_shot", "coop"], out=tmp_path / "compared", **told)
    assert all(row["H"].value > 0 for row in found.rows)
    assert refused(found) == []


def test_a_tower_method_stands_beside_its_published_row(few: Path, tmp_path: Path) -> None:
    told: Any = {"seeds": (1,), "epochs": 1, "methods": ("coop",), "towers": Towers()}
    setup = Setup("table1", "digits", few, tmp_path / "made", **told)
    rows = {row.name: row for _, group in reproduce(setup).tables[0].groups for row in group}
    assert list(rows)[-2:] == ["coop", "CoOp"]
    assert plain(rows["CoOp"].numbers["text"]) == pytest.approx(0.715)
    assert plain(rows["coop"].numbers["text"]) is not None
    again = {row.name: row for _, group in reproduce(setup).tables[0].groups for row in group}
    assert plain(again["coop"].numbers["text"]) == plain(rows["coop"].numbers["text"]), "found again"


def test_a_tower_method_has_its_cosine_and_stands_under_shift(few: Path, tmp_path: Path) -> None:
    told: Any = {"seeds": (1,), "epochs": 1, "methods": ("coop",), "towers": Towers()}
    made = reproduce(Setup("table2", "digits", few, tmp_path / "made", **told))
    rows = {row.name: row for _, group in made.tables[0].groups for row in group}
    run = fit(few, method="coop", text_tower=tower_of(few), seed=1, draw_seed=1, shots=16, epochs=1)
    found = rows["coop"].numbers["text_cosine"]
    text = evaluate(run, few)["text"]
    assert plain(found) == pytest.approx(text["positive_cosine"], abs=1e-4)
    shift = Setup("table4", "digits", few, tmp_path / "made", **told, shift=(few,))
    rows = {row.name: row for _, group in reproduce(shift).tables[0].groups for row in group}
    asked = [plain(rows["coop"].numbers[name]) for name in ("text", "digits")]
    assert asked == pytest.approx([text["accuracy"]] * 2), "the same rows under another name"


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in towers of twelve narrow blocks, which the published settings reach into."""
    folder = tmp_path_factory.mktemp("deep")
    sides = {side: pictured.MODEL[side] | {"layers": 12} for side in ("vision_cfg", "text_cfg")}
    pictured.build(folder, pictured.MODEL | sides | {"embed_dim": 24})
    pictured.tokens(folder, 0)
    return folder


def test_methods_inside_both_towers_stand_in_the_papers_tables(deep: Path, tmp_path: Path) -> None:
    """Each beside its published row, in numbers of its own, those of `evaluate`, and not the frozen ones."""
    published = {"maple": "MaPLe", "mma": "MMA"}
    told: Any = {"seeds": (1,), "epochs": 1, "methods": tuple(published), "towers": pictured.towers(deep)}
    data = deep / "cache"
    kinds = {"table1": ("text", "semantic", "gap"), "table2": ("text_cosine",), "table4": ("text", "photos")}
    for artifact, columns in kinds.items():
        shift: Any = {"shift": (data,)} if artifact == "table4" else {}
        made = reproduce(Setup(artifact, "photos", data, tmp_path / "made", **told, **shift))
        rows = {row.name: row for _, group in made.tables[0].groups for row in group}
        for method, name in published.items():
            run = checkpoint.load(next((tmp_path / "made" / "runs").glob(f"*{method}*")))
            metrics: Any = run.metrics
            text, ours = metrics["text"], [plain(rows[method].numbers[column]) for column in columns]
            expected = {
                "table1": [text["accuracy"], metrics["semantic"]["accuracy"], metrics["gap"]],
                "table2": [text["positive_cosine"]],
                "table4": [text["accuracy"]] * 2,
            }
            assert ours == pytest.approx(expected[artifact], abs=1e-4)
            assert text["positive_cosine"] != metrics["zero_shot"]["text"]["positive_cosine"]
            told_by_paper = rows[name].numbers if name in rows else {}
            assert ("text" in columns) == (told_by_paper.get("text") is not None)
    assert plain(rows["MMA"].numbers["text"]) == pytest.approx(0.71)


@pytest.mark.parametrize("method", ["campe", "campe_lite", "zero_shot", "coop"])
def test_negation_is_measured_on_test_rows(few: Path, tmp_path: Path, method: str) -> None:
    """Against a loop over rows; a method that makes no negated forms and has no space has no number."""
    path = shutil.copytree(few, tmp_path / "digits")
    with caches.open(path) as opened:
        table, names = opened.table("text/vanilla"), opened.class_names
        told: Any = {"encoder": table.manifest.encoder, "views": ["no {}"]}
        vectors = table.read().astype(np.float32)
        away = vectors + 0.3 * np.random.default_rng(0).normal(size=vectors.shape).astype(np.float32)
    with caches.create(path, "digits", names) as made:
        made.add("text", "negated", away, table.labels, **told)
    tower = tower_of(few) if method in ("campe", "coop") else None
    more: Any = {} if method == "zero_shot" else {"epochs": 2}
    run = fit(path, method=method, text_tower=tower, shots=1, device="cpu", **more)
    loaded = checkpoint.load(run.save(tmp_path / "run"))
    metrics = evaluate(loaded, path)
    if method == "coop":
        assert "negation" not in metrics
        return
    forms = [run.model.text, run.model.negated] if method != "zero_shot" else [vectors[:, 0], away[:, 0]]
    forms = [F.normalize(torch.as_tensor(form), dim=1) for form in forms]
    with caches.open(path) as opened:
        images = opened.table("image/test")
        rows = F.normalize(torch.tensor(images.read()[:, 0]).float(), dim=1)
        pairs = zip(rows, images.labels, strict=True)
        right = [float(row @ forms[0][label]) > float(row @ forms[1][label]) for row, label in pairs]
    assert 0 < metrics["negation"] == pytest.approx(np.mean(right), abs=1 / len(right))
    assert "negation" in metrics["zero_shot"]


def test_an_encoder_without_blocks_is_refused(few: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    done = cli("train", "--method", "maple", "--cache", few, "--out", tmp_path / "run")
    assert done.status == 1
    assert "the blocks of its image tower, ImageTower, cannot be entered" in done.err
    assert done.err.count("\n") == 1


def test_other_classes_go_into_the_learned_words_where_the_tower_is(
    cache: Path, x: torch.Tensor, tmp_path: Path
) -> None:
    """A loaded CoOp has no tower and refuses; so does one with words for each class."""
    query = asked(cache)["text"]
    other = Query("text", (*query.class_names[:-1], "a stranger"), query.texts)
    tower = tower_of(cache)
    coop = fit(cache, method="coop", text_tower=tower, **FEW)
    scores, known = coop.model.scores(x, other), coop.model.scores(x, query)
    torch.testing.assert_close(scores[:, :-1], known[:, :-1], rtol=1e-4, atol=1e-4)
    assert float((scores[:, -1] - known[:, -1]).abs().min()) > 1e-4
    own = fit(cache, method="coop", text_tower=tower, class_specific=True, **FEW)
    for run in (checkpoint.load(coop.save(tmp_path / "run")), own):
        with pytest.raises(Mismatch, match="a stranger"):
            run.model.scores(x, other)
    found = fit(cache, method="cocoop", text_tower=tower, **FEW).model.scores(x, other)
    assert found.shape == (7, 10)


@pytest.mark.parametrize(
    "options", [{"position": "front"}, {"class_specific": True}, {"words": "", "context": 3}]
)
def test_every_option_changes_what_is_learned(cache: Path, options: dict) -> None:
    tower = tower_of(cache)
    plain = fit(cache, method="coop", text_tower=tower, lr=1.0, **FEW).model.text
    changed = fit(cache, method="coop", text_tower=tower, lr=1.0, **FEW, **options).model
    assert float((changed.text - plain).abs().max()) > 1e-4
    if "context" in options:
        assert changed.context.shape == (3, 16)


def test_the_command_hands_the_tower_over(cache: Path, tmp_path: Path) -> None:
    line = ["train", "--method", "coop", "--cache", str(cache), "--epochs", "1", "--shots", "1"]
    done = typer.testing.CliRunner().invoke(app, [*line, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_other_methods_build_no_tower(cache: Path) -> None:
    assert Towers()(cache, "zero_shot", "cpu") == {}


def toy(folder: Path, name: str, weights: str) -> Path:
    """A cache whose texts came from elsewhere."""
    spec = caches.EncoderSpec(name, weights, "ab", "text", 3, {}, "float32", logit_scale=9.0)
    with caches.create(folder / "c", "toy", ("a", "b")) as made:
        made.add("text", "mined", np.ones((2, 1, 3)), np.arange(2), encoder=spec)
    return folder / "c"


@pytest.mark.parametrize(
    ("name", "weights", "line"),
    [
        (
            "open_clip/tiny@ab12",
            "random",
            "of its texts, tiny, was a config file; type `--text-model",
        ),
        (
            "open_clip/ViT-B-16",
            "file:best.pt",
            "with the weights best.pt; type `--text-weights PATH/best",
        ),
        ("clap/x", "y", "--text_tower clap: unknown; expected one of digits, open_clip"),
    ],
)
def test_a_tower_that_is_not_at_hand_is_named(tmp_path: Path, name: str, weights: str, line: str) -> None:
    with pytest.raises(EncoderError) as caught:
        tower_of(toy(tmp_path, name, weights))
    assert line in str(caught.value)
