"""Cells trained as one tensor program: each must be the run it would have been alone."""

import dataclasses
from typing import Any

import clip_like
import pytest
import torch

from spaner import cache as caches
from spaner.align.methods.closed_form import closed_form
from spaner.align.methods.loop import optimise, pairs_of
from spaner.align.methods.spaner import Spaner
from spaner.align.score.evaluate import evaluate
from spaner.align.train import stack
from spaner.align.train.config import TrainConfig
from spaner.align.train.fit import fit
from spaner.align.train.task import scale_of, task
from spaner.errors import RecipeError

CPU = torch.device("cpu")
SAME: dict[str, Any] = {"heads": 4, "epochs": 2, "batch_size": 64, "prompt_length": 3, "device": "cpu"}
DIFFERENT: list[dict[str, Any]] = [
    {"seed": 1},
    {"seed": 2, "lam": 0.1},
    {"seed": 2, "lr": 3e-3, "weight_decay": 0.5},
    {"logit_scale": 10.0, "blend": 0.5},
]


def configs(**settings: Any) -> list[TrainConfig]:
    return [TrainConfig(**SAME | settings | each) for each in DIFFERENT]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return caches.open(clip_like.build(tmp_path_factory.mktemp("stack") / "cache", per_class=7))


@pytest.fixture(scope="module")
def data(cache):
    return task(cache, TrainConfig())


def weights(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"prompt_length": 1, "init": "identity", "targets": "class"},
        {"attend": "prompt", "direction": "image"},
        {"pool": "input", "project": "input"},
        {"aligner": "hyena"},
    ],
    ids=str,
)
def test_every_cell_of_a_stack_is_its_single_run_in_double_precision(data, settings):
    """Weights, not only losses: after ten steps of AdamW each with its own rate, decay, order and start."""
    asked = configs(**settings)
    material = pairs_of(data)
    material = dataclasses.replace(material, x=material.x.double(), pool=material.pool.double())
    sets = [
        [
            Spaner.build(
                c, dataclasses.replace(data, logit_scale=scale_of(c, data.encoders)).facts()
            ).double()
            for c in asked
        ]
        for _ in range(2)
    ]
    together = stack.optimise_stack(sets[0], material, asked, CPU)
    for model, single, config, history in zip(*sets, asked, together, strict=True):
        alone = optimise(single, material, config, CPU)
        assert history is not None
        assert [list(entry) for entry in history] == [list(entry) for entry in alone]
        for a, b in zip(history, alone, strict=True):
            assert a == pytest.approx(b, rel=1e-9)
        assert (weights(model) - weights(single)).abs().max() < 1e-8
    starts = [weights(m) for m in sets[0]]
    assert all(not torch.allclose(starts[0], other, atol=1e-4) for other in starts[1:])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_metrics_and_facts_of_a_stacked_cell_are_those_of_its_single_run(cache, data, precision):
    asked = configs(precision=precision, epochs=3)
    for config, run in zip(asked, stack.fit_stack(data, asked), strict=True):
        assert run is not None
        alone = fit(cache, config)
        left, right = evaluate(run, cache), evaluate(alone, cache)
        loose = 1e-4 if precision == "float32" else 1e-2
        for kind in ("text", "semantic"):
            assert left[kind]["accuracy"] == pytest.approx(right[kind]["accuracy"], abs=100 * loose)
            assert left[kind]["positive_cosine"] == pytest.approx(right[kind]["positive_cosine"], abs=loose)
        unlike = ("seconds", "final")
        assert {k: v for k, v in run.facts().items() if k not in unlike} == {
            k: v for k, v in alone.facts().items() if k not in unlike
        }
        assert run.history[-1]["loss"] == pytest.approx(alone.history[-1]["loss"], rel=10 * loose)
        assert run.name == alone.name


def test_a_cell_whose_loss_is_not_finite_drops_out_alone(data):
    quick = TrainConfig(**SAME)
    healthy, broken, other = stack.fit_stack(data, [quick, quick.replace(lr=1e30), quick.replace(seed=2)])
    assert broken is None
    for run, config in ((healthy, quick), (other, quick.replace(seed=2))):
        assert run is not None
        (single,) = stack.fit_stack(data, [config])
        assert single is not None
        assert torch.isfinite(weights(run.model)).all()
        assert run.history[-1]["loss"] == pytest.approx(single.history[-1]["loss"], rel=1e-5)


def test_shape_tells_who_can_be_trained_as_one():
    base = TrainConfig(**SAME)
    assert len({stack.shape(config) for config in configs()}) == 1
    for other in ({"prompt_length": 2}, {"epochs": 3}, {"templates": "vanilla"}, {"recipe": "anchored"}):
        assert stack.shape(base.replace(**other)) != stack.shape(base)


def test_a_configuration_that_cannot_be_built_is_refused(data):
    with pytest.raises(RecipeError, match="heads is 5"):
        stack.fit_stack(data, configs(heads=5))


@pytest.mark.parametrize("prompt_length", [1, 5, 64])
@pytest.mark.parametrize("shared", ["prompt", "sample", "nothing"])
def test_models_side_by_side_equal_each_alone_in_values_and_gradients(prompt_length, shared):
    """What `torch.vmap` makes of the closed form, against a loop over the models."""
    cells, rows, heads, dim = 3, 7, 2, 12
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, rows, dim), (1, prompt_length, dim), (1, 3 * dim, dim), (1, 3 * dim), (1, dim, dim)]
    constant = {"sample": 0, "prompt": 1, "nothing": None}[shared]
    inputs = [
        torch.randn(
            shape if i == constant else (cells, *shape), generator=generator, dtype=torch.float64
        ).requires_grad_()
        for i, shape in enumerate(shapes)
    ]
    dims = tuple(None if i == constant else 0 for i in range(len(shapes)))

    def attend(*each: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, prompt, in_weight, in_bias, out_weight = each
        return closed_form(x, prompt, in_weight, in_bias, out_weight, heads, "all")

    whole = torch.vmap(attend, in_dims=dims)(*inputs)
    alone = [
        attend(*(x if d is None else x[k] for x, d in zip(inputs, dims, strict=True))) for k in range(cells)
    ]
    apart = [torch.stack(each) for each in zip(*alone, strict=True)]
    weight = torch.randn(whole[0].shape, generator=generator, dtype=torch.float64)
    grads = [
        torch.autograd.grad((out[0] * weight + out[1] * weight.sin()).sum(), inputs) for out in (whole, apart)
    ]
    for a, b in zip((*whole, *grads[0]), (*apart, *grads[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
