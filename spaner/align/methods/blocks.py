"""A class as K blocks of D / K numbers each, side by side: what `campe` and `campe_lite` share.

    t_k = n([P_1 e_k1; ...; P_K e_kK])

Who asks for blocks says how their vectors e are made. Here are the terms of the loss, training on classes
among all classes, and what is measured of blocks while they are trained; captions are the matter of
`captioned`.
"""

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from spaner.align.methods import descent
from spaner.align.methods.support import require_one_width
from spaner.align.methods.task import Task, Tools
from spaner.errors import Mismatch


class Asked(Protocol):
    """Blocks of all classes as they are now; `negated`: of their negated forms too, where there are any."""

    def __call__(self, *, negated: bool) -> tuple[Float[Tensor, "C K E"], Float[Tensor, "C K E"] | None]: ...


def joined(blocks: Float[Tensor, "C K E"]) -> Float[Tensor, "C D"]:
    """The blocks of a class side by side, at unit length."""
    return F.normalize(blocks.flatten(1), dim=1)


def diversity(blocks: Float[Tensor, "C K E"]) -> Float[Tensor, ""]:
    """Mean squared cosine over all pairs of a class's blocks and all classes: 0 where all stand at right
    angles, 1 where all say the same; 0 of a single block."""
    unit = F.normalize(blocks, dim=2)
    first, second = torch.triu_indices(unit.shape[1], unit.shape[1], 1, device=unit.device).unbind()
    if not len(first):
        return blocks.new_zeros(())
    return (unit @ unit.mT)[:, first, second].square().mean()


def negation_entropy(
    logits: Float[Tensor, "B C"],
    labels: Int[Tensor, " B"],
    negated: Float[Tensor, " B"] | None,
    weight: float,
) -> Float[Tensor, ""]:
    """Cross entropy with a row's own negated class as one more negative, counted `weight` times; without it
    at 0."""
    if negated is not None and weight:
        logits = torch.cat([logits, negated[:, None] + math.log(weight)], 1)
    return F.cross_entropy(logits, labels)


def told_apart(
    x: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    text: Float[Tensor, "C D"],
    negated: Float[Tensor, "C D"],
) -> float:
    """Share of rows that are nearer to their caption than to its negated form; chance is 1/2, and a tie is
    no answer. All vectors have unit length."""
    margin = (x * (text - negated)[labels]).sum(1)
    return int((margin > 0).sum()) / len(margin)


class BlockMaps(nn.Module):
    """A map D -> D / K for each of K vectors, at the start the K-th part of the identity's rows."""

    def __init__(self, blocks: int, dim: int) -> None:
        super().__init__()
        self.maps = nn.Parameter(torch.eye(dim).unflatten(0, (blocks, -1)).clone())

    def forward(self, vectors: Float[Tensor, "K C D"]) -> Float[Tensor, "C K E"]:
        """Block i of every class, made of its vector i."""
        return torch.einsum("kcd,ked->cke", vectors, self.maps.to(vectors.dtype))


def train_blocks(
    asked: Asked,
    parameters: Iterable[nn.Parameter],
    measured: list[dict[str, float]],
    every: int,
    x: Float[Tensor, "M D"],
    labels: Int[Tensor, " N"],
    *,
    scale: float,
    div: float,
    neg: float,
    rates: Iterable[float],
    batches: Iterable[Int[Tensor, " B"]],
    weight_decay: float,
) -> Iterator[Float[Tensor, ""]]:
    """Train with AdamW, a step for every loss that is taken.

    Args:
        measured: after each `every` steps gets what `measure` finds on the first view of all rows.
        x: unit rows, row i of class labels[i % N].
        div, neg: weights of the two further terms.
    """
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=weight_decay)

    def loss(rows: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        (blocks, denied), own = asked(negated=neg > 0), labels[rows % len(labels)]
        logits = scale * x[rows] @ joined(blocks).T
        negated = None if denied is None else scale * (x[rows] * joined(denied)[own]).sum(1)
        entropy = negation_entropy(logits, own, negated, neg)
        return entropy + div * diversity(blocks) if div else entropy

    for step, value in enumerate(descent.descend(optimizer, rates, batches, loss), 1):
        if step % every == 0:
            measured.append(measure(asked, x[: len(labels)], labels))
        yield value


@torch.no_grad()
def measure(asked: Asked, x: Float[Tensor, "N D"], labels: Int[Tensor, " N"]) -> dict[str, float]:
    """`diversity` of the blocks, and `negation` (see `told_apart`) where classes have a negated form."""
    blocks, denied = asked(negated=True)
    found = {"diversity": float(diversity(blocks))}
    if denied is not None:
        found["negation"] = told_apart(x, labels, joined(blocks), joined(denied))
    return found


def follow_blocks(
    asked: Asked, learned: nn.Module, task: Task, settings: Any, tools: Tools, device: torch.device
) -> list[dict[str, float]]:
    """Train `learned`, through which `asked` goes; the history has what `measure` finds after every epoch.

    Raises:
        RunError: the loss is not finite.
    """
    measured: list[dict[str, float]] = []
    every = descent.per_epoch(len(task.x), settings.batch_size, drop_last=True)
    terms = {"div": settings.div, "neg": settings.neg}
    train = partial(train_blocks, asked, learned.parameters(), measured, every, **terms)
    history = descent.follow(train, task, settings, tools, device=device)
    return [epoch | found for epoch, found in zip(history, measured, strict=True)]


def check_blocks(method: str, blocks: int, task: Task) -> int:
    """The width D, if it can be cut into blocks.

    Raises:
        Mismatch: the modalities have different widths, or K is no divisor of theirs.
    """
    require_one_width(method, task)
    dim = task.x.shape[2]
    if dim % blocks:
        near = max(k for k in range(1, blocks + 1) if dim % k == 0)
        raise Mismatch(
            f"blocks is {blocks}, and embeddings of {dim} numbers do not fall into {blocks} equal blocks; "
            f"expected a divisor of {dim}; use blocks={near}"
        )
    return dim
