"""One training step as a device sees it: forward, backward and AdamW, with nothing that the host waits for.

The step reads no number back, branches on no value, and its shapes are those of the batch, of which a
training has two: the full one, and that of the short batch at the end of an epoch. So it can be recorded and
replayed whole. `compile` says how it runs:

    off     operation by operation
    auto    on CUDA recorded as a CUDA graph and replayed, the same kernels in the same order; else off
    on      losses and gradients of full batches fused by `torch.compile`: other roundings, 25 s before

Knows no model beyond its loss, and no data set.
"""

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from spaner.device import fast_products
from spaner.errors import RecipeError

Terms = dict[str, Tensor]
Loss = Callable[[dict[str, Tensor], Tensor], Terms]
"""(batch, labels) -> named losses, among them "loss"."""

WARM = 3
"""Steps before one is recorded: libraries choose kernels and allocate in the first ones."""

COMPILERS = ("g++", "clang++")


def adamw(groups: Iterable[Any], lr: float, weight_decay: float, device: torch.device) -> torch.optim.AdamW:
    """Fused AdamW. On CUDA rate and step count live on the device, where a recorded step reads them."""
    optimizer = torch.optim.AdamW(
        groups, lr, weight_decay=weight_decay, fused=True, capturable=device.type == "cuda"
    )
    if device.type == "cuda":
        for group in optimizer.param_groups:
            group["lr"] = torch.full((), group["lr"], device=device)
    return optimizer


def set_rates(optimizer: torch.optim.Optimizer, rates: Iterable[float]) -> None:
    """The learning rate of every parameter group, in place where it is on the device."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def update(
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    labels: Int[Tensor, "*K B"],
    precision: torch.dtype,
) -> Terms:
    """One optimiser step at the optimiser's rates; the batch's losses, without their history. Where models
    are trained as one, the sum of their losses falls."""
    optimizer.zero_grad()
    with fast_products(labels.device):
        with torch.autocast(labels.device.type, torch.bfloat16, enabled=precision is torch.bfloat16):
            terms = loss(batch, labels)
        terms["loss"].sum().backward()
    optimizer.step()
    return {name: value.detach() for name, value in terms.items()}


def step_of(
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    precision: torch.dtype,
    compile: Literal["auto", "on", "off"],
    device: torch.device,
) -> Loss:
    """(batch, labels) -> losses, after one update.

    Raises:
        RecipeError: compile=on where there is nothing to compile with.
    """
    fused = compiled(loss, device) if compile == "on" else loss

    def step(batch: dict[str, Tensor], labels: Tensor) -> Terms:
        return update(fused, optimizer, batch, labels, precision)

    return Recorded(step) if compile == "auto" and device.type == "cuda" else step


def compiled(loss: Loss, device: torch.device, backend: str = "inductor") -> Loss:
    """`loss` fused by torch's compiler, which keeps what it made on disk; batches of another size than the
    first run as they are, since one of each epoch is not worth compiling again.

    Raises:
        RecipeError: a CPU without a C++ compiler.
    """
    if device.type == "cpu" and not (os.environ.get("CXX") or any(map(shutil.which, COMPILERS))):
        raise RecipeError(
            f"compile is 'on', and no C++ compiler was found; expected {' or '.join(COMPILERS)} on the PATH, "
            "or the variable CXX; install one, or use compile=off"
        )
    fused = torch.compile(loss, backend=backend, fullgraph=True, dynamic=False)
    first: list[torch.Size] = []

    def chosen(batch: dict[str, Tensor], labels: Tensor) -> Terms:
        if not first:
            first.append(labels.shape)
        return fused(batch, labels) if labels.shape == first[0] else loss(batch, labels)

    return chosen


@dataclass
class _Tape:
    """A step that was recorded for batches of one size: where it reads, and where it leaves the losses."""

    graph: torch.cuda.CUDAGraph
    batch: dict[str, Tensor]
    labels: Tensor
    terms: Terms = field(default_factory=dict)

    def replay(self, batch: dict[str, Tensor], labels: Tensor) -> Terms:
        for name, x in batch.items():
            self.batch[name].copy_(x)
        self.labels.copy_(labels)
        self.graph.replay()
        return self.terms


class Recorded:
    """A step on CUDA: for every size of batch recorded after `WARM` plain ones, and replayed from then on.

    Recording runs nothing, so every call is one step. The losses that a replay returns are overwritten by
    the next one of its size. Where the device refuses to record (an operation that waits for the host, such
    as `torch.linalg.eigh` in `pmrl`; memory), steps go on as before: slower, not different.
    """

    def __init__(self, step: Loss) -> None:
        self.step, self.refused = step, ""
        self.seen: dict[torch.Size, int] = {}
        self.tapes: dict[torch.Size, _Tape] = {}

    def __call__(self, batch: dict[str, Tensor], labels: Tensor) -> Terms:
        size = labels.shape
        if self.refused:
            return self.step(batch, labels)
        self.seen[size] = self.seen.get(size, 0) + 1
        if self.seen[size] <= WARM:
            return self._aside(batch, labels)
        if size not in self.tapes and not self._record(batch, labels):
            return self.step(batch, labels)
        return self.tapes[size].replay(batch, labels)

    def _aside(self, batch: dict[str, Tensor], labels: Tensor) -> Terms:
        """A plain step on a stream of its own, as torch asks for before one is recorded."""
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            terms = self.step(batch, labels)
        here.wait_stream(aside)
        return terms

    def _record(self, batch: dict[str, Tensor], labels: Tensor) -> bool:
        """Whether the device could."""
        tape = _Tape(torch.cuda.CUDAGraph(), {name: x.clone() for name, x in batch.items()}, labels.clone())
        try:
            with torch.cuda.graph(tape.graph):
                tape.terms = self.step(tape.batch, tape.labels)
        except RuntimeError as error:
            self.refused = str(error)
            return False
        self.tapes[labels.shape] = tape
        return True
