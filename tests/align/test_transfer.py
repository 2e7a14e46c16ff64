"""Runs on other data sets and other classes: the numbers are those of a cache made for the purpose."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spaner.cache
from spaner.align.score.classes import halves
from spaner.align.score.evaluate import evaluate, matches, zero_shot
from spaner.align.score.transfer import transfer
from spaner.align.train.base_to_new import base_to_new, harmonic_mean
from spaner.align.train.config import TrainConfig
from spaner.align.train.fit import fit
from spaner.align.train.task import task
from spaner.errors import DatasetError, RunError
from tests.conftest import Outcome, make_toy_cache

FAST: dict[str, Any] = {"heads": 4, "batch_size": 32, "epochs": 2}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another data set of the same encoder: seven classes, other vectors."""
    path = tmp_path_factory.mktemp("other") / "other"
    make_toy_cache(path, classes=7)
    return path


@pytest.fixture(scope="module")
def run(toy_cache: Path) -> Any:
    return fit(toy_cache, **FAST)


def subset(source: Path, target: Path, classes: list[int]) -> Path:
    """The rows of some classes, written as a cache of their own."""
    with spaner.cache.open(source) as opened:
        names = [opened.class_names[c] for c in classes]
        with spaner.cache.create(target, opened.dataset, names) as cache:
            for name in opened.tables():
                table = opened.table(name)
                rows = np.flatnonzero(np.isin(table.labels, classes))
                labels = np.array([classes.index(c) for c in table.labels[rows]], np.int32)
                modality, split = name.split("/")
                spec = table.manifest.encoder
                cache.add(modality, split, table.read()[rows], labels, table.ids[rows].tolist(), encoder=spec)
    return target


def test_numbers_are_those_of_evaluation_there(run, other):
    (row,) = transfer({"mine": run}, [other])
    scored, frozen = evaluate(run, other), zero_shot(other)
    assert frozen is not None
    for kind in ("text", "semantic"):
        assert row[kind] == pytest.approx(scored[kind]["accuracy"])
        assert row["frozen"][kind] == pytest.approx(frozen[kind]["accuracy"])
        gain = row["gains"][kind]
        assert gain["mean"] == pytest.approx(row[kind] - row["frozen"][kind])
        assert gain["low"] <= gain["mean"] <= gain["high"]
    assert row["gap"] == pytest.approx(scored["gap"])
    assert (row["classes"], row["chance"]) == (7, pytest.approx(1 / 7))
    assert row["v_measure"] > 2 * row["chance_v_measure"]
    assert row["gains"]["v_measure"] == pytest.approx(row["v_measure"] - row["frozen"]["v_measure"])


def test_what_cannot_be_asked_says_why(run, toy_cache, other, tmp_path):
    make_toy_cache(tmp_path / "foreign", classes=7, weights_sha256="cd")
    head = fit(toy_cache, method="linear_probe")
    rows = transfer({"space": run, "head": head}, [tmp_path / "foreign", other])
    reasons = {(row["run"], row["dataset"]): row["reason"] for row in rows[:1] + rows[3:]}
    assert "another encoder" in reasons["space", "toy"]
    assert "head knows its training classes alone" in reasons["head", "toy"]


def test_a_head_has_no_semantic_score_and_no_space(toy_cache):
    (row,) = transfer({"head": fit(toy_cache, method="linear_probe")}, [toy_cache])
    assert row["reason"] is None
    assert (row["semantic"], row["gap"], row["v_measure"], row["gains"]["v_measure"]) == (None,) * 4
    assert row["text"] > 0.5


def test_halves_score_as_caches_of_their_own(run, toy_cache, tmp_path):
    base, new = halves(spaner.cache.open(toy_cache))
    assert (len(base.class_names), len(new.class_names)) == (6, 5)
    for name, view, classes in (("base", base, range(6)), ("new", new, range(6, 11))):
        real = subset(toy_cache, tmp_path / name, list(classes))
        expected = evaluate(run, real)
        found = matches(run, view, "image/test")
        for kind in ("text", "semantic"):
            assert found[kind].credit.mean() == pytest.approx(expected[kind]["accuracy"])


def test_training_on_half_the_classes_sees_no_other(toy_cache, tmp_path):
    base, _ = halves(spaner.cache.open(toy_cache))
    found = task(base, TrainConfig(shots=3))
    assert set(found.labels.tolist()) == set(range(6))
    assert found.text.shape[0] == 6
    whole = task(spaner.cache.open(toy_cache), TrainConfig(shots=3))
    kept = whole.labels < 6
    assert np.array_equal(found.x, whole.x[kept])  # drawn among all classes, then cut


def test_base_to_new_is_both_halves_and_their_harmonic_mean(toy_cache, tmp_path):
    found = base_to_new(toy_cache, TrainConfig(**FAST))
    real = fit(subset(toy_cache, tmp_path / "base", list(range(6))), **FAST)
    own = evaluate(real, tmp_path / "base")["text"]["accuracy"]
    assert found["text"]["base"] == pytest.approx(own, abs=0.02)  # the order of rows is another
    b, n = found["text"]["base"], found["text"]["new"]
    assert found["text"]["H"] == pytest.approx(2 / (1 / b + 1 / n))
    assert found["classes"] == [6, 5]
    assert found["zero_shot"]["text"]["H"] > 0.5


def test_a_head_has_a_base_and_no_new(toy_cache):
    found = base_to_new(toy_cache, TrainConfig(method="linear_probe"))
    assert found["text"]["base"] > 0.5
    assert (found["text"]["new"], found["text"]["H"], found["semantic"]["base"]) == (None, None, None)
    assert "a head knows its training classes alone" in found["reason"]


def test_harmonic_mean():
    assert harmonic_mean(0.5, 1.0) == pytest.approx(2 / 3)
    assert harmonic_mean(0.0, 0.0) == 0
    assert harmonic_mean(None, 1.0) is None


def test_bad_input(run, tmp_path):
    with pytest.raises(RunError, match="found no run or no cache to score on"):
        transfer({"a": run}, [])
    make_toy_cache(tmp_path / "three", classes=3)
    with pytest.raises(DatasetError, match="has 3 classes; expected four or more"):
        base_to_new(tmp_path / "three", TrainConfig(**FAST))


def test_the_command(run, toy_cache, other, tmp_path, cli: Callable[..., Outcome], monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = fit(toy_cache, **FAST)
    kept.cache = toy_cache
    kept.save("runs/mine")
    done = cli("transfer", "runs/mine", "--to", other)
    assert done.status == 0, done.err
    assert "trained on the first half of the classes" in done.out
    told = json.loads(Path("transfer/transfer.json").read_text())
    assert told["check"] == "transfer"
    assert told["rows"][0]["run"] == "runs/mine"
    assert told["base_to_new"][0]["text"]["H"] > 0
