"""ProKeR: kernel ridge regression of what zero-shot gets wrong on the training rows, in closed form.

    k(a, b) = exp(-beta (1 - a.b)),   A = (k(S, S) / lambda + I)^-1 (onehot - S t')
    logits = x t' + k(x, S) A

on unit rows S, with the class texts t and no factor 100. Bendou et al. 2025; code omarnust/BReg-Adapter
c89ce54, whose prediction leaves out 1/lambda, as here. One Cholesky factor of N x N up to `exact_rows`
rows. Beyond, the kernel is replaced by random Fourier features (Rahimi and Recht 2007), on which the same
ridge is solved exactly: unit rows have k(a, b) = exp(-beta |a - b|^2 / 2), a Gaussian.

The authors search beta and lambda on validation rows, and give pairs found on ImageNet for every number of
shots: these are the defaults. Differs from the reference in: training rows are view 0 alone; `tune` ranks
the grid with random features where there are more than 4,000 rows (the choice is then solved exactly); a
class without rows keeps its column of zeros. Refuses a kernel that would not fit into memory.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spaner.align.methods.state import check_shapes
from spaner.align.methods.support import one_hot, require_one_width, shots, trained_texts
from spaner.align.methods.task import Facts, Query, Task, Tools, check_classes
from spaner.errors import RunError
from spaner.settings import check, option

CHOSEN = {1: (3.0, 0.05), 2: (2.6, 0.05), 4: (1.5, 0.05), 8: (1.66, 0.07), 16: (1.7, 0.1)}
"""Shots -> beta and lambda that the authors chose on ImageNet for all data sets."""

QUICK_ROWS = 4_000
"""With more rows, `tune` ranks by random features: a hundred factors of N x N take minutes."""


def linspace(first: float, last: float, count: int) -> tuple[float, ...]:
    """Both ends included."""
    return tuple(torch.linspace(first, last, count, dtype=torch.float64).tolist())


@dataclass(frozen=True)
class Settings:
    """Settings of ProKeR."""

    beta: float | None = option(
        None,
        "Sharpness of the kernel; default: the authors' for the number of shots.",
        low=1e-6,
        grid=linspace(1.5, 3, 10),
    )
    lam: float | None = option(
        None,
        "Ridge lambda; larger follows the rows more closely; default: the authors' for the number of shots.",
        low=1e-9,
        grid=linspace(0.05, 0.25, 10),
    )
    exact_rows: int = option(20_000, "Most rows with an exact kernel; more take random features.", low=1)
    features: int = option(4_096, "Random features that replace the kernel (two a frequency).", low=2)

    def __post_init__(self) -> None:
        check(self)


def published(task: Task) -> tuple[float, float]:
    """beta and lambda that the authors chose for the number of shots, or the next smaller one."""
    return CHOSEN[max((known for known in CHOSEN if known <= shots(task)), default=1)]


def kernel(a: Float[Tensor, "A D"], b: Float[Tensor, "B D"], beta: float) -> Float[Tensor, "A B"]:
    """exp(-beta (1 - a.b)) of unit rows."""
    return (a @ b.T).sub_(1).mul_(beta).exp_()


def residual(
    rows: Float[Tensor, "N D"], labels: Int[Tensor, " N"], text: Float[Tensor, "K D"]
) -> Float[Tensor, "N K"]:
    """What zero-shot lacks of the right answer."""
    return one_hot(labels, len(text), rows.dtype) - rows @ text.T


def ridge(gram: Float[Tensor, "N N"], lam: float, target: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """(gram / lambda + I)^-1 target, by Cholesky; for features' gram and target the primal solution."""
    system = gram / lam
    system.diagonal().add_(1)
    return torch.cholesky_solve(target, torch.linalg.cholesky(system)).contiguous()


