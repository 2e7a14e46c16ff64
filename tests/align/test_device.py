"""Arithmetic, threads and products that training chooses, and that it leaves no trace of them."""

import pytest
import torch

from spaner import device
from spaner.align.methods.loop import Pairs, optimise
from spaner.align.methods.spaner import Spaner
from spaner.align.train.config import TrainConfig
from spaner.device import SMALL, fast_products, precision_of, threads

CPU = torch.device("cpu")


def route():
    return device._onednn().fp32_precision


def error_of_a_product():
    a, b = torch.randn(200, 384), torch.randn(384, 700)
    truth = a.double() @ b.double()
    return ((a @ b - truth).norm() / truth.norm()).item()


def test_fast_products_are_float32_products_and_end_with_the_block():
    before = route()
    with fast_products(CPU):
        assert error_of_a_product() < 1e-5
    assert route() == before
    with pytest.raises(ZeroDivisionError), fast_products(CPU):
        raise ZeroDivisionError
    assert route() == before


def test_a_processor_that_would_round_to_bfloat16_keeps_its_float32_products(monkeypatch):
    """AMX makes of oneDNN's route what this product does."""
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor,
        "__matmul__",
        lambda a, b: (
            product(a.bfloat16().to(a.dtype), b.bfloat16().to(b.dtype))
            if a.dtype is torch.float32
            else product(a, b)
        ),
    )
    before = route()
    device._onednn_is_exact.cache_clear()
    try:
        with fast_products(CPU):
            assert route() == before
    finally:
        device._onednn_is_exact.cache_clear()


@pytest.mark.parametrize(
    ("flags", "numbers", "expected"),
    [
        ({"avx512_bf16": True}, SMALL, torch.bfloat16),
        ({"amx_bf16": True}, SMALL, torch.bfloat16),
        ({"avx512_bf16": True}, SMALL - 1, torch.float32),
        ({"avx512": True}, SMALL, torch.float32),
    ],
)
def test_auto_takes_bfloat16_where_the_processor_and_the_batch_gain(monkeypatch, flags, numbers, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert precision_of("auto", CPU, numbers) is expected
    assert precision_of("float32", CPU, numbers) is torch.float32
    assert precision_of("bfloat16", CPU, numbers) is torch.bfloat16


def test_small_batches_train_on_one_thread():
    before = torch.get_num_threads()
    with threads(SMALL - 1, CPU):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with threads(SMALL, CPU):
        assert torch.get_num_threads() == before


@pytest.mark.parametrize(("others", "threads"), [(0.0, 2), (0.3, 2), (1.0, 1), (2.0, 1)])
def test_threads_follow_the_cores_that_others_leave_free(
    others: float, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = {"now": 0.0}
    monkeypatch.setattr(device.time, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(device.time, "sleep", lambda seconds: clock.update(now=clock["now"] + seconds))
    monkeypatch.setattr(device, "_allowed", lambda: {0, 1})
    monkeypatch.setattr(device, "_own_seconds", lambda: 1.5 * clock["now"])
    monkeypatch.setattr(device, "_busy_seconds", lambda cores: (1.5 + others) * clock["now"])
    before = torch.get_num_threads()
    try:
        crew = device.ThreadCount(2)
        assert torch.get_num_threads() == threads
        monkeypatch.setattr(device, "_busy_seconds", lambda cores: 1.5 * clock["now"] + others * 0.05)
        clock["now"] += device.LOOK_SECONDS
        crew.look()
        assert torch.get_num_threads() == 2, "the others have ended"
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow  # two threads on a busy core take minutes, which is what this is about
def test_a_training_has_the_same_bits_on_one_thread_and_on_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.ThreadCount, "_choose", lambda self: None)  # however busy the machine is

    def trained(threads: int, precision: str) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        x, pool = (torch.randn(300, 512, generator=generator) for _ in range(2))
        labels, ones = torch.arange(300), torch.ones(300, dtype=torch.int64)
        pairs = Pairs("image", x, labels, "text", pool, labels, ones)
        model = Spaner({"image": 512, "text": 512}, logit_scale=100.0, prompt_length=2)
        settings = TrainConfig(epochs=2, batch_size=150, precision=precision)  # pyright: ignore
        torch.set_num_threads(threads)
        optimise(model, pairs, settings, torch.device("cpu"))
        return model.state()

    before = torch.get_num_threads()
    try:
        for precision in ("float32", "bfloat16"):
            one, two = trained(1, precision), trained(2, precision)
            assert all(torch.equal(one[name], two[name]) for name in one)
    finally:
        torch.set_num_threads(before)
