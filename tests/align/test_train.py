"""Training: it learns, it repeats itself bit for bit, it obeys its settings, and it cannot see a test row."""

import shutil
from typing import Any

import clip_like
import numpy as np
import pytest
import torch

from spaner import cache as caches
from spaner.align.methods import loop, step
from spaner.align.methods import task as data
from spaner.align.score.evaluate import evaluate
from spaner.align.train.config import TrainConfig
from spaner.align.train.fit import fit
from spaner.align.train.task import task as load
from spaner.device import device_of
from spaner.errors import RecipeError, RunError

QUICK: dict[str, Any] = {"heads": 4, "epochs": 2, "batch_size": 64}


def changed(settings: dict[str, Any]) -> dict[str, Any]:
    return QUICK | settings


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return caches.open(clip_like.build(tmp_path_factory.mktemp("train") / "cache"))


@pytest.fixture(scope="module")
def quick_run(cache):
    return fit(cache, **QUICK)


def weights(run):
    return torch.cat([p.flatten() for p in run.model.state_dict().values()])


@pytest.mark.parametrize("aligner", ["attention", "hyena"])
def test_learns_more_than_the_frozen_encoder_knows(cache, aligner):
    run = fit(cache, heads=4, batch_size=64, lr=3e-3, aligner=aligner)
    scores = evaluate(run, cache)
    for kind in ("text", "semantic"):
        ours, frozen = scores[kind], scores["zero_shot"][kind]
        assert ours["accuracy"] > frozen["accuracy"] + 0.15
        assert ours["positive_cosine"] > frozen["positive_cosine"] + 0.1


def test_anchored_recipe_learns_and_keeps_the_frozen_space(cache):
    run = fit(cache, recipe="anchored", heads=4, batch_size=64, epochs=30)
    scores = evaluate(run, cache)
    assert scores["text"]["accuracy"] > scores["zero_shot"]["text"]["accuracy"] + 0.1
    assert run.config.blend == 0.5


def test_overfits_eight_points():
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(8, 1, 24, generator=generator), dim=2)
    text = torch.nn.functional.normalize(torch.randn(8, 1, 24, generator=generator), dim=2)
    spec = clip_like.spec("image")
    task = data.Task(
        dataset="eight",
        class_names=tuple("abcdefgh"),
        modality="image",
        x=x,
        labels=torch.arange(8),
        text=text,
        templates="mined",
        logit_scale=30.0,
        draw=data.Draw(None, None, 8, 0, ""),
        encoders={"image": spec, "text": clip_like.spec("text")},
        tables={},
    )
    run = fit(task, heads=4, epochs=150, lr=3e-3)
    assert run.history[0]["loss"] > 4
    assert run.history[-1]["loss"] < 0.01
    found = run.embed("image", x[:, 0].numpy()) @ run.embed("text", text[:, 0].numpy()).T
    assert found.argmax(1).tolist() == list(range(8))


def test_same_seed_same_bits(cache, quick_run):
    torch.manual_seed(99)
    again = fit(cache.path, TrainConfig(**QUICK))
    assert torch.equal(weights(quick_run), weights(again))
    assert quick_run.history == again.history
    assert not torch.equal(weights(quick_run), weights(fit(cache, seed=2, **QUICK)))


def test_global_random_state_is_left_alone(cache):
    state = torch.get_rng_state()
    fit(cache, **QUICK)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "setting",
    [
        {"shots": 3},
        {"shots": 3, "draw_seed": 2},
        {"templates": "vanilla"},
        {"prompt_length": 3},
        {"prompt_std": 0.5},
        {"aligner": "hyena"},
        {"heads": 3},
        {"out_dim": 12},
        {"attend": "prompt"},
        {"pool": "input"},
        {"project": "input"},
        {"init": "identity"},
        {"lam": 0.1},
        {"direction": "image"},
        {"direction": "text"},
        {"logit_scale": 10},
        {"targets": "class"},
        {"epochs": 3},
        {"batch_size": 32},
        {"lr": 1e-4},
        {"weight_decay": 0.5},
        {"precision": "bfloat16"},
    ],
    ids=str,
)
def test_every_setting_changes_config_and_weights(cache, quick_run, setting):
    run = fit(cache, **QUICK | setting)
    assert all(run.config.to_json()[name] == value for name, value in setting.items())
    assert run.config != quick_run.config
    assert run.name != quick_run.name
    assert weights(run).shape != weights(quick_run).shape or not torch.equal(weights(run), weights(quick_run))