def frequencies(width: int, features: int, seed: int) -> Float[Tensor, "F D"]:
    """Standard normal directions; sqrt(beta) times them are the frequencies of the kernel."""
    return torch.randn(features // 2, width, generator=torch.Generator().manual_seed(seed))


def fourier(x: Float[Tensor, "N D"], directions: Float[Tensor, "F D"], beta: float) -> Float[Tensor, "N 2F"]:
    """Features whose products are about the kernel."""
    angle = x @ directions.T * beta**0.5
    return torch.cat([angle.cos(), angle.sin()], 1) / len(directions) ** 0.5


@dataclass
class KernelProblem:
    """What is solved again for every beta and lambda. `directions` is None for the exact kernel."""

    rows: Float[Tensor, "N D"]
    labels: Int[Tensor, " N"]
    text: Float[Tensor, "K D"]
    directions: Float[Tensor, "F D"] | None = None

    def solve(self, beta: float, lams: tuple[float, ...]) -> Iterator[Tensor]:
        """What `answer` multiplies, for every lambda: A, or the weights of the features."""
        target = residual(self.rows, self.labels, self.text)
        if self.directions is None:
            gram = kernel(self.rows, self.rows, beta)
        else:
            phi = fourier(self.rows, self.directions, beta)
            gram, target = phi.T @ phi, phi.T @ target
        yield from (ridge(gram, lam, target) for lam in lams)

    def against(self, x: Float[Tensor, "B D"], beta: float) -> Float[Tensor, "B R"]:
        """k(x, S), or the features of x."""
        return kernel(x, self.rows, beta) if self.directions is None else fourier(x, self.directions, beta)


class ProKeR:
    """Training rows, labels and texts, from which any beta and lambda can be solved, and one solution."""

    Settings: ClassVar[type] = Settings
    training: ClassVar[Mapping[str, Any] | None] = None
    reads_query: ClassVar[bool] = True
    tuned: ClassVar[tuple[str, ...]] = ("beta", "lam")

    def __init__(self, problem: KernelProblem, facts: Facts, beta: float, lam: float, solved: Tensor) -> None:
        self.problem, self.facts, self.beta, self.lam, self.solved = problem, facts, beta, lam, solved
        self.logit_scale, self.history = 1.0, []

    @classmethod
    def fit(cls, task: Task, settings: Any, tools: Tools) -> Self:
        """One solve.

        Raises:
            RunError: the kernel of all pairs of rows does not fit into memory.
            Mismatch: images and texts have different widths.
        """
        require_one_width("proker", task)
        rows = task.x[:, 0].contiguous()
        exact = len(rows) <= settings.exact_rows
        if exact:
            _require_memory(len(rows), settings)
        made = None if exact else frequencies(rows.shape[1], settings.features, settings.seed)
        problem = KernelProblem(rows, task.labels, trained_texts(task).classes, made)
        beta, lam = published(task)
        beta, lam = settings.beta or beta, settings.lam or lam
        return cls(problem, task.facts(), beta, lam, next(problem.solve(beta, (lam,))))

    def scores(self, x: Float[Tensor, "N D"], query: Query) -> Float[Tensor, "N C"]:
        """Cosines plus the kernel's correction.

        Raises:
            Mismatch: the query asks about other classes.
        """
        check_classes("proker", self.facts.class_names, query)
        corrected = [self.problem.against(rows, self.beta) @ self.solved for rows in x.split(1024)]
        return x @ query.texts.classes.T + torch.cat(corrected)

    def tune(
        self, x: Float[Tensor, "N D"], query: Query, grids: Mapping[str, tuple[Any, ...]]
    ) -> Iterator[tuple[dict[str, Any], Float[Tensor, "N C"]]]:
        """Every beta, outer, with every lambda; by random features where the rows are many."""
        check_classes("proker", self.facts.class_names, query)
        problem, cosines = self.problem, x @ query.texts.classes.T
        if problem.directions is None and len(problem.rows) > QUICK_ROWS:
            problem = replace(problem, directions=frequencies(x.shape[1], 4_096, 0))
        lams = tuple(grids.get("lam", (self.lam,)))
        for beta in grids.get("beta", (self.beta,)):
            near = problem.against(x, beta)
            for lam, solved in zip(lams, problem.solve(beta, lams), strict=True):
                yield {"beta": beta, "lam": lam}, cosines + near @ solved

    def tuned_to(self, choice: Mapping[str, Any]) -> Self:
        """Solved again with other numbers."""
        beta, lam = choice.get("beta") or self.beta, choice.get("lam") or self.lam
        return type(self)(self.problem, self.facts, beta, lam, next(self.problem.solve(beta, (lam,))))

    def state(self) -> dict[str, Tensor]:
        """Rows, solution and numbers; directions where the kernel is approximated."""
        given, made = self.problem, self.problem.directions
        tensors = {"rows": given.rows, "labels": given.labels, "text": given.text}
        tensors |= {
            "numbers": torch.tensor([self.beta, self.lam], dtype=torch.float64),
            "solved": self.solved,
        }
        return tensors | ({} if made is None else {"directions": made})

    @classmethod
    def restore(cls, state: Mapping[str, Tensor], settings: Any, facts: Facts) -> Self:
        """The inverse of `state`."""
        classes, width = len(facts.class_names), facts.widths[facts.modality]
        count, made = len(state.get("rows", state.get("labels", ()))), state.get("directions")
        solved = count if made is None else 2 * len(made)
        shapes: dict[str, tuple[int, ...]] = {"rows": (count, width), "labels": (count,)}
        shapes |= {"text": (classes, width), "solved": (solved, classes), "numbers": (2,)}
        check_shapes(shapes | ({} if made is None else {"directions": (len(made), width)}), state)
        beta, lam = state["numbers"].tolist()
        problem = KernelProblem(state["rows"], state["labels"], state["text"], made)
        return cls(problem, facts, beta, lam, state["solved"])


def _require_memory(rows: int, settings: Any) -> None:
    """RunError if three float32 matrices of N x N are more than what the machine has free."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = 3 * 4 * rows**2
    if needed > free:
        raise RunError(
            f"proker's kernel of {rows:,} rows needs {needed / 2**30:.1f} GiB, "
            f"and {free / 2**30:.1f} GiB are free; "
            f"use exact_rows={rows - 1} for random features (now {settings.exact_rows:,}), or lower shots"
        )
