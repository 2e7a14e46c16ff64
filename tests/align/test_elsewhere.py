"""What a GPU would refuse, found without one: every method fitted and scored on a second device.

`second_device` is this machine's memory under another name, whose tensors do not mix with the CPU's. Like
Apple's MPS it may lack float64, which is where fitting must do without.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clip_like
import pictured
import pytest
import test_captioned
import test_extend
import test_method_contract as contract
import torch
from test_step import CASES, Watch, material

from spaner import cache as caches
from spaner.align.methods import step
from spaner.align.methods.descent import descend
from spaner.align.methods.method import METHODS
from spaner.align.score import matching
from spaner.align.score.evaluate import Frozen, evaluate, matches, zero_shot
from spaner.align.train.config import TrainConfig
from spaner.align.train.extend import extend
from spaner.align.train.fit import fit, train
from spaner.align.train.stack import fit_stack
from spaner.align.train.task import task
from spaner.cli.towers import Towers
from tests import second_device
from tests.second_device import SECOND

SHORT = {"epochs": 2, "iterations": 5}
TOWERS = {name for name in METHODS if contract.needs(name, "needs_tower")}


@pytest.fixture(autouse=True)
def in_one_thread() -> Iterator[None]:
    """A backward pass beside Python's kernels would need its lock from a thread of its own."""
    with torch.autograd.set_multithreading_enabled(False):
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> caches.Cache:
    return caches.open(clip_like.build(tmp_path_factory.mktemp("second") / "cache", per_class=5))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[caches.Cache, Towers]:
    folder = tmp_path_factory.mktemp("digits")
    return caches.open(pictured.digits(folder)), Towers()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[caches.Cache, Towers]:
    folder = tmp_path_factory.mktemp("pictures")
    path = pictured.build(folder)
    pictured.tokens(folder, 0)
    return caches.open(path), pictured.towers(folder)


def short(method: str, **changes: Any) -> dict[str, Any]:
    told = contract.settings(method)
    return told | {name: value for name, value in SHORT.items() if name in told} | changes


def both(fitted: Callable[[str], Any]) -> tuple[Any, Any]:
    """The run of this device, and that of one without float64."""
    with second_device.without_float64():
        there = fitted("elsewhere")
    return fitted("cpu"), there


def assert_same_model(here: Any, there: Any) -> None:
    """The same numbers, and all of them on the host, as a run is kept."""
    states = here.model.state(), there.model.state()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert states[1][name].device.type == "cpu"
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-4, atol=1e-5)


def assert_same_scores(run: Any, cache: caches.Cache) -> None:
    """Scored there and here; the run itself stays where it was."""
    here, there = (evaluate(run, cache, device=name) for name in ("cpu", "elsewhere"))
    for kind in ("text", "semantic"):
        assert there[kind] == (None if here[kind] is None else pytest.approx(here[kind], abs=1e-5))
    assert run.device.type == "cpu"
    assert all(tensor.device.type == "cpu" for tensor in run.model.state().values())


@pytest.mark.parametrize("method", sorted(METHODS.keys() - TOWERS))
def test_a_method_is_fitted_and_scored_there(method: str, cache: caches.Cache) -> None:
    here, there = both(lambda device: fit(cache, **short(method, device=device)))
    assert_same_model(here, there)
    assert_same_scores(there, cache)


@pytest.mark.parametrize(
    "method", ["campe", *(pytest.param(m, marks=pytest.mark.slow) for m in ("coop", "cocoop"))]
)
def test_a_method_with_a_text_tower(method: str, digits: tuple[caches.Cache, Towers]) -> None:
    cache, towers = digits
    told = short(method, shots=1)
    both_runs = both(lambda d: fit(cache, **told | {"device": d}, **towers(cache.path, method, d)))
    assert_same_model(*both_runs)


@pytest.mark.parametrize("method", ["maple", pytest.param("mma", marks=pytest.mark.slow)])
def test_a_method_with_both_towers(method: str, photos: tuple[caches.Cache, Towers]) -> None:
    cache, towers = photos
    told = short(method)
    runs = both(lambda d: fit(cache, **told | {"device": d}, **towers(cache.path, method, d)))
    assert_same_model(*runs)
    assert matches(runs[1], cache, "image/test")["text"].credit.mean() >= 0  # through the tower there


