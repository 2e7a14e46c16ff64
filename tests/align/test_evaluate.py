"""Scoring a real run on real caches, against loops over rows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spaner import cache as caches
from spaner.align.score import evaluate, metrics
from spaner.align.score.calibration import nll
from spaner.align.train import run as checkpoint
from spaner.align.train.fit import fit
from spaner.errors import CacheError, DatasetError, Mismatch

C, D, TRAIN, TEST = 5, 22, 7, 53
NAMES = ["crane", "cup", "crane", "lamp", "owl"]


def spec(modality: str, dim: int = D, **changes) -> caches.EncoderSpec:
    facts = {"weights": "made", "weights_sha256": "ab", "preprocessing": {}, "precision": "float32"}
    return caches.EncoderSpec("toy", modality=modality, dim=dim, logit_scale=20.0, **{**facts, **changes})


def fill(
    path: Path, dataset: str = "toys", names: list[str] = NAMES, *, dim: int = D, seed: int = 0, **changes
):
    """Images of 2 views around class centres, two text tables; row 3 of the test table failed."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).standard_normal((len(names), D))
    with caches.create(path, dataset, names) as cache:
        for split, rows in (("train", TRAIN * len(names)), ("test", TEST)):
            labels = np.arange(rows) % len(names)
            features = centres[labels][:, None] + rng.standard_normal((rows, 2, D))
            cache.add("image", split, features.astype("f4"), labels, encoder=spec("image", **changes))
        order = rng.permutation(len(names))
        for split, noise, templates in (("mined", 0.5, 3), ("vanilla", 0.5, 1), ("classname", 0.9, 1)):
            text = centres + 1 + noise * np.random.default_rng(2).standard_normal(centres.shape)
            features = np.repeat(np.pad(text, ((0, 0), (0, dim - D)))[order][:, None], templates, axis=1)
            cache.add("text", split, features.astype("f4"), order, encoder=spec("text", dim, **changes))
    return path


def fail(path: Path, table: str, rows: list[int]) -> None:
    """Write the table again with some rows marked as failed."""
    with caches.create(path, "toys", NAMES) as cache:
        old = cache.table(table)
        features = old.read().copy()
        manifest = replace(old.manifest, options={"again": 1})
        with cache.begin(manifest, list(old.ids), old.labels, overwrite=True) as writer:
            writer.write(0, features, reasons=dict.fromkeys(rows, "truncated file"))
            writer.seal()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    path = fill(tmp_path_factory.mktemp("caches") / "toys")
    fail(path, "image/test", [3])
    return path


@pytest.fixture(scope="module")
def run(cache):
    return fit(cache, epochs=2, heads=2, batch_size=16, device="cpu")


