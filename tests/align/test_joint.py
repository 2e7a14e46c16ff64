"""Joint training: every modality learns, rows belong to their sample, missing ones count for nothing."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import clip_like
import numpy as np
import pytest
import torch

from spaner import cache as caches
from spaner.align.methods import loop, spaner
from spaner.align.methods.spaner import Spaner
from spaner.align.report import write as report
from spaner.align.report.listing import listing
from spaner.align.score.evaluate import evaluate_modalities
from spaner.align.train import run as checkpoint
from spaner.align.train.ablate import ablate_prompt
from spaner.align.train.base_to_new import base_to_new
from spaner.align.train.config import ExtendConfig, TrainConfig
from spaner.align.train.extend import extend, extend_and_check
from spaner.align.train.fit import fit, scored
from spaner.align.train.joint import trained_together
from spaner.align.train.stack import fit_stack
from spaner.align.train.sweep import plan
from spaner.align.train.task import task
from spaner.errors import CacheError, RecipeError

FAST: dict[str, Any] = {"heads": 4, "batch_size": 32, "epochs": 4, "lr": 5e-3}
THREE = "image,text,audio"


def fast(**changes: Any) -> dict[str, Any]:
    return FAST | changes


NAMES = [f"class {i}" for i in range(clip_like.CLASSES)]


def add(
    path: Path, modality: str, width: int, seed: int, *, rows: slice = slice(None), train: str = "row-{}"
):
    """A further modality: another projection of the cache's own images, row by row under the same id."""
    projection = np.random.default_rng(seed).normal(size=(clip_like.DIM, width))
    encoder = clip_like.spec(modality, name=f"encoder {seed}", dim=width, logit_scale=None)
    with caches.create(path, "synthetic", NAMES) as cache:
        for split, per_class, drawn in (("train", 9, 1), ("test", 23, 2)):
            features, labels = clip_like.images(per_class, drawn)
            ids = [(train if split == "train" else "test-{}").format(i) for i in range(len(labels))]
            x = (features @ projection).astype(np.float32)
            kept = rows if split == "train" else slice(None)
            cache.add(modality, split, x[kept], labels[kept], ids[kept], encoder=encoder, overwrite=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    built = clip_like.build(tmp_path_factory.mktemp("joint") / "cache", per_class=9)
    features, labels = clip_like.images(9, 1)
    with caches.create(built, "synthetic", NAMES) as cache:
        ids = [f"row-{i}" for i in range(len(labels))]
        image = clip_like.spec("image")
        cache.add("image", "train", features.astype(np.float32), labels, ids, encoder=image, overwrite=True)
    add(built, "audio", 13, 0)
    add(built, "table", 24, 1, rows=slice(0, 60))
    add(built, "touch", 7, 2, rows=slice(0, 1))
    add(built, "smell", 5, 3, train="other-{}")
    return built


@pytest.fixture(scope="module")
def cache(path):
    return caches.open(path)


@pytest.fixture(scope="module")
def run(cache):
    return fit(cache, modalities=THREE, **FAST)


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_all_modalities_find_each_other(cache, run):
    found = evaluate_modalities(run, cache, trained_together(run))
    assert list(run.widths) == ["image", "text", "audio"]
    assert len(found["pairs"]) == 6
    assert found["emergent"] is None
    assert all(pair["recall@1"] > 3 * pair["chance"] for pair in found["pairs"])
    assert set(run.tables) == {"image/train", "text/mined", "audio/train"}


def test_naming_the_default_changes_no_bit(cache):
    quick = fast(epochs=2)
    assert torch.equal(
        weights(fit(cache, **quick).model), weights(fit(cache, modalities="text, image", **quick).model)
    )


def test_a_joint_run_comes_back_with_the_same_bits(cache, run, tmp_path):
    again = checkpoint.load(run.save(tmp_path / "run"))
    x = cache.table("audio/test").read()[:, 0]
    assert np.array_equal(again.embed("audio", x), run.embed("audio", x))
    assert again.config == run.config


@pytest.mark.parametrize("objective", ["gram", "symile", "pmrl", "modgap", "pairs,gram:0.5"])
def test_every_objective_lowers_its_loss(cache, objective):
    found = fit(cache, modalities=THREE, objective=objective, **FAST).history
    assert found[-1]["align"] < found[0]["align"]


def test_rows_of_one_id_stand_beside_each_other_and_missing_rows_are_zeros(cache):
    material = task(cache, TrainConfig(modalities="image,text,table", pair="id"))
    pairs = loop.pairs_of(material)
    (pool,) = pairs.others
    drawn = pool.partners(torch.Generator().manual_seed(0))
    rows = pool.rows()[drawn]
    stored = torch.nn.functional.normalize(
        torch.from_numpy(cache.table("table/train").read().astype(np.float32)), dim=2
    )
    views = {0: 0, 1: 0}
    for sample in range(len(material.labels)):
        for view in range(2):
            row = rows[2 * sample + view]
            if sample >= 60:
                assert not row.any()
            else:
                (which,) = [v for v in (0, 1) if torch.allclose(row, stored[sample, v], atol=1e-6)]
                views[which] += 1
    assert min(views.values()) > 30  # either view of the own row, by lot


def test_rows_of_a_class_are_drawn_from_all_of_it(cache):
    material = task(cache, TrainConfig(modalities=THREE, shots=3))
    (pool,) = loop.pairs_of(material).others
    of_class = material.companions["audio"].samples
    drawn = pool.rows()[pool.partners(torch.Generator().manual_seed(0))]
    for label, row in zip(material.labels.repeat_interleave(2).tolist(), drawn, strict=True):
        own = of_class.x[of_class.labels == label].flatten(0, 1)
        assert (own == row).all(1).any()
    assert len(of_class.labels) == 3 * clip_like.CLASSES


def test_a_missing_row_teaches_nothing():
    """The loss and its slopes are those of a batch in which the other modalities' pairs are all there is."""
    model = Spaner({"image": 24, "text": 24, "audio": 24}, logit_scale=20.0, heads=4, pair="id")
    rng = torch.Generator().manual_seed(0)
    x, t, a = torch.randn(3, 6, 24, generator=rng).unbind()
    labels = torch.arange(6)
    two = model.loss({"image": x, "text": t}, labels)["loss"].item()
    none = model.loss({"image": x, "text": t, "audio": torch.zeros(6, 24)}, labels)["loss"]
    assert none.item() == pytest.approx(two, rel=1e-6)
    none.backward()
    assert all(not p.grad.any() for p in model.aligners["audio"].parameters() if p.grad is not None)
    assert model.loss({"image": x, "text": t, "audio": a}, labels)["loss"].item() != pytest.approx(
        two, rel=1e-3
    )


@pytest.mark.parametrize("own", [{}, {"pool": "input"}, {"project": "input", "attend": "prompt"}])
def test_aligners_run_as_one_are_the_aligners_one_by_one(monkeypatch, own):
    """Losses and slopes, with rows missing, in float64."""
    rng = torch.Generator().manual_seed(0)
    widths = {"image": 24, "text": 24, "audio": 13, "touch": 7}
    batch = {n: torch.randn(11, w, generator=rng, dtype=torch.float64) for n, w in widths.items()}
    batch["audio"][3], batch["touch"][:10] = 0, 0
    found = []
    for most in (0, 1 << 20):
        monkeypatch.setattr(spaner, "TOGETHER", most)
        model = Spaner(widths, logit_scale=20.0, heads=4, pair="id", **own).double()
        loss = model.loss(batch, torch.arange(11))["loss"]
        loss.backward()
        slopes = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((loss.item(), slopes))
    (apart, one), (joined, other) = found
    assert joined == pytest.approx(apart, rel=1e-12)
    assert one.keys() == other.keys()
    for name, slope in one.items():
        torch.testing.assert_close(other[name], slope, rtol=1e-9, atol=1e-12)


def test_cells_of_a_stack_are_joint_runs_too(cache):
    asked = [TrainConfig(modalities=THREE, **fast(epochs=2, seed=seed)) for seed in (1, 2)]
    for config, stacked in zip(asked, fit_stack(task(cache, asked[0]), asked), strict=True):
        assert isinstance(stacked, checkpoint.Run)
        assert stacked.history[-1]["loss"] == pytest.approx(fit(cache, config).history[-1]["loss"], rel=1e-4)


def test_a_joint_core_is_extended_and_does_not_move(cache, run):
    longer = extend(run, cache, modality="table", epochs=4, batch_size=32)
    hashes = longer.extensions[-1]["frozen_sha256"]
    assert hashes["before"] == hashes["after"]
    x = cache.table("audio/test").read()[:, 0]
    assert np.array_equal(longer.embed("audio", x), run.embed("audio", x))
    found = evaluate_modalities(longer, cache, trained_together(longer))
    emergent = {frozenset((p["query"], p["target"])) for p in found["pairs"] if p["emergent"]}
    assert emergent == {frozenset(("table", "text")), frozenset(("table", "audio"))}


def test_a_foreign_encoder_neither_starts_at_the_identity_nor_is_blended(cache):
    anchored = fit(cache, recipe="anchored", modalities="image,text,table", pair="id", **fast(epochs=1))
    assert "table" in anchored.model.newcomers
    assert dataclasses.replace(anchored).model.own.blend == 0.5


def refused(cache, error: type[Exception], message: str, **settings: Any) -> None:
    with pytest.raises(error, match=message):
        fit(cache, **fast(**settings))


def test_bad_input(cache):
    refused(cache, RecipeError, r"modalities is 'image'; expected two different ones", modalities="image")
    refused(cache, RecipeError, r"modalities is 'image,image,text'; exp", modalities="image,image,text")
    refused(cache, CacheError, r"taste/train", modalities="image,text,taste")
    refused(
        cache,
        CacheError,
        r"'class 1' has image and no touch to train with \(10",
        modalities="image,text,touch",
    )
    message = (
        r"no id of smell/train is the id of a training row of image/train: found 'other-0' beside 'row-0'"
    )
    refused(cache, CacheError, message, modalities="image,text,smell", pair="id")
    refused(
        cache, RecipeError, r"objective gram needs 3 modalities and is given 2: image, text", objective="gram"
    )
    refused(cache, RecipeError, r"objective is 'gran'; expected .*; did you mean 'gram'", objective="gran")
    refused(cache, RecipeError, r"objective 'pairs,pairs' names pairs twice", objective="pairs,pairs")
    refused(cache, RecipeError, r"has the weight '-1'; expected a number above 0", objective="pairs:-1")
    message = r"direction is 'text' and 3 modalities are trained together; expected both"
    refused(cache, RecipeError, message, modalities=THREE, direction="text")


def test_the_command_prints_every_pair(cli, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = cli("train", "--cache", path, "--modalities", THREE, "--epochs", 1, "--heads", 4, "--out", "joint")
    assert done.status == 0, done.err
    table = done.out[done.out.index("from, to") :].splitlines()
    assert table[0].split()[2:] == ["image", "text", "audio"]
    assert [line.split()[0] for line in table[1:4]] == ["image", "text", "audio"]


def test_a_cell_is_named_after_every_modality_that_it_trains_on(cache, path, tmp_path):
    def names(found) -> list[str]:
        return [
            plan(found, {"seed": [1]}, {"modalities": each})[0].file.name for each in ("image,text", THREE)
        ]

    other = tmp_path / "other"
    shutil.copytree(path, other)
    add(other, "audio", 13, 5)
    with caches.open(other) as changed:
        (two, three), (two_again, three_again) = names(cache), names(changed)
    assert two == two_again
    assert three != three_again


@pytest.fixture(scope="module")
def nameless(cache) -> checkpoint.Run:
    return fit(cache, modalities="image,audio,table", pair="id", **FAST)


def test_without_text_the_modalities_find_each_other_and_no_class_is_named(cache, nameless):
    assert list(nameless.widths) == ["image", "audio", "table"]
    assert set(nameless.tables) == {"image/train", "audio/train", "table/train"}
    assert nameless.history[-1]["loss"] < nameless.history[0]["loss"]
    assert nameless.temperature is None
    found = scored(nameless, cache)
    assert (found["text"], found["semantic"], found["gap"], found["zero_shot"]) == (None,) * 4
    assert found["tested"]["table"] == "image/test"
    pairs = found["modalities"]["pairs"]
    assert len(pairs) == 6
    assert all(pair["recall@1"] > 2 * pair["chance"] for pair in pairs)


def test_a_pair_without_text_is_trained_by_the_rows_of_either(cache, tmp_path):
    """The loss of the first step is that of the batch, and a text table is not even looked for."""
    bare = tmp_path / "bare"
    shutil.copytree(cache.path, bare, ignore=shutil.ignore_patterns("text"))
    with caches.open(bare) as opened:
        run = fit(opened, modalities="table,audio", logit_scale=20.0, **FAST)
        metrics = scored(run, opened)
    assert list(run.widths) == ["table", "audio"]
    assert metrics["tested"]["table"] == "table/test"
    assert len(metrics["modalities"]["pairs"]) == 2
    material = task(cache, TrainConfig(modalities="table,audio", pair="class", logit_scale=20.0))
    (batch, _, _) = next(_batches(loop.pairs_of(material)))
    assert list(batch) == ["table", "audio"]


def _batches(pairs: loop.Pairs):
    seen = []

    def step(fraction, batch, labels):
        seen.append((batch, labels, fraction))
        return {"loss": torch.zeros(())}

    config = TrainConfig(epochs=1, batch_size=32)
    list(loop.passes(pairs, loop.draws(pairs, config), config, torch.device("cpu"), step))
    yield from seen


@pytest.mark.usefixtures("few_rows_in_the_plane")
def test_a_run_without_text_is_saved_loaded_extended_and_reported(cache, path, nameless, tmp_path):
    nameless.metrics, nameless.cache = scored(nameless, cache), path
    again = checkpoint.load(nameless.save(tmp_path / "run"))
    x = cache.table("audio/test").read()[:, 0]
    assert np.array_equal(again.embed("audio", x), nameless.embed("audio", x))
    told = extend_and_check(
        again, cache, ExtendConfig(modality="smell", epochs=1, batch_size=32), tmp_path / "longer"
    )
    assert "newcomer" not in told
    assert [pair["query"] for pair in told["pairs"]] == ["image/test", "smell/test"]
    (row,) = [row for row in listing(tmp_path) if row["name"] == "run"]
    assert "problem" not in row
    page, *_ = report.write([tmp_path / "longer"], tmp_path / "r.html", figures=False)
    text = page.read_text()
    assert "mean recall@1 by class, %; no text was trained" in text
    assert "longer: recall@1, from each modality (rows)" in text
    assert "Class retrieval" not in text
    assert "smell with audio" in text or "audio with smell" in text


def test_what_asks_by_name_refuses_a_run_without_text(cache, tmp_path):
    for ask in (
        lambda: plan(cache, {"seed": [1]}, {"modalities": "image,audio"}),
        lambda: ablate_prompt(cache, {"modalities": "image,audio"}, out=tmp_path),
        lambda: base_to_new(cache, TrainConfig(modalities="image,audio")),
    ):
        with pytest.raises(RecipeError, match="modalities is 'image,audio'; expected text among them"):
            ask()
    with pytest.raises(RecipeError, match=r"prior is .gda.kernel., a head that answers class names"):
        fit(cache, recipe="anchored-prior", modalities="image,audio", **fast(epochs=1))
