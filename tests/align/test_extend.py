"""A modality joins a trained run: it learns, and nothing else moves by a single bit."""

import dataclasses
from typing import Any

import clip_like
import numpy as np
import pytest
import torch

from spaner import cache as caches
from spaner.align.methods import loop, step
from spaner.align.score.evaluate import evaluate
from spaner.align.train import extend as extending
from spaner.align.train import run as checkpoint
from spaner.align.train.config import ExtendConfig
from spaner.align.train.extend import extend, extend_and_check, frozen_sha256
from spaner.align.train.fit import fit
from spaner.align.train.rows import unit_rows
from spaner.errors import CacheError, Mismatch, RecipeError, RunError

WIDTH, SHOTS, DRAW_SEED = 13, 3, 2  # the newcomer's width is not the prompt's
FAST: dict[str, Any] = {"epochs": 2, "batch_size": 32}


def add_newcomer(path, modality="audio", *, width=WIDTH, per_class=5, classes=clip_like.CLASSES, seed=0):
    """Tables train and test of one more modality: a random projection of made-up images."""
    projection = np.random.default_rng(seed).normal(size=(clip_like.DIM, width))
    encoder = clip_like.spec(modality, name=f"ear {seed}", dim=width, logit_scale=None)
    with caches.create(path, "synthetic", [f"class {i}" for i in range(clip_like.CLASSES)]) as cache:
        for split, rows in (("train", per_class), ("test", 7)):
            features, labels = clip_like.images(rows, seed=100 + seed + rows, noise=0.4)
            keep = labels < classes
            heard = (features[keep, 0] @ projection).astype(np.float32)
            cache.add(modality, split, heard, labels[keep], encoder=encoder)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    built = clip_like.build(tmp_path_factory.mktemp("extend") / "cache", per_class=7)
    features, labels = clip_like.images(7, seed=1)
    order = np.random.default_rng(0).permutation(len(labels))  # classes do not come in order
    with caches.create(built, "synthetic", [f"class {i}" for i in range(clip_like.CLASSES)]) as cache:
        images = features[order].astype(np.float32)
        cache.add("image", "train", images, labels[order], encoder=clip_like.spec("image"), overwrite=True)
    add_newcomer(built)
    return built


@pytest.fixture(scope="module")
def cache(path):
    return caches.open(path)


@pytest.fixture(scope="module")
def run(cache):
    return fit(cache, recipe="anchored", heads=4, epochs=10, batch_size=32, shots=SHOTS, draw_seed=DRAW_SEED)


@pytest.fixture(scope="module")
def longer(run, cache):
    return extend(run, cache, epochs=30, batch_size=11, lr=0.01)


def same(a, b):
    """Whether every tensor of state dict `a` is bit for bit in `b`."""
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


# --- nothing else moves ---


def test_the_core_keeps_every_bit_and_its_hash_is_recorded(run, longer):
    assert same(run.model.state_dict(), longer.model.state_dict())
    (record,) = longer.extensions
    core = run.model.joined("audio", WIDTH, ExtendConfig().seed)
    assert record["frozen_sha256"] == dict.fromkeys(("before", "after"), frozen_sha256(core))
    assert {name.split(".")[1] for name, p in core.named_parameters() if p.requires_grad} == {"audio"}


def test_the_hash_sees_one_bit_and_no_trained_parameter(run):
    core = run.model.joined("audio", WIDTH, ExtendConfig().seed)
    before = frozen_sha256(core)
    with torch.no_grad():
        core.inputs["audio"].weight.add_(1)
    assert frozen_sha256(core) == before
    core.prompt.data.view(torch.int32)[0, 0] ^= 1
    assert frozen_sha256(core) != before


def test_image_and_text_score_the_same_bits(run, longer, cache):
    assert evaluate(longer, cache) == evaluate(run, cache)


def test_the_given_run_is_left_alone(run, cache):
    weights = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    widths, encoders = dict(run.widths), dict(run.encoders)
    extend(run, cache, **FAST)
    assert run.model.state_dict().keys() == weights.keys()
    assert same(weights, run.model.state_dict())
    assert all(parameter.requires_grad for parameter in run.model.parameters())
    assert (run.widths, run.encoders, run.extensions) == (widths, encoders, [])


def test_a_core_that_moves_while_the_newcomer_trains_is_refused(run, cache, monkeypatch):
    def nudged(model, *rest):
        history = loop.optimise(model, *rest)
        model.prompt.data.view(torch.int32)[0, 0] ^= 1
        return history

    monkeypatch.setattr(extending, "optimise", nudged)
    with pytest.raises(RunError, match="audio changed the trained core; expected the same bits"):
        extend(run, cache, **FAST)


