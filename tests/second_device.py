"""A second device, made of this machine's memory: tensors of it and of the CPU do not mix.

To torch it is a device such as a GPU, named `elsewhere`: what is made on it or moved to it stays there, an
operation on tensors of both raises, NumPy refuses it. Its kernels are the CPU's. So a test can prove, where
no GPU is, that code moves everything that it should: the same numbers, and no tensor on the wrong side.
Importing it tells torch.
"""

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

MIXING = ("aten::copy_",)
"""Operations in which tensors of the host may take part, as on any device. A GPU lets numbers of the host
choose rows too, but waits for a copy each time, so that it is refused here."""


_float64 = [True]


@contextmanager
def without_float64() -> Iterator[None]:
    """As Apple's MPS is."""
    _float64.append(False)
    try:
        yield
    finally:
        _float64.pop()


class _Module:
    """What torch asks a device about itself."""

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Generators are the CPU's."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend("elsewhere", backend_module=_Module())
SECOND = torch.device("elsewhere", 0)


class SecondTensor(torch.Tensor):
    """A tensor on the second device; `raw` holds its numbers."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> "SecondTensor":
        if raw.dtype is torch.float64 and not _float64[-1]:
            raise TypeError("the second device has no float64 now")
        made = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=SECOND,
        )
        made.raw = raw
        return made

    def __repr__(self, **_: Any) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"elsewhere({self.raw!r})"

    def tolist(self) -> Any:
        """As of any device."""
        return self.raw.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch.inference_mode(False):  # a wrapper made in that mode could not be seen from outside
            return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The CPU's kernel, on the numbers; results are on this device, except where the CPU was asked for."""
    _check(func.name(), [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)])
    seen: dict[int, SecondTensor] = {}

    def numbers(tensor: SecondTensor) -> torch.Tensor:
        return seen.setdefault(id(tensor.raw), tensor).raw

    told = tree_map_only(SecondTensor, numbers, (args, kwargs))
    raw_args, raw_kwargs = tree_map_only(torch.device, lambda _: torch.device("cpu"), told)
    found = func(*raw_args, **raw_kwargs)
    if any(x.type == "cpu" for x in tree_leaves((args, kwargs)) if isinstance(x, torch.device)):
        return found
    if func.name() == "aten::copy_" and not isinstance(args[0], SecondTensor):
        return args[0]
    return tree_map_only(torch.Tensor, lambda x: seen[id(x)] if id(x) in seen else SecondTensor(x), found)


def _check(name: str, tensors: list[torch.Tensor]) -> None:
    there = [x for x in tensors if x.dim() and not isinstance(x, SecondTensor)]
    if there and name.partition(".")[0] not in MIXING:
        told = ", ".join(f"{tuple(x.shape)} on {x.device}" for x in tensors)
        raise RuntimeError(f"{name}: expected all tensors on one device, found {told}")


def _factory(name: str) -> Callable[..., SecondTensor]:
    """A function that makes tensors from nothing."""
    overload = operator.attrgetter(name if "." in name else f"{name}.default")(torch.ops.aten)

    def made(*args: Any, dtype: Any = None, **_: Any) -> SecondTensor:
        return SecondTensor(overload(*args, dtype=dtype))

    return made


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """What `torch.tensor(..., device=...)` does beneath the dispatch of subclasses."""
    numbers = [x.raw if isinstance(x, SecondTensor) else x for x in (source, target)]
    numbers[1].copy_(numbers[0])
    return target


_made = torch.library.Library("aten", "IMPL")  # lives as long as the registration should
for _name in (
    "empty.memory_format",
    "empty_strided",
    "arange",
    "arange.start",
    "arange.start_step",
    "eye",
    "linspace",
    "triu_indices",
):
    _made.impl(_name, _factory(_name), "PrivateUse1")
_made.impl("_copy_from", _copy_from, "PrivateUse1")
