"""Where and how both stages compute: the device, its arithmetic, and how many threads are worth waking.

Needs torch and nothing of a room. Encoders and training take the same devices and the same table of types;
what "auto" precision means differs, since an encoder only runs forward.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch

from spaner.errors import RecipeError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

#: Batches of fewer numbers than this train on one thread and in float32 on a CPU: waking a second thread,
#: or rounding to bfloat16, takes longer than it saves.
SMALL = 1 << 16

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Settings of glibc's `mallopt`, in bytes: how much free memory goes back, which blocks are mapped alone."""


def device_of(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        RecipeError: a device that torch does not know or that this machine lacks.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise RecipeError(
            f"--device {name}: torch cannot use it here; expected auto, cpu, cuda, cuda:1 or mps; type "
            "`--device auto`"
        ) from None
    return device


def precision_of(name: str, device: torch.device, numbers: int = SMALL) -> torch.dtype:
    """The arithmetic of training for batches of `numbers` numbers.

    "auto" is bfloat16 where the processor multiplies it faster than float32, else float32.
    """
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        gains = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        gains = device.type == "cpu" and numbers >= SMALL and has_bfloat16()
    return torch.bfloat16 if gains else torch.float32


def encoder_precision(name: str, device: torch.device) -> str:
    """The arithmetic of a frozen encoder.

    "auto" is bfloat16 on a CPU that multiplies it in hardware, float16 on CUDA, else float32.

    Raises:
        RecipeError: unknown precision, or float16 on a CPU, where it is slower and overflows.
    """
    if name == "auto":
        if device.type == "cuda":
            return "float16"
        return "bfloat16" if device.type == "cpu" and has_bfloat16() else "float32"
    if name not in DTYPES:
        raise RecipeError(
            f"--precision {name}: unknown; expected auto, {', '.join(DTYPES)}; type `--precision auto`"
        )
    if name == "float16" and device.type == "cpu":
        raise RecipeError(
            "--precision float16: not for the CPU; expected float32 or bfloat16; type `--precision auto`"
        )
    return name


def has_bfloat16() -> bool:
    """Whether products of bfloat16 matrices run in the processor's hardware (AMX or AVX512-BF16)."""
    flags = torch.cpu.get_capabilities()
    return bool(flags.get("amx_bf16") or flags.get("avx512_bf16"))


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