def test_blend_changes_the_embedding_and_not_the_weights(cache, quick_run):
    run, x = fit(cache, blend=0.5, **QUICK), cache.table("image/test").read()[:, 0]
    assert torch.equal(weights(run), weights(quick_run))
    assert not np.allclose(run.embed("image", x), quick_run.embed("image", x))


@pytest.mark.parametrize("damage", ["deleted", "overwritten"])
def test_test_rows_cannot_reach_the_weights(cache, quick_run, tmp_path, damage):
    path = shutil.copytree(cache.path, tmp_path / "cache")
    shutil.rmtree(path / "image" / "test")
    if damage == "overwritten":
        with caches.create(path, "synthetic", cache.class_names) as opened:
            features, labels = clip_like.images(3, seed=8)
            opened.add("image", "test", features * 7, labels, encoder="other")
    assert torch.equal(weights(fit(path, **QUICK)), weights(quick_run))


def test_history_and_progress(cache):
    calls = []
    run = fit(cache, TrainConfig(**QUICK), lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(1, 2), (2, 2)]
    assert calls[-1][2] == f"loss {run.history[-1]['loss']:.4f}"
    assert list(run.history[0]) == ["epoch", "loss", "align", "ca", "collision_rate", "lr"]
    assert run.history[0]["loss"] == pytest.approx(run.history[0]["align"] + run.history[0]["ca"], rel=1e-5)
    assert run.seconds > 0


@pytest.mark.parametrize(
    ("samples", "bounds"),
    [
        (8, [(0, 4), (4, 8)]),
        (10, [(0, 4), (4, 8), (8, 10)]),
        (9, [(0, 4), (4, 9)]),
        (3, [(0, 3)]),
        (5, [(0, 5)]),
    ],
)
def test_batches_cover_everything_and_none_has_one_sample(samples, bounds):
    assert loop.batch_bounds(samples, 4) == bounds


def test_an_epoch_shows_every_view_once_with_a_text_of_its_class(cache, monkeypatch):
    seen = []

    def watch(loss, optimizer, batch, labels, precision):
        seen.append((batch["image"], batch["text"], labels))
        return update(loss, optimizer, batch, labels, precision)

    update = step.update
    monkeypatch.setattr(step, "update", watch)
    fit(cache, **changed({"epochs": 1}))
    task = load(cache, TrainConfig())
    x, text, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
    rows = (task.x.flatten(0, 1) @ x.T).argmax(0)
    assert sorted(rows.tolist()) == list(range(2 * len(task.x)))
    assert torch.equal(labels, task.labels.repeat_interleave(2)[rows])
    templates = (task.text[labels] * text[:, None]).sum(2)
    assert torch.allclose(templates.max(1).values, torch.ones(len(labels)))
    assert templates.argmax(1).unique().tolist() == list(range(clip_like.TEMPLATES))


def test_learning_rate_falls_to_zero_along_a_cosine():
    rates = list(loop._cosine(0.5, 4))
    assert rates == pytest.approx([0.5, 0.5 * 0.853553, 0.25, 0.5 * 0.146447], abs=1e-6)


def test_a_single_sample():
    with pytest.raises(RunError, match=r"training needs at least 2 samples, found 1; draw more shots"):
        loop.batch_bounds(1, 4)


def test_loss_that_is_not_finite(cache):
    with pytest.raises(
        RunError, match=r"the loss is (nan|inf) in epoch \d of 2; expected .*; lower lr \(now 1e\+30\)"
    ):
        fit(cache, **changed({"lr": 1e30}))


def test_config_and_overrides_together(cache):
    with pytest.raises(RecipeError, match=r"fit: got config and epochs; put every setting into the config"):
        fit(cache, TrainConfig(), epochs=3)


def test_heads_that_do_not_fit_the_cache(cache):
    with pytest.raises(
        RecipeError, match=r"heads is 5 and does not divide the embedding width 24; use heads=4"
    ):
        fit(cache, **changed({"heads": 5}))


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta"])
def test_device_that_is_not_there(name):
    with pytest.raises(RecipeError, match=rf"--device {name}: torch cannot use it here; expected auto, cpu"):
        device_of(name)
