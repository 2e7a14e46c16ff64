"""ZS-LP and CLAP: a linear probe that starts at zero-shot, and one that is also held to it.

    logits = s n(x).n(w_k),  w_k = t_k at the start;   loss = CE + mean_k lambda_k |w_k - t_k|^2

with t_k the mean of *raw* text vectors over templates: the penalty is in raw space. Silva-Rodríguez et al.
2024; code jusiro/CLAP dbdf409. lambda_k is the mean zero-shot probability of class k over its own rows.
Constraints:

    l2           lambda as it is (published)        constant   its mean for every class
    corrected    lambda K / sum(lambda)             balanced   1
    adaptative   after every epoch lambda <- max(0, lambda + rho h), then rho <- h = |w - t|^2; rho starts
                 at 0, so that the first update changes nothing

SGD, rate 0.1, momentum 0.9, no decay, 300 epochs by Dassl's cosine; nothing is chosen by anybody: the last
epoch counts. Kept from the released code: an epoch is floor(N / B) batches from a fresh order of all V N
rows, and where N < B one batch of min(B, V N) of them. Differs from the reference in: views are those of
the cache (the reference makes 20); `zs_lp` is the constraint "none". Ignores the query, so it has no
semantic score.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from spaner.align.methods import descent
from spaner.align.methods.state import check_shapes
from spaner.align.methods.support import class_means, require_one_width, require_rows, trained_texts
from spaner.align.methods.task import Facts, Query, Task, Tools, check_classes
from spaner.settings import check, option


@dataclass(frozen=True)
class ZsLpSettings:
    """ZS-LP has nothing to set beside its loop."""


@dataclass(frozen=True)
class Settings:
    """Settings of CLAP."""

    constraint: Literal["l2", "corrected", "constant", "balanced", "adaptative"] = option(
        "l2", "How strongly each class is held to its text; l2 is CLAP as published."
    )

    def __post_init__(self) -> None:
        check(self)


def cosines(x: Float[Tensor, "B D"], weight: Float[Tensor, "K D"], scale: float) -> Float[Tensor, "B K"]:
    """Scaled; both sides are normalised here, so training may change lengths."""
    return scale * F.normalize(x, dim=1) @ F.normalize(weight, dim=1).T


def multipliers(
    pool: Float[Tensor, "M D"],
    labels: Int[Tensor, " M"],
    base: Float[Tensor, "K D"],
    scale: float,
    constraint: str,
) -> Float[Tensor, " K"]:
    """lambda at the start."""
    if constraint == "balanced":
        return torch.ones_like(base[:, 0])
    probabilities = cosines(pool, base, scale).softmax(1)
    own = class_means(probabilities.gather(1, labels[:, None]), labels, len(base))[:, 0]
    if constraint == "corrected":
        return own * len(own) / own.sum()
    return own.mean().expand(len(own)).clone() if constraint == "constant" else own


def batches(
    rows: int, pool: int, batch_size: int, orders: Iterator[Int[Tensor, " M"]]
) -> Iterator[Int[Tensor, " B"]]:
    """The reference's epochs: batches are counted over `rows` and cut from an order of the pool."""
    count = descent.per_epoch(rows, batch_size, drop_last=True)
    for order in orders:
        yield from order.split(min(batch_size, pool))[:count]


class Constraint:
    """Prototypes held to their texts: the penalty, and what an epoch's end does to its strength."""

    def __init__(
        self, weight: Tensor, base: Tensor, strength: Tensor | None, *, adapts: bool = False
    ) -> None:
        self.weight, self.base, self.strength, self.adapts = weight, base, strength, adapts
        self.rho = torch.zeros_like(base[:, 0])

    def distance(self) -> Float[Tensor, " K"]:
        """h: how far each prototype went, squared."""
        return (self.weight - self.base).square().sum(1)

    def penalty(self) -> Float[Tensor, ""]:
        """What is added to the cross entropy."""
        if self.strength is None:
            return torch.zeros((), dtype=self.base.dtype, device=self.base.device)
        return (self.strength * self.distance()).mean()

    @torch.no_grad()
    def end_epoch(self) -> None:
        """One outer step, where the strength adapts."""
        if self.adapts and self.strength is not None:
            moved = self.distance()
            self.strength, self.rho = (self.strength + self.rho * moved).clamp(min=0), moved