def test_captions_are_learned_there(tmp_path: Path) -> None:
    file = test_captioned.write_list(tmp_path, "list.csv", ("path", "label", "split", "said", "denied"))
    test_captioned.extracted(tmp_path, file, negated_column=("denied",), cache=tmp_path / "cache")
    runs = both(
        lambda device: test_captioned.fitted(tmp_path, "campe_lite", device=device, epochs=1, neg=1.0)
    )
    assert_same_model(*runs)
    here, there = (evaluate(runs[1], tmp_path / "cache", device=name) for name in ("cpu", "elsewhere"))
    for way in ("image_to_caption", "caption_to_image"):
        assert there["captions"][way] == pytest.approx(here["captions"][way], abs=1e-5)


@pytest.mark.parametrize("prior", ["gda", "kernel", "gda+kernel"])
def test_a_prior_joins_there(prior: str, cache: caches.Cache) -> None:
    told = short("spaner", prior=prior, prior_weight=0.5, kernel_weight=0.5, blend=0.5)
    here, there = both(lambda device: fit(cache, **{**told, "device": device}))
    assert_same_model(here, there)
    assert_same_scores(there, cache)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_kind_of_step_takes_nothing_from_the_host(case: dict[str, Any]) -> None:
    """Every operation of a step is looked at: none crosses from one device to the other, none waits."""
    found = []
    for device in ("cpu", "elsewhere"):
        model, batch, labels = material(case, device)
        optimizer = step.adamw(model.parameters(), 1e-3, 0.01, torch.device(device))
        told = model.loss, optimizer, batch, labels, torch.float32
        step.update(*told)  # makes AdamW's state
        with Watch() as watch:
            step.update(*told)
        assert len(watch.operations) > 300
        found.append({name: tensor.cpu() for name, tensor in model.state_dict().items()})
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_cells_are_trained_there_as_one(cache: caches.Cache) -> None:
    told = {"heads": 4, "epochs": 1, "batch_size": 16}
    runs = {}
    for device in ("cpu", "elsewhere"):
        configs = [TrainConfig(**told, seed=seed, lam=0.5 * seed, device=device) for seed in (1, 2)]
        runs[device] = fit_stack(task(cache, configs[0]), configs)
    for here, there in zip(runs["cpu"], runs["elsewhere"], strict=True):
        assert_same_model(here, there)


def test_a_modality_joins_there(cache: caches.Cache) -> None:
    test_extend.add_newcomer(cache.path)
    run = fit(cache.path, heads=4, epochs=1, device="cpu")
    runs = [
        extend(run, cache.path, modality="audio", shots=3, epochs=1, device=device)
        for device in ("cpu", "elsewhere")
    ]
    assert_same_model(*runs)


@pytest.mark.parametrize(("method", "call"), [("spaner", "match"), ("gda", "match_scores")])
def test_scores_are_compared_where_they_are_made(
    method: str, call: str, cache: caches.Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On the device that is asked for, and by default on that of the training."""
    own, seen = getattr(matching, call), []

    def spied(rows: Any, *others: Any, **told: Any) -> Any:
        seen.append(rows.device.type)
        return own(rows, *others, **told)

    monkeypatch.setattr(matching, call, spied)
    run = fit(cache, **short(method))
    for device in ("elsewhere", "cpu"):
        evaluate(run, cache, device=device, frozen={"text": None})
        assert set(seen) == {device}
        seen.clear()
    train(cache, TrainConfig(**short(method, device="elsewhere")), tmp_path / "run")
    assert "elsewhere" in seen


def test_the_frozen_encoder_is_scored_there(cache: caches.Cache) -> None:
    here, there = (zero_shot(cache, device=device) for device in ("cpu", "elsewhere"))
    assert here is not None
    assert there is not None
    assert there["text"] == pytest.approx(here["text"], abs=1e-6)
    assert Frozen(SECOND).embed("image", torch.ones(2, 3)).device == SECOND


def test_tensors_of_both_do_not_mix() -> None:
    """What the tests above stand on."""
    there, rows = torch.ones(3, 4, device=SECOND), torch.tensor([0, 2])
    for wrong in (
        lambda: there + torch.ones(3, 4),
        lambda: there[rows],
        lambda: torch.cat([there, torch.ones(1, 4)]),
        lambda: torch.nn.Linear(4, 2)(there),
    ):
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            wrong()
    with pytest.raises(RuntimeError, match="numpy"):
        there.numpy()
    with pytest.raises(TypeError, match="float64"), second_device.without_float64():
        there.double()
    assert (there.double() * 2).cpu().sum() == 24


def test_a_loss_that_forgets_the_device_is_seen() -> None:
    weight = torch.ones(4).to(SECOND).requires_grad_()
    targets = torch.arange(4.0)
    losses = descend(
        torch.optim.SGD([weight]), [0.1], [torch.arange(4)], lambda r: (weight - targets[r]).sum()
    )
    with pytest.raises(RuntimeError, match="one device"):
        list(losses)
