"""GDA: a Gaussian for each class with one covariance for all, in closed form, added to zero-shot.

    C = (n - 1) S + tr(S) I,   P = D C^-1,   w_k = P mu_k,   b_k = log(1/K) - mu_k' P mu_k / 2
    logits = s x.t_k + alpha (x.w_k + b_k)

over n unit rows (all views pooled), with mu_k the class means and S the covariance around them (n - 1).
Wang et al. 2024, "A hard-to-beat baseline for training-free CLIP-based adaptation"; code mrflogs/ICLR24
560fe21. Needs rows of every class, and two that differ in one of them; fitting takes milliseconds.

The authors choose alpha among powers of ten on the full validation split, for ImageNet on the test set;
here the few-shot validation rows choose among the same. Differs from the reference in: one view and one row
a class has no covariance at all; there the reference falls back to zero-shot without a word (its
pseudo-inverse of zero is zero), here `fit` refuses. `shrinkage` is ours: the reference's value of it is D /
(n - 1).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spaner.align.methods.state import as_tensor, check_shapes
from spaner.align.methods.support import class_means, require_one_width, require_rows
from spaner.align.methods.task import Facts, Query, Task, Tools, check_classes
from spaner.errors import RunError
from spaner.settings import check, option

ALPHAS = tuple(10.0**i for i in range(-4, 3))


@dataclass(frozen=True)
class Settings:
    """Settings of GDA."""

    alpha: float = option(0.1, "Weight of the Gaussian head beside zero-shot.", low=0, grid=ALPHAS)
    shrinkage: float | None = option(
        None, "Share of the mean variance added to every variance; default: D / (n - 1), as published.", low=0
    )

    def __post_init__(self) -> None:
        check(self)


def shrunk_covariance(
    rows: Float[Tensor, "n D"],
    labels: Int[Tensor, " n"],
    means: Float[Tensor, "K D"],
    shrinkage: float | None = None,
) -> Float[Tensor, "D D"]:
    """C = (n - 1) S + gamma (n - 1) tr(S) / D I, with gamma = D / (n - 1) where none is given."""
    n, width = rows.shape
    off = rows - means[labels]
    scatter = off.T @ off
    ridge = scatter.trace() * (1 / (n - 1) if shrinkage is None else shrinkage / width)
    return scatter + ridge * torch.eye(width, dtype=rows.dtype, device=rows.device)


def gaussian_head(
    means: Float[Tensor, "K D"], shrunk: Float[Tensor, "D D"]
) -> tuple[Float[Tensor, "K D"], Float[Tensor, " K"]]:
    """W and b; no covariance at all (C = 0) gives W = 0, as a pseudo-inverse would."""
    classes, width = means.shape
    weight = torch.zeros_like(means)
    if shrunk.trace() > 0:
        weight = width * torch.cholesky_solve(means.T, torch.linalg.cholesky(shrunk)).T.contiguous()
    prior = torch.full((classes,), 1 / classes, dtype=means.dtype).log()
    return weight, prior - (weight * means).sum(1) / 2


class Gda:
    """W (C, D) and b (C), and the weight of both."""

    Settings: ClassVar[type] = Settings
    training: ClassVar[Mapping[str, Any] | None] = None
    reads_query: ClassVar[bool] = True
    tuned: ClassVar[tuple[str, ...]] = ("alpha",)

    def __init__(self, weight: Tensor, bias: Tensor, alpha: float, facts: Facts) -> None:
        self.weight, self.bias, self.alpha, self.facts = weight, bias, alpha, facts
        self.logit_scale, self.history = facts.logit_scale, []

    @classmethod
    def fit(cls, task: Task, settings: Any, tools: Tools) -> Self:
        """One covariance, one solve, in float64.

        Raises:
            RunError: a class without rows, or rows that all equal their class mean.
            Mismatch: images and texts have different widths.
        """
        require_one_width("gda", task)
        require_rows("gda", task)
        rows = task.x.flatten(0, 1).double()
        labels = task.labels.repeat_interleave(task.x.shape[1])
        means = class_means(rows, labels, len(task.class_names))
        shrunk = shrunk_covariance(rows, labels, means, settings.shrinkage)
        if not shrunk.trace() > 1e-12 * len(rows):
            raise RunError(
                "gda needs rows that differ within a class, "
                f"found {len(rows):,} rows for {len(means):,} classes, each equal to its class mean; "
                "draw --shots 2, or extract with more --views; "
                "with one row a class the published code is --method zero_shot"
            )
        weight, bias = gaussian_head(means, shrunk)
        return cls(weight.float(), bias.float(), settings.alpha, task.facts())

    def scores(self, x: Float[Tensor, "N D"], query: Query) -> Float[Tensor, "N C"]:
        """Zero-shot plus alpha times the Gaussian head.

        Raises:
            Mismatch: the query asks about other classes.
        """
        check_classes("gda", self.facts.class_names, query)
        return self.logit_scale * x @ query.texts.classes.T + self.alpha * (x @ self.weight.T + self.bias)

    def tune(
        self, x: Float[Tensor, "N D"], query: Query, grids: Mapping[str, tuple[Any, ...]]
    ) -> Iterator[tuple[dict[str, Any], Float[Tensor, "N C"]]]:
        """Every alpha, from two products."""
        check_classes("gda", self.facts.class_names, query)
        zero_shot = self.logit_scale * x @ query.texts.classes.T
        head = x @ self.weight.T + self.bias
        for alpha in grids.get("alpha", (self.alpha,)):
            yield {"alpha": alpha}, zero_shot + alpha * head

    def tuned_to(self, choice: Mapping[str, Any]) -> Self:
        """The same head at another weight."""
        return type(self)(self.weight, self.bias, choice.get("alpha", self.alpha), self.facts)

    def state(self) -> dict[str, Tensor]:
        """The head and its weight."""
        return {"weight": self.weight, "bias": self.bias, "alpha": as_tensor(self.alpha)}

    @classmethod
    def restore(cls, state: Mapping[str, Tensor], settings: Any, facts: Facts) -> Self:
        """The inverse of `state`."""
        classes, width = len(facts.class_names), facts.widths[facts.modality]
        check_shapes({"weight": (classes, width), "bias": (classes,), "alpha": ()}, state)
        return cls(state["weight"], state["bias"], float(state["alpha"]), facts)