def train_prototypes(
    held: Constraint,
    pool: Float[Tensor, "M D"],
    labels: Int[Tensor, " M"],
    *,
    scale: float,
    rates: list[float],
    batches: Iterator[Int[Tensor, " B"]],
    per_epoch: int,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> Iterator[Float[Tensor, ""]]:
    """Train `held.weight` in place, a step for every loss that is taken; outer steps between epochs."""
    optimizer = torch.optim.SGD([held.weight], lr=0.0, momentum=momentum, weight_decay=weight_decay)

    def loss(rows: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        return F.cross_entropy(cosines(pool[rows], held.weight, scale), labels[rows]) + held.penalty()

    for step, value in enumerate(descent.descend(optimizer, rates, batches, loss), 1):
        if step % per_epoch == 0:
            held.end_epoch()
        yield value


class ZsLp:
    """w (C, D), as long as raw text vectors are."""

    Settings: ClassVar[type] = ZsLpSettings
    training: ClassVar[Mapping[str, Any] | None] = {"epochs": 300, "lr": 0.1, "weight_decay": 0.0}
    reads_query: ClassVar[bool] = False
    name: ClassVar[str] = "zs_lp"

    def __init__(self, weight: Tensor, facts: Facts) -> None:
        self.weight, self.facts = weight, facts
        self.logit_scale = facts.logit_scale
        self.history: list[dict[str, float]] = []

    @classmethod
    def fit(cls, task: Task, settings: Any, tools: Tools) -> Self:
        """All views are one pool.

        Raises:
            RunError: a class without rows, where lambda needs one; or a loss that is not finite.
            Mismatch: images and texts have different widths.
        """
        require_one_width(cls.name, task)
        constraint, (n, views) = getattr(settings, "constraint", None), task.x.shape[:2]
        pool = descent.view_first(task.x).to(tools.device)
        labels = task.labels.repeat(views).to(tools.device)
        base = trained_texts(task).raw.mean(1).to(tools.device)
        strength = None
        if constraint is not None:
            require_rows(cls.name, task)
            strength = multipliers(pool, labels, base, task.logit_scale, constraint)
        weight = base.clone().requires_grad_()
        held = Constraint(weight, base, strength, adapts=constraint == "adaptative")
        count = descent.per_epoch(n, settings.batch_size, drop_last=True)
        rates = descent.dassl_cosine(settings.lr, settings.epochs, count)
        losses = train_prototypes(
            held,
            pool,
            labels,
            scale=task.logit_scale,
            rates=rates,
            batches=batches(n, len(pool), settings.batch_size, _orders(len(pool), settings)),
            per_epoch=count,
            weight_decay=settings.weight_decay,
        )
        history = list(descent.by_epoch(losses, rates, count, tools.progress))
        fitted = cls(weight.detach().cpu(), task.facts())
        fitted.history = history
        return fitted

    def scores(self, x: Float[Tensor, "N D"], query: Query) -> Float[Tensor, "N C"]:
        """Scaled cosines to the prototypes.

        Raises:
            Mismatch: the query asks about other classes.
        """
        check_classes(self.name, self.facts.class_names, query)
        return cosines(x, self.weight, self.logit_scale)

    def state(self) -> dict[str, Tensor]:
        """The prototypes."""
        return {"weight": self.weight}

    @classmethod
    def restore(cls, state: Mapping[str, Tensor], settings: Any, facts: Facts) -> Self:
        """The inverse of `state`."""
        check_shapes({"weight": (len(facts.class_names), facts.widths[facts.modality])}, state)
        return cls(state["weight"], facts)


class Clap(ZsLp):
    """ZS-LP under a constraint."""

    Settings: ClassVar[type] = Settings
    name: ClassVar[str] = "clap"


def _orders(pool: int, settings: Any) -> Iterator[Int[Tensor, " M"]]:
    generator = torch.Generator().manual_seed(settings.seed)
    return (torch.randperm(pool, generator=generator) for _ in range(settings.epochs))
