"""A training step waits for nothing, its shapes are two, and recorded or compiled it is the plain step."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clip_like
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spaner import cache as caches
from spaner.align.methods import step
from spaner.align.methods.spaner import Spaner
from spaner.align.train import stack
from spaner.align.train.config import TrainConfig
from spaner.align.train.fit import fit
from spaner.align.train.task import task
from spaner.errors import RecipeError

CPU = torch.device("cpu")
DIM, BATCH = 24, 12
WAITING = {
    "_local_scalar_dense",  # .item(), float(), bool(), int(), tolist() of one number
    "_linalg_check_errors",
    "bincount",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "unique_consecutive",
    "unique_dim",
    "_unique2",
}
"""Operations that read a number back, or whose result has as many rows as the numbers say."""


class Watch(TorchDispatchMode):
    """Refuses what would make the host wait for a device, and what crosses from one to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)]
        masks = [x for x in tensors[1:] if x.dtype is torch.bool] if name.startswith("index") else []
        assert name not in WAITING, f"{name} waits for the device"
        assert not masks, f"{name} by a mask waits for the device"
        found = func(*args, **(kwargs or {}))
        kinds = {x.device.type for x in [*tensors, *tree_leaves(found)] if isinstance(x, Tensor)}
        assert len(kinds) < 2, f"{name} crosses from one device to another"
        self.operations.append(name)
        return found


Case = dict[str, Any]
CASES: dict[str, Case] = {
    "plain": {},
    "bfloat16": {"precision": torch.bfloat16},
    "by class": {"targets": "class", "attend": "prompt", "pool": "input"},
    "hyena": {"aligner": "hyena"},
    "three": {"modalities": ("image", "text", "audio")},
    "missing rows": {"modalities": ("image", "text", "audio"), "pair": "id"},
    "other losses": {"modalities": ("image", "text", "audio"), "objective": "pairs,gram,symile,modgap"},
}


def material(case: Case, device: str = "cpu") -> tuple[Spaner, dict[str, Tensor], Tensor]:
    """A model, a batch and its labels; of a further modality every third row is missing."""
    own = {name: value for name, value in case.items() if name not in ("modalities", "precision")}
    widths = dict.fromkeys(case.get("modalities", ("image", "text")), DIM)
    model = Spaner(widths, logit_scale=50.0, heads=4, **own)
    generator = torch.Generator().manual_seed(3)
    batch = {name: torch.randn(BATCH, DIM, generator=generator) for name in widths}
    if own.get("pair") == "id":
        batch["audio"][::3] = 0
    labels = torch.arange(BATCH) % 5
    return model.to(device), {name: x.to(device) for name, x in batch.items()}, labels.to(device)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_step_reads_no_number_back(case: Case) -> None:
    """Forward, backward and AdamW, every operation looked at."""
    model, batch, labels = material(case)
    optimizer = step.adamw(model.parameters(), 1e-3, 0.01, CPU)
    told = model.loss, optimizer, batch, labels, case.get("precision", torch.float32)
    step.update(*told)  # makes AdamW's state, and tries a product once a process
    with Watch() as watch:
        step.update(*told)
    assert "_fused_adamw_" in watch.operations
    assert len(watch.operations) > 300


def test_stacked_models_read_no_number_back() -> None:
    configs = [TrainConfig(heads=4, seed=seed, lam=0.5 * seed) for seed in (1, 2)]
    models = [
        Spaner(dict.fromkeys(("image", "text"), DIM), logit_scale=50.0, heads=4, seed=s) for s in (1, 2)
    ]
    program = stack._Program(models, configs, torch.float32)
    batch = {name: torch.randn(2, BATCH, DIM) for name in ("image", "text")}
    labels = torch.arange(BATCH).expand(2, -1).contiguous()
    program.step(0.5, batch, labels)
    with Watch() as watch:
        program.step(0.5, batch, labels)
    assert "_fused_adamw_" in watch.operations


@pytest.mark.parametrize(
    "slip", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: bool((x > 0).any())]
)
def test_a_slip_is_seen(slip: Callable[[Tensor], Any]) -> None:
    model, batch, labels = material({})
    plain = model.loss

    def slipping(rows: dict[str, Tensor], classes: Tensor) -> dict[str, Tensor]:
        slip(rows["image"])
        return plain(rows, classes)

    optimizer = step.adamw(model.parameters(), 1e-3, 0.01, CPU)
    with Watch(), pytest.raises(AssertionError, match="waits for the device"):
        step.update(slipping, optimizer, batch, labels, torch.float32)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_like.build(tmp_path_factory.mktemp("step") / "cache")


