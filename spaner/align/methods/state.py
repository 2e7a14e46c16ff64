"""Tensors of a fitted method in and out: strict about names and shapes, whatever holds them.

Used by every method's `state` and `restore`. It reads and writes no file.
"""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from spaner.errors import RunError

Module = TypeVar("Module", bound=nn.Module)


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers on the CPU, by name."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}


def load_tensors(module: Module, state: Mapping[str, Tensor]) -> Module:
    """Put the tensors into the module, each exactly where it belongs.

    Raises:
        RunError: a tensor is missing, too many, or of another shape; the line names the first.
    """
    check_shapes({name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}, state)
    module.load_state_dict(dict(state))
    return module


def check_shapes(expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> None:
    """RunError unless `state` holds exactly these tensors."""
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if odd := sorted(name for name in {**expected, **found} if expected.get(name) != found.get(name)):
        raise RunError(
            f"tensor {odd[0]!r} has shape {found.get(odd[0], 'missing')}; "
            f"expected {expected.get(odd[0], 'no such tensor')} ({len(odd)} such tensors)"
        )


def as_tensor(value: float) -> Tensor:
    """A number that was chosen, kept beside what was learned."""
    return torch.tensor(value, dtype=torch.float64)