def test_a_core_that_scores_otherwise_is_refused_and_not_saved(run, cache, monkeypatch, tmp_path):
    """Whatever the hash overlooks: here the core changes before it is first hashed."""
    joined = type(run.model).joined

    def nudged(model, *told):
        longer = joined(model, *told)
        longer.prompt.data.add_(0.3)
        return longer

    monkeypatch.setattr(type(run.model), "joined", nudged)
    with pytest.raises(RunError, match=r"audio changed the trained core; .* nothing was saved"):
        extend_and_check(run, cache, ExtendConfig(**FAST), tmp_path / "longer")
    assert not (tmp_path / "longer").exists()


# --- the newcomer learns, from the right rows ---


def test_the_newcomer_finds_its_class_names_without_having_seen_a_text(longer, cache):
    found = evaluate(longer, cache, "audio/test")
    assert found["semantic"]["accuracy"] > 4 * found["chance"]
    assert found["zero_shot"] is None, "a width of its own shares no space before it joins"


def test_partners_are_of_the_class_and_from_the_runs_draw_alone(run, cache, monkeypatch):
    seen = []

    def spy(model, pairs, *rest):
        seen.append(pairs)
        return loop.optimise(model, pairs, *rest)

    monkeypatch.setattr(extending, "optimise", spy)
    record = extend(run, cache, **FAST).extensions[0]
    (pairs,) = seen
    images = cache.table("image/train")
    drawn = images.draw(SHOTS, DRAW_SEED)
    allowed = {
        row.numpy().tobytes(): int(images.labels[i])
        for i in drawn
        for row in unit_rows(images, np.array([i]))[0][0]
    }
    classes = np.array(
        [allowed[row.numpy().tobytes()] for row in pairs.pool]
    )  # KeyError: from outside the draw
    assert len(pairs.pool) == len(drawn) * clip_like.VIEWS
    met = set()
    for epoch in range(40):
        partners = pairs.partners(torch.Generator().manual_seed(epoch)).numpy()
        assert (classes[partners] == pairs.labels.numpy()).all()
        met |= set(partners.tolist())
    assert met == set(range(len(pairs.pool))), "every image of the pool is a partner sooner or later"
    assert record["pool"] == run.draw


def test_a_draw_or_the_first_rows_of_each_class(run, cache):
    table = cache.table("audio/train")
    for select, rows in (
        ("draw", table.draw(2, 3)),
        ("first", np.concatenate([np.flatnonzero(table.labels == c)[:2] for c in range(11)])),
    ):
        record = extend(run, cache, shots=2, draw_seed=3, select=select, **FAST).extensions[0]
        assert record["draw"]["sha256"] == caches.drawn_sha256(table.ids, rows)
        assert record["draw"]["rows"] == 2 * clip_like.CLASSES


@pytest.mark.parametrize(("per_class", "classes", "sizes"), [(3, 9, [27]), (5, 7, [32, 3])])
def test_a_short_last_batch_is_trained_on(run, path, tmp_path, monkeypatch, per_class, classes, sizes):
    """ESC-27 at one shot has 27 clips and batches of 32."""
    clip_like.build(tmp_path / "cache", per_class=7)
    add_newcomer(tmp_path / "cache", per_class=per_class, classes=classes)
    steps, real = [], step.update

    def spy(loss, optimizer, batch, *rest):
        steps.append({len(side) for side in batch.values()})
        return real(loss, optimizer, batch, *rest)

    monkeypatch.setattr(step, "update", spy)
    extend(run, tmp_path / "cache", **FAST)
    assert steps == [{size} for size in sizes] * FAST["epochs"]


@pytest.mark.parametrize("width", [clip_like.DIM, 5])
def test_a_linear_map_only_where_the_width_differs(run, tmp_path, width):
    clip_like.build(tmp_path / "cache", per_class=7)
    add_newcomer(tmp_path / "cache", width=width)
    model = extend(run, tmp_path / "cache", **FAST).model
    assert ("audio" in model.inputs) == (width != clip_like.DIM)
    assert model.embed("audio", torch.ones(2, width)).shape == (2, clip_like.DIM)


def test_the_same_bits_twice_and_others_with_another_seed(run, cache):
    a, b, c = (extend(run, cache, seed=seed, **FAST).model.state_dict() for seed in (5, 5, 6))
    assert same(a, b)
    assert not torch.equal(a["inputs.audio.weight"], c["inputs.audio.weight"])


# --- not special to sound ---