def test_the_steps_of_a_training_have_two_shapes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    real = step.update

    def spy(loss: Any, optimizer: Any, batch: dict[str, Tensor], labels: Tensor, *rest: Any) -> Any:
        seen.append((*(tuple(x.shape) for x in batch.values()), tuple(labels.shape)))
        return real(loss, optimizer, batch, labels, *rest)

    monkeypatch.setattr(step, "update", spy)
    fit(caches.open(path), heads=4, epochs=3, batch_size=100, device="cpu")
    epoch = seen[: len(seen) // 3]
    assert seen == 3 * epoch
    assert set(epoch[:-1]) == {epoch[0]} != {epoch[-1]}  # all alike, but the short one at the end


def trained(compile: Callable[..., Any] | None, precision: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Weights and losses after some steps, the last of a shorter batch. Not by AdamW, which makes whole steps
    of slopes that are zero but for rounding."""
    model, batch, labels = material({})
    loss = model.loss if compile is None else compile(model.loss, CPU)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    for size in (BATCH, BATCH, BATCH - 5):
        rows = {name: x[:size] for name, x in batch.items()}
        terms = step.update(loss, optimizer, rows, labels[:size], precision)
    return {**model.state_dict(), **terms}


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_what_the_compiler_traces_is_the_plain_step(backend: str) -> None:
    """Traced whole by torch's compiler (`aot_eager`: both passes), and run by the same kernels."""
    torch.compiler.reset()
    plain, traced = trained(None), trained(functools.partial(step.compiled, backend=backend))
    for name, value in plain.items():
        torch.testing.assert_close(traced[name], value, msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the compiler's own parts
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_compiled_step_is_the_plain_step_within_rounding(precision: torch.dtype) -> None:
    torch.compiler.reset()
    plain, fused = trained(None, precision), trained(step.compiled, precision)
    rtol, atol = (1e-3, 1e-4) if precision is torch.float32 else (3e-2, 4e-3)
    for name, value in plain.items():
        torch.testing.assert_close(fused[name], value, rtol=rtol, atol=atol, msg=name)


def test_without_a_compiler_there_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RecipeError, match=r"compile is 'on', and no C\+\+ compiler was found; .*compile=off"):
        fit(caches.open(path), heads=4, epochs=1, compile="on", device="cpu")


def test_a_run_without_a_card_is_plain_and_the_setting_changes_no_bit(path: Path) -> None:
    """What is compiled trains alone; what may be recorded or not is stacked with its like."""
    a, b = (fit(caches.open(path), heads=4, epochs=1, compile=how, device="cpu") for how in ("auto", "off"))
    assert all(torch.equal(x, y) for x, y in zip(*(r.model.state().values() for r in (a, b)), strict=True))
    assert stack.shape(TrainConfig(compile="on")) is None
    assert stack.shape(TrainConfig(compile="off")) is not None
    assert TrainConfig().compile == "auto"


def steps_on_cuda(compile: str, precision: torch.dtype) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Losses of steps of two sizes in turns, and the weights after them."""
    device = torch.device("cuda")
    model, batch, labels = material({}, "cuda")
    optimizer = step.adamw(model.parameters(), 1e-3, 0.01, device)
    take, told = step.step_of(model.loss, optimizer, precision, compile, device), []  # pyright: ignore
    for number in range(24):
        size = BATCH - 5 * (number % 2)
        step.set_rates(optimizer, [1e-3 / (1 + number)])
        terms = take({name: x[:size].clone() for name, x in batch.items()}, labels[:size])
        told.append({name: float(value) for name, value in terms.items()})
    if isinstance(take, step.Recorded):
        assert not take.refused
        assert len(take.tapes) == 2
    return told, model.state_dict()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_recorded_step_is_the_plain_step_bit_for_bit(precision: torch.dtype) -> None:
    (plain, weights), (recorded, replayed) = (steps_on_cuda(how, precision) for how in ("off", "auto"))
    assert plain == recorded
    assert all(torch.equal(weights[name], replayed[name]) for name in weights)


@pytest.mark.gpu
def test_a_step_on_cuda_never_waits() -> None:
    model, batch, labels = material({}, "cuda")
    optimizer = step.adamw(model.parameters(), 1e-3, 0.01, torch.device("cuda"))
    step.update(model.loss, optimizer, batch, labels, torch.float32)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.set_rates(optimizer, [5e-4])
        step.update(model.loss, optimizer, batch, labels, torch.float32)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_stack_on_cuda_is_recorded_and_equals_its_plain_steps(path: Path) -> None:
    told = {}
    for how in ("off", "auto"):
        config = TrainConfig(heads=4, epochs=6, batch_size=100, device="cuda", compile=how)
        with caches.open(path) as cache:
            runs = stack.fit_stack(task(cache, config), [config.replace(seed=seed) for seed in (1, 2)])
        told[how] = [None if run is None else run.history for run in runs]
    assert told["off"] == told["auto"]
