"""The Task: which rows it holds, how they are normalised, and everything it refuses."""

import dataclasses

import clip_like
import numpy as np
import pytest
import torch

from spaner import cache as caches
from spaner.align.score.tables import opened_cache
from spaner.align.train.config import TrainConfig
from spaner.align.train.task import task
from spaner.cache.writer import Writer
from spaner.errors import CacheError, Corrupt, Mismatch, RecipeError, RunError

NAMES = [f"class {i}" for i in range(clip_like.CLASSES)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return caches.open(clip_like.build(tmp_path_factory.mktemp("data") / "cache"))


def write_raw(cache, features, *, status=None, draws=None, complete=True, labels=None):
    """An image table written below the checks of `Cache.add`."""
    ids = [f"row {i}" for i in range(len(features))]
    labels = np.arange(len(ids)) % clip_like.CLASSES if labels is None else labels
    draws = draws or {}
    manifest = caches.Manifest(
        dataset=cache.dataset,
        modality="image",
        split="train",
        rows=len(ids),
        views=("centre", "crop"),
        dim=features.shape[2],
        dtype="float32",
        chunk_rows=len(ids),
        encoder=clip_like.spec("image"),
        seed=1,
        rows_sha256=caches.ids_sha256(ids),
        complete=complete,
        draws={name: caches.drawn_sha256(ids, rows) for name, rows in draws.items()},
    )
    with cache.begin(manifest, ids, labels, draws) as writer:
        writer.write(0, features, status, {int(i): "broken file" for i in np.flatnonzero(status == 2)})
        writer.seal()


@pytest.fixture
def empty(tmp_path):
    """A cache with texts and no images."""
    generator = np.random.default_rng(0)
    texts = generator.normal(size=(clip_like.CLASSES, 5, clip_like.DIM)).astype(np.float32)
    with caches.create(tmp_path / "cache", "synthetic", NAMES) as opened:
        opened.add("text", "mined", texts, np.arange(clip_like.CLASSES), encoder=clip_like.spec("text"))
        yield opened


def raw_features(rows=22):
    return np.random.default_rng(1).normal(size=(rows, 2, clip_like.DIM)).astype(np.float32)


def test_all_rows_normalised_in_cache_order(cache):
    loaded, table = task(cache, TrainConfig()), cache.table("image/train")
    stored = table.read().astype(np.float64)
    expected = stored / np.sqrt((stored**2).sum(axis=2, keepdims=True))
    np.testing.assert_allclose(loaded.x.numpy(), expected, atol=1e-6)
    assert loaded.labels.tolist() == table.labels.tolist()
    assert loaded.text.shape == (clip_like.CLASSES, clip_like.TEMPLATES, clip_like.DIM)
    assert torch.allclose(loaded.text.norm(dim=2), torch.ones(clip_like.CLASSES, clip_like.TEMPLATES))
    assert loaded.logit_scale == 30.0
    assert loaded.widths == {"image": clip_like.DIM, "text": clip_like.DIM}
    assert loaded.tables == {n: cache.table(n).manifest.sha256 for n in ("image/train", "text/mined")}


def test_few_shot_draw(cache):
    loaded, table = task(cache, TrainConfig(shots=3, draw_seed=2)), cache.table("image/train")
    rows = caches.few_shot(table.labels, 3, 2)
    assert loaded.labels.tolist() == table.labels[rows].tolist()
    assert np.bincount(loaded.labels).tolist() == [3] * clip_like.CLASSES
    assert loaded.draw.to_json() == {
        "shots": 3,
        "seed": 2,
        "rows": 3 * clip_like.CLASSES,
        "failed": 0,
        "sha256": caches.ids_sha256(table.ids[rows].tolist()),
    }


def test_texts_follow_the_labels_of_their_table(tmp_path):
    order = np.random.default_rng(2).permutation(clip_like.CLASSES)
    texts = clip_like.texts(5, 3).astype(np.float32)
    path = clip_like.build(tmp_path / "cache", skip=("text/mined",))
    with caches.create(path, "synthetic", NAMES) as opened:
        opened.add("text", "mined", texts[order], order, encoder=clip_like.spec("text"))
    found = task(caches.open(path), TrainConfig()).text.numpy()
    np.testing.assert_allclose(found, texts / np.linalg.norm(texts, axis=2, keepdims=True), atol=1e-6)


def test_failed_rows_are_dropped(empty):
    features, status = raw_features(), np.ones(22, np.uint8)
    status[[3, 17]], features[[3, 17]] = 2, 0
    write_raw(empty, features, status=status)
    loaded = task(empty, TrainConfig())
    assert (len(loaded.x), loaded.draw.rows, loaded.draw.failed) == (20, 20, 2)
    assert loaded.labels.tolist() == [i % 11 for i in range(22) if i not in (3, 17)]
    assert loaded.draw.sha256 == caches.ids_sha256([f"row {i}" for i in range(22)])


def test_all_rows_failed(empty):
    write_raw(empty, np.zeros((22, 2, clip_like.DIM), np.float32), status=np.full(22, 2, np.uint8))
    with pytest.raises(
        CacheError, match=r"image/train has no usable row: all 22 .* failed .*; see `spaner cache info"
    ):
        task(empty, TrainConfig())


def test_partial_table_gives_its_largest_draw(empty):
    draws = {"1-shot-seed-1": np.arange(11), "2-shot-seed-1": np.arange(22), "2-shot-seed-3": np.arange(22)}
    write_raw(empty, raw_features(), draws=draws, complete=False)
    assert task(empty, TrainConfig()).draw.shots == 2
    assert task(empty, TrainConfig(shots=1)).draw.rows == 11
    with pytest.raises(
        CacheError, match=r"image/train .* no draw with seed 2; stored draws: 1-shot.*--draw-seed"
    ):
        task(empty, TrainConfig(draw_seed=2))
    with pytest.raises(CacheError, match=r"not 4-shot-seed-1"):
        task(empty, TrainConfig(shots=4))


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_embedding_that_is_no_direction(empty, value, monkeypatch):
    """Whoever writes NaN is refused by the cache, so that check is off here; zeros are allowed there."""
    monkeypatch.setattr(Writer, "_refuse_nan", lambda *_: None)
    features = raw_features()
    features[13, 1] = value
    write_raw(empty, features)
    with pytest.raises(Corrupt, match=r"the embedding of 'row 13' is not finite or is all zeros \(1 such"):
        task(empty, TrainConfig())


def test_missing_template_set(cache):
    with pytest.raises(CacheError, match=r"no table text/ensemble"):
        task(cache, TrainConfig(templates="ensemble"))


def test_class_without_text(tmp_path):
    path = clip_like.build(tmp_path / "cache", skip=("text/mined",))
    with caches.create(path, "synthetic", NAMES) as opened:
        texts = clip_like.texts(5, 3).astype(np.float32)[:9]
        opened.add("text", "mined", texts, np.arange(9), encoder=clip_like.spec("text"))
    with pytest.raises(
        CacheError, match=r"text/mined has no text for class 'class 9' \(2 such .* extract the text"
    ):
        task(caches.open(path), TrainConfig())


@pytest.mark.parametrize("field", ["name", "weights_sha256"])
def test_images_and_texts_of_different_encoders(empty, field):
    features, labels = clip_like.images(2, 1)
    other = dataclasses.replace(clip_like.spec("image"), **{field: "other"})
    empty.add("image", "train", features.astype(np.float32), labels, encoder=other)
    with pytest.raises(
        Mismatch, match=rf"image and text were .* different encoders: {field} is 'other' and '.*'; exp"
    ):
        task(empty, TrainConfig())


def test_encoder_without_a_scale(tmp_path):
    with caches.create(tmp_path / "cache", "mine", ["a", "b"]) as opened:
        generator = np.random.default_rng(0)
        opened.add("image", "train", generator.normal(size=(6, 7)), np.arange(6) % 2, encoder="mine")
        opened.add("text", "mined", generator.normal(size=(2, 3, 7)), np.arange(2), encoder="mine")
        with pytest.raises(
            RecipeError, match=r"logit_scale is auto, .* 'mine' .* no scale .* --logit-scale 100"
        ):
            task(opened, TrainConfig())
        assert task(opened, TrainConfig(logit_scale=40)).logit_scale == 40.0


def test_who_opens_a_cache_closes_it(tmp_path, monkeypatch):
    clip_like.build(tmp_path / "cache", per_class=3)
    closed = []
    monkeypatch.setattr(caches.Cache, "close", lambda self: closed.append(self))
    with opened_cache(tmp_path / "cache") as opened:
        assert not closed
    assert closed == [opened], "one given by its path is closed"
    with opened_cache(opened) as same:
        assert same is opened
    assert closed == [opened], "an opened one stays its owner's"
    with pytest.raises(RunError), opened_cache(tmp_path / "cache"):
        raise RunError("something else")
    assert len(closed) == 2
