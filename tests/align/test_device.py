"""Arithmetic, threads and products that training chooses, and that it leaves no trace of them."""

import pytest
import torch

from spaner import device
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
