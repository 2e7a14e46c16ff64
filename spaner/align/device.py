"""Where and how training computes: the device, its arithmetic, and how many threads are worth waking."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from spaner.cache.errors import RecipeError

#: Batches of fewer numbers than this train on one thread: waking a second one takes longer than it saves.
ONE_THREAD = 1 << 16


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


def precision_of(name: str, device: torch.device) -> torch.dtype:
    """The arithmetic of a setting; "auto" is bfloat16 where the processor multiplies it faster, else
    float32."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.float32


def keep_freed_memory(device: torch.device) -> None:
    """Let the C library keep what one step frees for the next one: new pages cost a tenth of a step.

    glibc returns blocks to the system that are larger than any it has seen freed, up to 32 MB; so one is
    freed. Its pages are never touched. Other C libraries and devices are not affected.
    """
    if device.type == "cpu":
        torch.empty(28 << 20, dtype=torch.uint8)


@contextmanager
def threads(numbers: int, device: torch.device) -> Iterator[None]:
    """One thread for small batches on the CPU. It depends on the task alone, so the bits do not change."""
    before = torch.get_num_threads()
    if device.type == "cpu" and numbers < ONE_THREAD:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
