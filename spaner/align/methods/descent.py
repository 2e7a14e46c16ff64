"""Gradient descent for heads on frozen embeddings: recorded batches, a rate for each step, any torch
optimiser.

A head's training is fully told by the rows of every step and the rate of every step; both are lists made
before it starts, drawn from a seeded CPU generator, so a run can be repeated and a published one can be
replayed. `descend` takes the steps; what happens between them (keeping the best, an outer step) is the
caller's loop. Works in the dtype of its tensors. The rows of a pool with V views of N samples are numbered
v * N + i.

Knows no method and no validation rows.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from spaner.align.methods.task import Task, Tools
from spaner.errors import RunError
from spaner.progress import Progress

Rows = Int[Tensor, " B"]


def descend(
    optimizer: torch.optim.Optimizer,
    rates: Iterable[float],
    batches: Iterable[Rows],
    loss: Callable[[Rows], Float[Tensor, ""]],
) -> Iterator[Float[Tensor, ""]]:
    """Take one step per rate and batch, its rows where the parameters are; the batch's loss (before the
    step), after each of them."""
    device = optimizer.param_groups[0]["params"][0].device
    for rate, rows in zip(rates, batches, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        value = loss(rows.to(device, non_blocking=True))
        value.backward()
        optimizer.step()
        yield value.detach()


def classify(
    parameters: Iterable[Tensor],
    logits: Callable[[Rows], Float[Tensor, "B C"]],
    labels: Int[Tensor, " N"],
    *,
    rates: Iterable[float],
    batches: Iterable[Rows],
    weight_decay: float,
    momentum: float,
) -> Iterator[Float[Tensor, ""]]:
    """`descend` by SGD on the cross entropy of what `logits` says of a batch's rows; row v * N + i has the
    label of sample i."""
    optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=momentum, weight_decay=weight_decay)

    def loss(rows: Rows) -> Float[Tensor, ""]:
        return F.cross_entropy(logits(rows), labels[rows % len(labels)])

    return descend(optimizer, rates, batches, loss)


def by_epoch(
    losses: Iterable[Float[Tensor, ""]],
    rates: Sequence[float],
    per_epoch: int,
    progress: Progress | None = None,
) -> Iterator[dict[str, float]]:
    """Drive `descend`: after every epoch its mean loss and last rate, which a history holds.

    Raises:
        RunError: the mean is not finite.
    """
    total, seen, epochs = [], 0, len(rates) // per_epoch
    for value in losses:
        total.append(value)
        if len(total) < per_epoch:
            continue
        seen, mean = seen + 1, float(torch.stack(total).mean())
        if not math.isfinite(mean):
            raise RunError(
                f"the loss is {mean} in epoch {seen} of {epochs}; expected a finite number; "
                f"lower lr (now {max(rates):g})"
            )
        if progress:
            progress(seen, epochs, f"loss {mean:.4f}")
        total = []
        yield {"epoch": seen, "loss": mean, "lr": rates[seen * per_epoch - 1]}


def cosine(lr: float, steps: int) -> list[float]:
    """From the full rate to (just above) zero, a step at a time."""
    return [lr * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]


def dassl_cosine(
    lr: float, epochs: int, per_epoch: int, *, warmup: int = 1, warmup_lr: float = 1e-5
) -> list[float]:
    """The rate as Dassl steps it, once an epoch: `warmup` epochs at a constant, then a cosine over *all*
    epochs that starts late, so that the last epoch ends above zero."""
    rates = [
        warmup_lr if epoch < warmup else lr * (1 + math.cos(math.pi * (epoch - warmup) / epochs)) / 2
        for epoch in range(epochs)
    ]
    return [rate for rate in rates for _ in range(per_epoch)]


def warmed_cosine(lr: float, steps: int, *, warmup: int, warmup_lr: float, total: int) -> list[float]:
    """Linear over `warmup` steps, the very first at `warmup_lr`; then a cosine over `total` steps."""
    return [
        warmup_lr
        if step == 0 and warmup
        else lr * step / warmup
        if step < warmup
        else lr * (1 + math.cos(math.pi * (step - warmup) / total)) / 2
        for step in range(steps)
    ]


def per_epoch(rows: int, batch_size: int, *, drop_last: bool) -> int:
    """Batches of an epoch; fewer rows than a batch make one."""
    return max(1, rows // batch_size if drop_last else math.ceil(rows / batch_size))


def shuffled(
    rows: int, views: int, batch_size: int, epochs: int, seed: int, *, drop_last: bool
) -> Iterator[Rows]:
    """Every epoch all rows in random order, each in a random one of its views."""
    generator = torch.Generator().manual_seed(seed)
    count = per_epoch(rows, batch_size, drop_last=drop_last)
    for _ in range(epochs):
        order = torch.randperm(rows, generator=generator)
        view = torch.randint(views, (rows,), generator=generator)
        yield from (view[order] * rows + order).split(batch_size)[:count]


def dassl_plan(rows: int, views: int, settings: Any) -> tuple[list[float], Iterator[Rows], int]:
    """The rates and batches of a method that was published within Dassl, and its batches per epoch; a last
    short batch is left out there."""
    count = per_epoch(rows, settings.batch_size, drop_last=True)
    rates = dassl_cosine(settings.lr, settings.epochs, count)
    batches = shuffled(rows, views, settings.batch_size, settings.epochs, settings.seed, drop_last=True)
    return rates, batches, count


def follow(
    train: Callable[..., Iterable[Float[Tensor, ""]]],
    task: Task,
    settings: Any,
    tools: Tools,
    *,
    device: torch.device | None = None,
    pool: Any = None,
) -> list[dict[str, float]]:
    """Train as Dassl does on the task's rows: every row once an epoch, in a random one of its views.

    Args:
        train: takes (pool, labels, *, scale, rates, batches, weight_decay), and steps for every loss taken.
        device: where the rows go; default that of the tools.
        pool: what batches index, where it is not the task's embeddings.

    Returns:
        The history.

    Raises:
        RunError: the loss is not finite.
    """
    device = device or tools.device
    rows, views = task.x.shape[:2]
    rates, batches, count = dassl_plan(rows, views, settings)
    losses = train(
        view_first(task.x).to(device) if pool is None else pool,
        task.labels.to(device),
        scale=task.logit_scale,
        rates=rates,
        batches=batches,
        weight_decay=settings.weight_decay,
    )
    return list(by_epoch(losses, rates, count, tools.progress))


def endless(rows: int, batch_size: int, steps: int, seed: int) -> Iterator[Rows]:
    """`steps` batches from one random order after another; what does not fill a batch is left out."""
    generator = torch.Generator().manual_seed(seed)
    size, left = min(batch_size, rows), 0
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if left < size:
            order, left = torch.randperm(rows, generator=generator), rows
        start = rows - left
        yield order[start : start + size]
        left -= size


def view_first(x: Float[Tensor, "N V D"]) -> Float[Tensor, "M D"]:
    """All views as one pool: view 0 of every sample, then view 1 …"""
    return x.transpose(0, 1).flatten(0, 1)


def accuracy(scores: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> float:
    """Share of rows whose best class is their own; of equals the first counts."""
    return int((scores.argmax(1) == labels).sum()) / len(labels)


def uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Tensor:
    """torch's own start of a linear layer's weight and bias: uniform within 1 / sqrt(fan_in)."""
    return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(fan_in)