def test_five_modalities_join_one_after_another(run, path, tmp_path):
    chain, before = run, run.model.state_dict()
    clip_like.build(tmp_path / "cache", per_class=7)
    for seed, modality in enumerate(("audio", "depth", "touch"), start=1):
        add_newcomer(tmp_path / "cache", modality, width=WIDTH + seed, seed=seed)
        chain = extend(chain, tmp_path / "cache", modality=modality, **FAST)
        assert same(before, chain.model.state_dict())
        before = chain.model.state_dict()
    assert list(chain.widths) == ["image", "text", "audio", "depth", "touch"]
    assert [e["config"]["modality"] for e in chain.extensions] == ["audio", "depth", "touch"]
    assert all(len(set(e["frozen_sha256"].values())) == 1 for e in chain.extensions)


def test_a_run_folder_keeps_all_of_it(longer, cache, tmp_path):
    loaded = checkpoint.load(longer.save(tmp_path / "run"))
    for name in ("extensions", "widths", "encoders", "draw", "tables"):
        assert getattr(loaded, name) == getattr(longer, name), name
    x = cache.table("audio/test").read()[:, 0]
    assert np.array_equal(loaded.embed("audio", x), longer.embed("audio", x))


def test_replace_trains_anew_and_leaves_one_record(longer, cache):
    again = extend(longer, cache, seed=9, replace=True, **FAST)
    assert [e["config"]["seed"] for e in again.extensions] == [9]
    assert not torch.equal(
        again.model.state_dict()["inputs.audio.weight"], longer.model.state_dict()["inputs.audio.weight"]
    )
    assert again.extensions[0]["frozen_sha256"]["before"] == longer.extensions[0]["frozen_sha256"]["before"]


# --- one line for a mistake ---


def test_joining_twice_needs_replace(longer, cache):
    with pytest.raises(RunError, match=r"the run has audio already; type --replace to train it anew"):
        extend(longer, cache, **FAST)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"modality": "text"},
            "text is part of the trained core and cannot join it; choose another --modality",
        ),
        ({"modality": "image"}, "image is part of the trained core"),
        ({"anchor": "depth"}, "the run has no depth to pair audio with; it knows image, text; .*--anchor"),
    ],
)
def test_what_cannot_join(run, cache, settings, said):
    with pytest.raises(RunError, match=said):
        extend(run, cache, **settings, **FAST)


def test_a_method_of_fixed_modalities_is_refused(run, cache):
    fixed = dataclasses.replace(run, model=torch.nn.Linear(2, 2))
    with pytest.raises(RunError, match=r"method 'spaner' takes no further modality; train a run with"):
        extend(fixed, cache, **FAST)


def test_images_of_another_encoder_are_refused(run, tmp_path):
    add_newcomer(tmp_path / "cache")
    features, labels = clip_like.images(7, seed=1)
    with caches.create(tmp_path / "cache", "synthetic", [f"class {i}" for i in range(11)]) as cache:
        other = clip_like.spec("image", weights_sha256="ab")
        cache.add("image", "train", features.astype(np.float32), labels, encoder=other)
    with pytest.raises(Mismatch, match=r"image/train .*weights_sha256: run '', cache 'ab'.*run's encoder"):
        extend(run, tmp_path / "cache", **FAST)


def test_a_class_without_images_is_named(run, tmp_path):
    add_newcomer(tmp_path / "cache")
    features, labels = clip_like.images(7, seed=1)
    keep = ~np.isin(labels, (4, 8))
    with caches.create(tmp_path / "cache", "synthetic", [f"class {i}" for i in range(11)]) as cache:
        images = features[keep].astype(np.float32)
        cache.add("image", "train", images, labels[keep], encoder=clip_like.spec("image"))
    said = (
        r"class 'class 4' has audio and no image in the run's few-shot pool \(2 such classes\); expected at "
        "least one; extract image/train"
    )
    with pytest.raises(CacheError, match=said):
        extend(run, tmp_path / "cache", **FAST)


def test_a_missing_table_and_a_setting_without_meaning(run, cache):
    with pytest.raises(CacheError, match=r"no table audio/fold1, only .*--modality audio"):
        extend(run, cache, split="fold1", **FAST)
    with pytest.raises(RecipeError, match=r"select=first takes the first K rows .* use shots=4"):
        ExtendConfig(select="first")


# --- the command ---


def test_the_command_prints_the_hash_and_saves_a_run(cli, run, path, tmp_path):
    run.save(tmp_path / "run")
    done = cli("extend", "--run", tmp_path / "run", "--cache", path, "--epochs", 2)
    assert done.status == 0, done.err
    (record,) = checkpoint.load(tmp_path / "run+audio").extensions
    assert f"SHA-256 {record['frozen_sha256']['after'][:12]} before and after" in done.out
    assert checkpoint.load(tmp_path / "run").extensions == []
    again = cli("extend", "--run", tmp_path / "run+audio", "--cache", path, "--epochs", 2)
    assert again.status == 1
    assert "--replace" in again.err
