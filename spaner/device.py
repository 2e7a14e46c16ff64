"""Where and how training computes: the device, its arithmetic, and how many threads are worth waking."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch

from spaner.errors import RecipeError

#: Batches of fewer numbers than this train on one thread and in float32 on a CPU: waking a second thread,
#: or rounding to bfloat16, takes longer than it saves.
SMALL = 1 << 16

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Settings of glibc's `mallopt`, in bytes: how much free memory goes back, which blocks are mapped alone."""


def device_of(name: str) -> torch.device:
    """The device of that name; "auto" takes CUDA, then Apple's MPS, then the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise RecipeError(
            f"device is {name!r}, which torch cannot use here; use device=cpu or device=auto"
        ) from None
    return device


def precision_of(name: str, device: torch.device, numbers: int = SMALL) -> torch.dtype:
    """The arithmetic of a setting for batches of `numbers` numbers.

    "auto" is bfloat16 where the processor multiplies it faster than float32, else float32.
    """
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        gains = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = torch.cpu.get_capabilities()
        gains = device.type == "cpu" and numbers >= SMALL and (has.get("amx_bf16") or has.get("avx512_bf16"))
    return torch.bfloat16 if gains else torch.float32


def keep_freed_memory(device: torch.device) -> None:
    """Let the C library keep what one step frees for the next one: new pages cost a tenth of a step.

    glibc hands large blocks back to the system by default. Other C libraries and devices are not affected.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if device.type == "cpu" and mallopt:
        for setting in (TRIM_THRESHOLD, MMAP_THRESHOLD):
            mallopt(setting, 1 << 30)


@contextmanager
def threads(numbers: int, device: torch.device) -> Iterator[None]:
    """One thread for small batches on the CPU. It depends on the task alone, so the bits do not change."""
    before = torch.get_num_threads()
    if device.type == "cpu" and numbers < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fast_products(device: torch.device) -> AbstractContextManager[None]:
    """Let oneDNN instead of MKL multiply float32 matrices on a CPU where it does so in float32.

    On AMD's processors, for which MKL has no AVX-512 kernels, that is twice as fast. torch offers it under
    the name of bfloat16 products, which is what oneDNN makes of it where the processor has AMX: hence the
    trial.
    """
    return _by_onednn() if device.type == "cpu" and _onednn_is_exact() else nullcontext()


@cache
def _onednn_is_exact() -> bool:
    """Whether a float32 product by oneDNN is as near to the true one as float32 is; bfloat16 is not."""
    a = torch.linspace(-1, 1, 256 * 512).sin().view(256, 512)
    b = torch.linspace(-7, 9, 512 * 512).cos().view(512, 512)
    truth = a.double() @ b.double()
    with _by_onednn():
        found = a @ b
    return bool((found - truth).norm() < 1e-5 * truth.norm())


@contextmanager
def _by_onednn() -> Iterator[None]:
    route, before = _onednn(), _onednn().fp32_precision
    route.fp32_precision = "bf16"
    try:
        yield
    finally:
        route.fp32_precision = before


def _onednn() -> Any:
    """torch's switch for float32 products, which its type stubs do not know."""
    mkldnn: Any = torch.backends.mkldnn
    return mkldnn.matmul
