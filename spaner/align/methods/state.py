"""Tensors of a fitted method in and out, strict about names and shapes, and onto a device, whatever holds
them.

Used by every method's `state` and `restore`, and by a run that is scored. It reads and writes no file.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

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


def model_on(model: Any, device: torch.device) -> Any:
    """A fitted method that scores and embeds on the device; the original stays where it is. A method that
    holds a tower goes where that is, and is returned as it is."""
    if getattr(model, "needs_tower", False):
        return model
    if isinstance(model, nn.Module):
        return placed(model, device)
    other = copy.copy(model)
    vars(other).update(placed(vars(model), device))
    return other


def placed(value: Any, device: torch.device) -> Any:
    """A shallow copy whose tensors lie on the device, of what a fitted method holds or is asked; what holds
    no tensors is shared."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict | list | tuple):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        moved = {key: placed(part, device) for key, part in parts}
        return moved if isinstance(value, dict) else type(value)(moved.values())
    if isinstance(value, nn.Module):
        return _placed_module(value, device)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{name: placed(getattr(value, name), device) for name in names})
    return value


def _placed_module(module: nn.Module, device: torch.device) -> nn.Module:
    other = copy.copy(module)
    other._parameters = {
        name: None if p is None else nn.Parameter(p.detach().to(device), p.requires_grad)
        for name, p in module._parameters.items()
    }
    other._buffers = {name: None if b is None else b.to(device) for name, b in module._buffers.items()}
    other._modules = {name: m and _placed_module(m, device) for name, m in module._modules.items()}
    return other


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
