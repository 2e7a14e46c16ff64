"""TaskRes: a residual for every class vector; images stay where they are.

    t'_k = t_k + alpha r_k,   logits = s cos(x, t'_k),   r = 0 at the start

with t_k the mean of *raw* text vectors over templates. Yu et al. 2023; code geekyutao/TaskRes 5195359. Adam
(its decay of 5e-4 is L2 on the gradient, which no published configuration changes), batches of 256, a
cosine by epochs with one warm-up epoch at 1e-5.

The authors set alpha (0.5; flowers 1.0) and the rate (2e-3; ImageNet 2e-4) by hand for each data set, and
train 100 epochs for up to 4 shots, 200 beyond. Here 200 epochs at 2e-3, and validation rows choose alpha
after training, which costs no training. Differs from the reference in: that choice; an epoch's views come
from the cache. A query's own texts take the residuals that were learned beside the training texts.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from spaner.align.methods import descent
from spaner.align.methods.state import as_tensor, check_shapes
from spaner.align.methods.support import require_one_width, trained_texts
from spaner.align.methods.task import Facts, Query, Task, Tools, check_classes
from spaner.settings import check, option


@dataclass(frozen=True)
class Settings:
    """Settings of TaskRes."""

    alpha: float = option(
        0.5,
        "Weight of the residuals, once they are trained.",
        low=0,
        grid=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0),
    )
    train_alpha: float = option(0.5, "Weight of the residuals, while they are trained.", low=0)

    def __post_init__(self) -> None:
        check(self)


def logits(
    x: Float[Tensor, "B D"],
    base: Float[Tensor, "K D"],
    residual: Float[Tensor, "K D"],
    alpha: float,
    scale: float,
) -> Float[Tensor, "B K"]:
    """Scaled cosines to the moved class vectors."""
    return scale * F.normalize(x, dim=1) @ F.normalize(base + alpha * residual, dim=1).T


def train_residual(
    residual: Float[Tensor, "K D"],
    base: Float[Tensor, "K D"],
    pool: Float[Tensor, "M D"],
    labels: Int[Tensor, " N"],
    *,
    scale: float,
    alpha: float,
    rates: Iterable[float],
    batches: Iterable[Int[Tensor, " B"]],
    weight_decay: float = 5e-4,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Iterator[Float[Tensor, ""]]:
    """Train the residuals in place, a step for every loss that is taken."""
    optimizer = torch.optim.Adam([residual], lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay)

    def loss(rows: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        return F.cross_entropy(logits(pool[rows], base, residual, alpha, scale), labels[rows % len(labels)])

    return descent.descend(optimizer, rates, batches, loss)


class TaskRes:
    """r (C, D) in units of raw text vectors, and its weight."""

    Settings: ClassVar[type] = Settings
    training: ClassVar[Mapping[str, Any] | None] = {"epochs": 200, "lr": 2e-3, "weight_decay": 5e-4}
    reads_query: ClassVar[bool] = True
    tuned: ClassVar[tuple[str, ...]] = ("alpha",)

    def __init__(self, residual: Tensor, alpha: float, facts: Facts) -> None:
        self.residual, self.alpha, self.facts = residual, alpha, facts
        self.logit_scale = facts.logit_scale
        self.history: list[dict[str, float]] = []

    @classmethod
    def fit(cls, task: Task, settings: Any, tools: Tools) -> Self:
        """Every row once an epoch, in a random one of its views.

        Raises:
            Mismatch: images and texts have different widths. RunError: the loss is not finite.
        """
        require_one_width("task_res", task)
        base = trained_texts(task).raw.mean(1).to(tools.device)
        residual = torch.zeros_like(base, requires_grad=True)
        train = partial(train_residual, residual, base, alpha=settings.train_alpha)
        history = descent.follow(train, task, settings, tools)
        fitted = cls(residual.detach().cpu(), settings.alpha, task.facts())
        fitted.history = history
        return fitted

    def scores(self, x: Float[Tensor, "N D"], query: Query) -> Float[Tensor, "N C"]:
        """Scaled cosines to the query's texts, moved.

        Raises:
            Mismatch: the query asks about other classes.
        """
        check_classes("task_res", self.facts.class_names, query)
        return logits(x, query.texts.raw.mean(1), self.residual, self.alpha, self.logit_scale)

    def tune(
        self, x: Float[Tensor, "N D"], query: Query, grids: Mapping[str, tuple[Any, ...]]
    ) -> Iterator[tuple[dict[str, Any], Float[Tensor, "N C"]]]:
        """Every alpha."""
        for alpha in grids.get("alpha", (self.alpha,)):
            yield {"alpha": alpha}, self.tuned_to({"alpha": alpha}).scores(x, query)

    def tuned_to(self, choice: Mapping[str, Any]) -> Self:
        """The same residuals with another weight."""
        other = type(self)(self.residual, choice.get("alpha", self.alpha), self.facts)
        other.history = self.history
        return other

    def state(self) -> dict[str, Tensor]:
        """The residuals and their weight."""
        return {"residual": self.residual, "alpha": as_tensor(self.alpha)}

    @classmethod
    def restore(cls, state: Mapping[str, Tensor], settings: Any, facts: Facts) -> Self:
        """The inverse of `state`."""
        expected = {"residual": (len(facts.class_names), facts.widths["text"]), "alpha": ()}
        check_shapes(expected, state)
        return cls(state["residual"], float(state["alpha"]), facts)
