"""Tensors out of a checkpoint file, without ever running code from it.

Read are safetensors, what `torch.load(weights_only=True)` accepts (with NumPy scalars beside the weights,
which training scripts leave there), and TorchScript archives such as OpenAI's `ViT-B-16.pt`: their tensors
are taken out of the zip, their code is not compiled. Wrappers that training leaves around a state dict
("state_dict", "module.", "_orig_mod.") are taken off. Knows no model; does not download.
"""

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from spaner.errors import EncoderError

WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")
OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that only OpenAI's files carry beside the weights."""

NUMPY = [
    np.dtype,
    np._core.multiarray.scalar,  # pyright: ignore[reportAttributeAccessIssue]
    *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
]
STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "DoubleStorage": torch.float64,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a file, on the CPU, under the names that the model gave.

    Raises:
        EncoderError: no regular file, damaged, code in it, or something else than tensors.
    """
    check_file(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd pickle protocols; what follows says it better
            found = _read(path)
    except Exception as error:  # pickle, zip and safetensors each fail in ways of their own
        raise EncoderError(
            f"{path}: cannot be read as plain tensors (nothing of it was executed): {first_line(error)}; "
            f"expected a whole safetensors file or weights-only .pt; {conversion(path)}"
        ) from error
    state = _unwrapped(found)
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise EncoderError(
            f"{path}: holds something else than tensors; expected a state dict; {conversion(path)}"
        )
    return {plain_name(str(name)): tensor for name, tensor in state.items()}


def check_file(path: Path) -> None:
    """Raise EncoderError unless weights can be read from here to their end."""
    if not path.exists():
        raise EncoderError(f"--pretrained {path}: no such file; expected a checkpoint; check the path")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe, socket or device"
        raise EncoderError(f"--pretrained {path}: {kind}; expected a checkpoint file; check the path")


def conversion(path: Path) -> str:
    """What to type where a file does not fit: for TorchScript the line that turns it into a state dict."""
    if is_torchscript(path):
        return (
            'it is a TorchScript archive; if you trust it, type `python -c "import torch; '
            f"torch.save(torch.jit.load('{path}', 'cpu').state_dict(), 'weights.pt')\"` and give weights.pt"
        )
    return "save model.state_dict() and give that file"


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip with code in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def from_openai(path: Path) -> bool:
    """Whether a file is one of OpenAI's, or was saved from one: its weights then want QuickGELU.

    They carry three numbers beside the weights, or keep matrices in float16 and norms in float32.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return False  # reading it will say why
        half = "F16"
    else:
        try:
            kinds = {name: tensor.dtype for name, tensor in read_state(path).items()}
        except EncoderError:
            return False
        half = torch.float16
    mixed = kinds.get("visual.conv1.weight") == half != kinds.get("visual.ln_pre.weight", half)
    return mixed or all(name in kinds for name in OPENAI_KEYS)


def first_line(error: Exception) -> str:
    """What a library said, on one line and without its colours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] or type(error).__name__


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if is_torchscript(path):
        return _torchscript(path)
    with torch.serialization.safe_globals(NUMPY):
        mapped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _unwrapped(found: Any) -> Any:
    while isinstance(found, dict):
        inner = next((found[name] for name in WRAPPERS if isinstance(found.get(name), dict)), None)
        if inner is None:
            return found
        found = inner
    return found


def plain_name(name: str) -> str:
    """A tensor's name without what data-parallel training and compilation put before it."""
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name.replace("._orig_mod.", ".")


class _Module:
    """Stands for any class of a TorchScript archive; the unpickler fills its attributes."""


class _Tensors(pickle.Unpickler):
    """Reads an archive's object tree; whatever is no tensor, list or module of the archive is refused."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f"{root}/data.pkl"))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda flat, offset, size, stride, *_: torch.as_strided(flat, size, stride, offset)
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch.jit._pickle":
            return lambda items, *_: items
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        raise pickle.UnpicklingError(f"{module}.{name} in a TorchScript archive")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, count = pid
        data = bytearray(self.archive.read(f"{self.root}/data/{key}"))
        return torch.frombuffer(data, dtype=dtype)[:count] if data else torch.empty(0, dtype=dtype)


def _torchscript(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        root = next((n for n in archive.namelist() if n.endswith("/data.pkl")), "").removesuffix("/data.pkl")
        return dict(_named(_Tensors(archive, root).load(), "", set()))


def _named(module: Any, prefix: str, seen: set[int]) -> list[tuple[str, Tensor]]:
    """(name, tensor) of a module and its children; masks, which are computed, are left out."""
    if id(module) in seen:
        return []
    seen.add(id(module))
    found = []
    for name, value in vars(module).items():
        if isinstance(value, Tensor) and name != "attn_mask":
            found.append((prefix + name, value))
        elif isinstance(value, _Module):
            found += _named(value, f"{prefix}{name}.", seen)
    return found
