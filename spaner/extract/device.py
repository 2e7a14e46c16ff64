"""Which processor, and which arithmetic it has in hardware."""

import torch

from spaner.errors import EncoderError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        EncoderError: unknown device, or one that this machine lacks.
    """
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu"
        )
    try:
        device = torch.device(name)
    except RuntimeError:
        raise EncoderError(f"--device {name}: unknown; expected auto, cpu, cuda, cuda:1 or mps") from None
    usable = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.mps.is_available(),
    }
    if not usable.get(device.type, False):
        raise EncoderError(
            f"--device {name}: this machine has none; expected auto, cpu, cuda or mps; type `--device auto`"
        )
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """``auto`` takes bfloat16 on a CPU that multiplies it in hardware, float16 on CUDA, else float32.

    Raises:
        EncoderError: unknown precision, or float16 on a CPU, where it is slower and overflows.
    """
    if name == "auto":
        if device.type == "cuda":
            return "float16"
        return "bfloat16" if device.type == "cpu" and _cpu_has_bfloat16() else "float32"
    if name not in DTYPES:
        raise EncoderError(
            f"--precision {name}: unknown; expected auto, {', '.join(DTYPES)}; type `--precision auto`"
        )
    if name == "float16" and device.type == "cpu":
        raise EncoderError(
            "--precision float16: not for the CPU; expected float32 or bfloat16; type `--precision auto`"
        )
    return name


def _cpu_has_bfloat16() -> bool:
    """Whether products of bfloat16 matrices run in hardware (AMX or AVX512-BF16)."""
    flags = torch.cpu.get_capabilities()
    return bool(flags.get("amx_bf16") or flags.get("avx512_bf16"))
