"""The synthetic cache of the benchmarks: CLIP's geometry, seeded, and labelled as made up; what a card is
measured by runs without one."""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import spaner.cache as caches
from spaner.align.score.evaluate import zero_shot

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
synthetic = import_module("synthetic")
gpu = import_module("gpu")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 1,000 classes, which decide the accuracy, but few rows."""
    path = tmp_path_factory.mktemp("synthetic") / "cache"
    synthetic.make(path, shots=2, views=2, test_rows=4_000)
    return path


def test_the_frozen_space_scores_as_clip_does_on_imagenet(small):
    scores = zero_shot(small)
    assert scores is not None
    assert scores["text"]["accuracy"] == pytest.approx(0.667, abs=0.03)
    assert scores["semantic"]["accuracy"] == pytest.approx(0.641, abs=0.03)
    assert scores["text"]["positive_cosine"] == pytest.approx(0.329, abs=0.02)
    assert scores["semantic"]["positive_cosine"] == pytest.approx(0.305, abs=0.02)
    assert scores["text"]["negative_cosine"] < scores["text"]["positive_cosine"] - 0.1


def test_every_table_says_that_it_is_made_up(small):
    with caches.open(small) as cache:
        assert cache.dataset == "synthetic-imagenet"
        tables = [cache.table(name) for name in cache.tables()]
        shapes = {table.name: (table.rows, len(table.views)) for table in tables}
        assert all(table.manifest.encoder.synthetic for table in tables)
        assert {table.manifest.dtype for table in tables} == {"float16"}
    assert shapes == {
        "image/train": (2000, 2),
        "image/test": (4000, 1),
        "text/mined": (1000, 21),
        "text/vanilla": (1000, 1),
        "text/classname": (1000, 1),
    }


def test_the_same_seed_makes_the_same_vectors_and_another_seed_others(tmp_path):
    sizes = {"classes": 7, "shots": 3, "views": 2, "dim": 67, "test_rows": 11}
    rows = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        synthetic.make(tmp_path / name, **sizes, seed=seed)
        with caches.open(tmp_path / name) as cache:
            rows.append(cache.table("image/train").read())
    assert np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])


def test_images_and_texts_stand_apart_by_more_than_their_classes_explain():
    """The modality gap: the two sides' means point 60 degrees or more apart."""
    space = synthetic.Space(101, 128, 0)
    images = space.images(np.arange(101), 1)[:, 0].mean(0)
    texts = space.texts(5)[0][:, 0].mean(0)
    assert images @ texts / np.linalg.norm(images) / np.linalg.norm(texts) < 0.5


def test_what_measures_a_card_runs_on_any_machine(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--tiny"])
    gpu.main()
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    parts = {"a step", "sweep", "stacked sweep", "evaluation", "extraction", "prompt tower"}
    assert {line[0][2:] for line in lines} == parts
    assert not [line for line in lines if "failed" in line[2]]
    assert all(any(digit in line[2] for digit in "123456789") for line in lines)
