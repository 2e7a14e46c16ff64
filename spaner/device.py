"""Where and how both stages compute: the device, its arithmetic, and how many threads are worth waking.

Needs torch and nothing of a room. Encoders and training take the same devices and the same table of types;
what "auto" precision means differs, since an encoder only runs forward.
"""

import ctypes
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch

from spaner.errors import RecipeError

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

#: Batches of fewer numbers than this train on one thread and in float32 on a CPU: waking a second thread,
#: or rounding to bfloat16, takes longer than it saves.
SMALL = 1 << 16

LOOK_SECONDS, FIRST_LOOK = 0.5, 0.05
"""How often a training looks for free cores, and for how long it does so before it starts."""
NEARLY_FREE = 0.4
"""Share of a core that others may use and it still counts as free."""

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Settings of glibc's `mallopt`, in bytes: how much free memory goes back, which blocks are mapped alone."""


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
            f"--device {name}: torch cannot use it here; expected auto, cpu, cuda, cuda:1 or mps; "
            "type `--device auto`"
        ) from None
    return device


def scoring_device(name: str = "auto") -> torch.device:
    """Where a run is scored: the device of that name, but the CPU in the place of MPS, which has no float64
    for sums over a test table.

    Raises:
        RecipeError: as `device_of`.
    """
    device = device_of(name)
    return CPU if device.type == "mps" else device


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


class ThreadCount:
    """How many threads of this process find a free core: many small operations shared by two threads wait
    for the slower one each time, so a thread that has to share its core stops the others.

    Looks at the processor's own count of busy time (Linux; elsewhere the number stays). The bits of a
    training do not depend on it (tested).
    """

    def __init__(self, most: int) -> None:
        self.most = most
        if most < 2:
            return
        self._allowed = _allowed()
        self._since, self._busy, self._own = time.monotonic(), _busy_seconds(self._allowed), _own_seconds()
        if self._busy is not None:
            time.sleep(FIRST_LOOK)
            self._choose()

    def look(self) -> None:
        """Count again, if it is time to."""
        if self.most > 1 and self._busy is not None and time.monotonic() - self._since >= LOOK_SECONDS:
            self._choose()

    def _choose(self) -> None:
        now, busy, own = time.monotonic(), _busy_seconds(self._allowed), _own_seconds()
        if busy is None or self._busy is None:
            return
        others = max(0.0, busy - self._busy - (own - self._own)) / (now - self._since)
        self._since, self._busy, self._own = now, busy, own
        free = len(self._allowed) - others
        torch.set_num_threads(max(1, min(self.most, int(free + NEARLY_FREE))))


def _allowed() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _busy_seconds(allowed: set[int]) -> float | None:
    """Seconds that these cores have worked since the system started; None where it does not tell."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    ticks = 0
    for words in (line.split() for line in lines):
        if words and words[0][:3] == "cpu" and words[0][3:].isdecimal() and int(words[0][3:]) in allowed:
            user, nice, system, _, _, irq, soft, *_ = map(int, words[1:9])
            ticks += user + nice + system + irq + soft
    return ticks / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    told = os.times()
    return told.user + told.system


@contextmanager
def threads(numbers: int, device: torch.device) -> Iterator[ThreadCount]:
    """One thread for small batches on the CPU, else as many as find a free core. The bits do not change."""
    before = torch.get_num_threads()
    small = device.type != "cpu" or numbers < SMALL
    if device.type == "cpu" and small:
        torch.set_num_threads(1)
    try:
        yield ThreadCount(1 if small else before)
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