def naive_accuracy(rows: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> float:
    """Ties (here only between two classes of one name and one vector) count half."""
    credit = []
    for row, label in zip(rows, labels, strict=True):
        scores = [float(row @ each) / np.linalg.norm(row) / np.linalg.norm(each) for each in classes]
        best = [c for c in range(len(classes)) if scores[c] > max(scores) - 1e-6]
        credit.append((label in best) / len(best))
    return float(np.mean(credit))


def text_by_class(cache: caches.Cache, table: str) -> np.ndarray:
    found = cache.table(table)
    return np.stack([found.read()[list(found.labels).index(c), 0] for c in range(C)])


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_accuracies_equal_the_loop(monkeypatch, cache, run, block):
    monkeypatch.setattr(evaluate, "BLOCK", block)
    opened = caches.open(cache)
    table = opened.table("image/test")
    keep = np.arange(TEST) != 3
    x, labels = table.read()[keep, 0], table.labels[keep]
    found = evaluate.evaluate(run, cache)
    for kind, name in (("text", "text/vanilla"), ("semantic", "text/classname")):
        classes = text_by_class(opened, name)
        expected = naive_accuracy(run.embed("image", x), run.embed("text", classes), labels)
        assert found[kind]["accuracy"] == pytest.approx(expected)
        assert found["zero_shot"][kind]["accuracy"] == pytest.approx(naive_accuracy(x, classes, labels))
        logits = 20 * metrics.unit(x, "rows") @ metrics.unit(classes, "texts").T
        assert found["zero_shot"][kind]["nll"] == pytest.approx(nll(logits, labels), rel=1e-5)
    assert (found["rows"], found["failed"], found["chance"]) == (TEST - 1, 1, 1 / C)
    assert found["gap"] == pytest.approx(found["text"]["accuracy"] - found["semantic"]["accuracy"])
    assert found["zero_shot"] == evaluate.zero_shot(cache)
    assert "zero_shot" not in found["zero_shot"]


def test_result_says_what_was_tested(cache, run):
    found = evaluate.evaluate(run, caches.open(cache))
    assert found["tested"] == {
        "dataset": "toys",
        "table": "image/test",
        "manifest_sha256": caches.open(cache).table("image/test").manifest.sha256,
        "encoder": "toy made",
    }
    assert found["synthetic"] is False
    assert (
        set(found["text"])
        == set(found["semantic"])
        == {
            "accuracy",
            "accuracy_tie_aware",
            "positive_cosine",
            "margin",
            "negative_cosine",
            "centred_cosine",
            "ece",
            "nll",
            "ece_fitted",
            "nll_fitted",
        }
    )


def test_namesakes_count_for_the_tie_aware_score(cache, run):
    found = evaluate.evaluate(run, cache)
    labels = np.delete(np.arange(TEST) % C, 3)
    assert found["ceiling"] == pytest.approx(1 - np.mean(np.isin(labels, [0, 2])) / 2)
    assert found["text"]["accuracy_tie_aware"] >= found["text"]["accuracy"]


def test_which_table_is_tested(cache, run):
    opened = caches.open(cache)
    assert evaluate.tested_table(opened, None) == "image/test"
    assert (
        evaluate.tested_table(opened, "train")
        == evaluate.tested_table(opened, "image/train")
        == "image/train"
    )
    assert evaluate.evaluate(run, cache, "train")["rows"] == TRAIN * C
    with pytest.raises(
        CacheError, match=r"has no table image/v2, only image/test, image/train.*; make it with"
    ):
        evaluate.evaluate(run, cache, "v2")


def test_val_is_tested_where_there_is_no_test(tmp_path):
    with caches.create(tmp_path / "c", "toys", ["a", "b"]) as cache:
        cache.add("image", "val", np.eye(2, 3), np.arange(2), encoder=spec("image", 3))
        assert evaluate.tested_table(cache, None) == "image/val"


def test_a_saved_run_scores_another_data_set_of_the_same_encoder(cache, run, tmp_path):
    other = fill(tmp_path / "other", "gadgets", ["bolt", "gear", "nut", "saw", "vice", "awl", "file"], seed=3)
    loaded = checkpoint.load(run.save(tmp_path / "run"))
    found = evaluate.evaluate(loaded, other)
    assert (found["tested"]["dataset"], found["chance"], found["ceiling"]) == ("gadgets", 1 / 7, 1)
    assert evaluate.evaluate(loaded, cache) == evaluate.evaluate(run, cache)


def test_another_encoder_is_refused_by_what_differs(run, tmp_path):
    other = fill(tmp_path / "other", weights_sha256="cd")
    with pytest.raises(Mismatch, match="weights_sha256: run 'ab', cache 'cd'"):
        evaluate.evaluate(run, other)


def test_no_zero_shot_where_the_encoders_share_no_space(tmp_path):
    path = fill(tmp_path / "wide", dim=D + 3)
    run = fit(path, epochs=1, heads=2, batch_size=16, device="cpu")
    assert evaluate.zero_shot(path) is None
    assert evaluate.evaluate(run, path)["zero_shot"] is None


def test_retrieval_between_two_tables(cache, run):
    into_images = evaluate.evaluate_pair(run, cache, "text/classname", "image/test")
    assert (into_images["queries"], into_images["targets"]) == (C, TEST - 1)
    back = evaluate.evaluate_pair(run, cache, "image/test", "text/classname")
    assert back["recall@1"] == pytest.approx(evaluate.evaluate(run, cache)["semantic"]["accuracy"])
    assert (back["query"], back["target"]) == ("image/test", "text/classname")


def test_a_class_without_text_and_a_table_without_good_rows(run, tmp_path):
    with caches.create(tmp_path / "c", "toys", NAMES) as cache:
        cache.add("text", "vanilla", np.eye(4, D), np.arange(4), encoder=spec("text"))
        with pytest.raises(
            CacheError, match=r"text/vanilla has no text for class 'owl' \(1 such\); expected one row"
        ):
            evaluate.class_vectors(run, cache, "text/vanilla")
    path = fill(tmp_path / "failed")
    fail(path, "image/test", list(range(TEST)))
    with pytest.raises(
        DatasetError, match="no row of image/test can be scored: 53 rows, all failed; expected at least 1"
    ):
        evaluate.evaluate(run, path)
