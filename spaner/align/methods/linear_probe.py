"""Linear probe: logistic regression on the frozen embeddings, by scikit-learn.

    logits = W x + b,   minimising  C * sum of cross entropy + |W|^2 / 2

Radford et al. 2021, appendix A.3 (L-BFGS). Needs rows of at least two classes; all views of a row are
samples. Differs from the reference in: C is chosen by the few-shot validation rows from a fixed grid, not by
a binary search on a full validation set; embeddings are of unit length, so values of C are larger than for
raw ones. It ignores the query: it has no semantic score and no space.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from spaner.align.methods.state import check_shapes
from spaner.align.methods.task import Facts, Query, Task, Tools, check_classes
from spaner.errors import RunError
from spaner.settings import check, option


@dataclass(frozen=True)
class Settings:
    """The probe's settings."""

    c: float = option(
        100.0,
        "Inverse strength of the L2 penalty (scikit-learn's C).",
        low=1e-12,
        axis="cs",
        grid=(0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0),
    )
    max_iter: int = option(1000, "Most iterations of L-BFGS.", low=1, axis=None)

    def __post_init__(self) -> None:
        check(self)


class LinearProbe:
    """W (C, D) and b (C): a row of zeros and a bias of minus infinity for a class without rows."""

    Settings: ClassVar[type] = Settings
    training: ClassVar[Mapping[str, Any] | None] = None
    reads_query: ClassVar[bool] = False

    def __init__(self, weight: Tensor, bias: Tensor, class_names: tuple[str, ...]) -> None:
        self.weight, self.bias, self.class_names = weight, bias, class_names
        self.logit_scale, self.history = 1.0, []

    @classmethod
    def fit(cls, task: Task, settings: Any, tools: Tools) -> Self:
        """Fit on every view of every row.

        Raises:
            RunError: rows of one class only.
        """
        from sklearn.linear_model import (
            LogisticRegression,  # a second to import, and no other method needs it
        )

        present = task.labels.unique()
        if len(present) < 2:
            raise RunError(
                "a linear probe needs rows of two classes or more, found one; draw from more classes"
            )
        views = task.x.shape[1]
        solver = LogisticRegression(C=settings.c, max_iter=settings.max_iter, tol=1e-5)
        solver.fit(task.x.flatten(0, 1).double().numpy(), task.labels.repeat_interleave(views).numpy())
        w, b = torch.from_numpy(solver.coef_), torch.from_numpy(solver.intercept_)
        if len(present) == 2:  # scikit-learn keeps one row: the second class against the first
            w, b = torch.cat([-w, w]) / 2, torch.cat([-b, b]) / 2
        weight = torch.zeros(len(task.class_names), task.x.shape[2])
        bias = torch.full((len(task.class_names),), torch.finfo(torch.float32).min)
        weight[present], bias[present] = w.float(), b.float()
        return cls(weight, bias, task.class_names)

    def scores(self, x: Float[Tensor, "N D"], query: Query) -> Float[Tensor, "N C"]:
        """Logits of the training classes.

        Raises:
            Mismatch: the query asks about other classes.
        """
        check_classes("linear_probe", self.class_names, query)
        return x @ self.weight.T + self.bias

    def state(self) -> dict[str, Tensor]:
        """Weights and bias."""
        return {"weight": self.weight, "bias": self.bias}

    @classmethod
    def restore(cls, state: Mapping[str, Tensor], settings: Any, facts: Facts) -> Self:
        """The inverse of `state`."""
        classes, width = len(facts.class_names), facts.widths[facts.modality]
        check_shapes({"weight": (classes, width), "bias": (classes,)}, state)
        return cls(state["weight"], state["bias"], facts.class_names)
