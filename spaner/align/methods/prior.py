"""A closed-form prior for a trained space: heads on the frozen embeddings that join its scores.

    scores = s cos(f, t_k) + w s k(x, S) A_k + alpha c (x' P mu_k - mu_k' P mu_k / 2)

The first head (`kernel`) is `proker`'s: kernel ridge regression of what zero-shot gets wrong on the training
rows S, view 0. It says little where there is no training row near, so it does no harm at one shot. The second
(`gda`) is `gda`'s: Gaussians of one covariance, with mu_k the class means of the unit rows x that train (all
views), S their covariance around the means, P = (S + gamma tr(S)/D I)^-1, and gamma the share of the mean
variance that shrinks it. c makes the head spread over the classes, on the training rows, as zero-shot's
logits do: so alpha means the same at one shot, where S is made of two views of one picture, and at sixteen.

Ours: a head alone has no space, a space alone forgets what its rows say besides. `embed` and every cosine
stay those of the space. A query of other classes is answered as far as it names classes that were learned; a
class that was not is scored by the space alone, and then so are all, since a sum with a head would favour the
others.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spaner.align.methods.gda import gaussian_head, shrunk_covariance
from spaner.align.methods.proker import (
    QUICK_ROWS,
    KernelProblem,
    fourier,
    frequencies,
    kernel,
    published,
)
from spaner.align.methods.support import class_means, trained_texts
from spaner.align.methods.task import Query, Task
from spaner.settings import option

FEATURES = 4_096
"""Random features that replace the kernel where there are more than `QUICK_ROWS` training rows."""


@dataclass(frozen=True)
class PriorSettings:
    """Which heads join, and their numbers: alpha and gamma of the Gaussians, w, beta, lambda of the kernel,
    where None stands for what was published for the number of shots."""

    prior: Literal["none", "gda", "kernel", "gda+kernel"] = option(
        "none", "Closed-form heads on the frozen rows that join the scores (`methods.prior`)."
    )
    prior_weight: float = option(
        0.25,
        "Weight alpha of the Gaussian head, beside the space's 1.",
        low=0,
        grid=(0.25, 0.0, 1.0, 4.0),
        when=("prior", ("gda", "gda+kernel")),
    )
    shrinkage: float = option(
        0.3,
        "Share of the mean variance that shrinks the Gaussians' covariance.",
        low=1e-6,
        grid=(0.3, 0.03),
        when=("prior", ("gda", "gda+kernel")),
    )
    kernel_weight: float = option(1.0, "Weight of the kernel head, beside the space's 1.", low=0)
    kernel_beta: float | None = option(
        None,
        "Sharpness of its kernel; default: ProKeR's for the number of shots.",
        low=1e-6,
        grid=(None, 8.0),
        when=("prior", ("kernel", "gda+kernel")),
    )
    kernel_lam: float | None = option(
        None,
        "Its ridge lambda; default: ProKeR's for the number of shots.",
        low=1e-9,
        grid=(None, 0.3),
        when=("prior", ("kernel", "gda+kernel")),
    )


class Gaussians(nn.Module):
    """W (C, D) and b (C), at the spread of zero-shot's logits."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", torch.zeros(classes, width))
        self.register_buffer("bias", torch.zeros(classes))

    def fit(self, task: Task, shrinkage: float) -> Self:
        """Means, covariance and one solve, in float64; zeros where a class has fewer than two rows: the views
        of one picture tell how pictures are cropped, not how they differ."""
        rows = task.x.flatten(0, 1).double()
        labels = task.labels.repeat_interleave(task.x.shape[1])
        if task.labels.bincount(minlength=len(self.bias)).min() < 2:
            return self
        means = class_means(rows, labels, len(self.bias))
        shrunk = shrunk_covariance(rows, labels, means, shrinkage)
        if shrunk.trace() > 1e-12 * len(rows):
            weight, bias = gaussian_head(means, shrunk)
            scale = _spread(task, rows) / (rows @ weight.T + bias).std(1).mean()
            self.weight = (scale * weight).float()
            self.bias = (scale * (bias - bias.mean())).float()
        return self

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """Logits of every class that was learned."""
        return x @ self.weight.T + self.bias


class Kernel(nn.Module):
    """Training rows (N, D), or directions of random features, and what their kernel is multiplied by."""

    def __init__(self, classes: int, width: int, rows: int = 0, solved: int = 0) -> None:
        super().__init__()
        self.rows: Tensor
        self.solved: Tensor
        self.beta: Tensor
        self.register_buffer("rows", torch.zeros(rows, width))
        self.register_buffer("solved", torch.zeros(solved, classes))
        self.register_buffer("beta", torch.zeros(()))  # float32: MPS has no wider numbers

    def fit(self, task: Task, beta: float | None, lam: float | None) -> Self:
        """One solve; nothing where images and texts have different widths."""
        if len(set(task.widths.values())) > 1:
            return self
        rows, usual = task.x[:, 0].contiguous(), published(task)
        made = frequencies(rows.shape[1], FEATURES, 0) if len(rows) > QUICK_ROWS else None
        problem = KernelProblem(rows, task.labels, trained_texts(task).classes, made)
        self.beta = torch.tensor(beta or usual[0], dtype=torch.float32)
        solution = next(problem.solve(float(self.beta), (lam or usual[1],)))
        self.rows, self.solved = rows if made is None else made, task.logit_scale * solution
        return self

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """Logits of every class that was learned, in blocks of rows."""
        near = kernel if len(self.solved) == len(self.rows) else fourier
        return torch.cat([near(part, self.rows, float(self.beta)) @ self.solved for part in x.split(1024)])


class ClosedFormPrior(nn.Module):
    """The heads that the settings name. What is needed to solve them with other numbers is kept until the run
    is saved."""

    def __init__(self, own: PriorSettings, width: int, class_names: tuple[str, ...]) -> None:
        super().__init__()
        self.own, self.width, self.class_names = own, width, class_names
        self.gaussians = Gaussians(len(class_names), width) if "gda" in own.prior else None
        self.kernel = Kernel(len(class_names), width) if "kernel" in own.prior else None
        self._task: Task | None = None

    @property
    def weight(self) -> float:
        """0 where nothing is added."""
        own = self.own
        return max(
            own.prior_weight if self.gaussians is not None else 0.0,
            own.kernel_weight if self.kernel is not None else 0.0,
        )

    def fit(self, task: Task) -> Self:
        """Solve the heads."""
        self._task, own = task, self.own
        if self.gaussians is not None:
            self.gaussians.fit(task, own.shrinkage)
        if self.kernel is not None:
            self.kernel.fit(task, own.kernel_beta, own.kernel_lam)
        return self

    def sized(self, state: Mapping[str, Tensor]) -> Self:
        """Room for the kernel of a stored prior: its rows are as many as training had."""
        if self.kernel is not None and {"prior.kernel.rows", "prior.kernel.solved"} <= state.keys():
            rows, solved = (len(state[f"prior.kernel.{name}"]) for name in ("rows", "solved"))
            self.kernel = Kernel(len(self.class_names), self.width, rows, solved)
        return self

    def with_settings(self, own: PriorSettings) -> "ClosedFormPrior":
        """A prior of other numbers; solved again where it was fitted, as it is where it was loaded."""
        other = ClosedFormPrior(own, self.width, self.class_names)
        if self._task is not None:
            return other.fit(self._task)
        other.gaussians, other.kernel = self.gaussians, self.kernel
        return other

    def forward(self, x: Float[Tensor, "N D"], query: Query) -> Float[Tensor, "N C"]:
        """What is added to the logits; zeros where the query names a class that was not learned."""
        columns, own = self._columns(query, x.device), self.own
        added = x.new_zeros(len(x), len(query.class_names))
        if columns is not None and self.gaussians is not None and own.prior_weight:
            added += own.prior_weight * self.gaussians(x)[:, columns]
        if columns is not None and self.kernel is not None and own.kernel_weight:
            added += own.kernel_weight * self.kernel(x)[:, columns]
        return added

    def _columns(self, query: Query, device: torch.device) -> Tensor | None:
        place = {name: i for i, name in enumerate(self.class_names)}
        if any(name not in place for name in query.class_names):
            return None
        return torch.tensor([place[name] for name in query.class_names], device=device)

    def tune(
        self, x: Float[Tensor, "N D"], query: Query, grids: Mapping[str, tuple[Any, ...]]
    ) -> Iterator[tuple[dict[str, Any], Float[Tensor, "N C"]]]:
        """What would be added for every combination: a solve for each kernel and each shrinkage."""
        columns = self._columns(query, x.device)
        kernels = [(choice, head(x)[:, columns]) for choice, head in self._kernels(grids)]
        gaussians = [(choice, head(x)[:, columns]) for choice, head in self._gaussians(grids)]
        alphas = grids.get("prior_weight", (self.own.prior_weight,)) if gaussians else ()
        for solved, near in kernels or [({}, x.new_zeros(()))]:
            added = self.own.kernel_weight * near
            for shrinkage, far in gaussians:
                for alpha in alphas:
                    yield {**solved, **shrinkage, "prior_weight": alpha}, added + alpha * far
            if not gaussians:
                yield solved, added

    def _kernels(self, grids: Mapping[str, tuple[Any, ...]]) -> Iterator[tuple[dict[str, Any], Kernel]]:
        if self.kernel is None or self._task is None:
            return
        names = [name for name in ("kernel_beta", "kernel_lam") if name in grids]
        for values in itertools.product(*(grids[name] for name in names)):
            choice = dict(zip(names, values, strict=True))
            own = replace(self.own, **choice)
            head = Kernel(len(self.class_names), self.width)
            yield choice, head.fit(self._task, own.kernel_beta, own.kernel_lam)

    def _gaussians(self, grids: Mapping[str, tuple[Any, ...]]) -> Iterator[tuple[dict[str, Any], Gaussians]]:
        if self.gaussians is None or self._task is None:
            return
        for gamma in grids.get("shrinkage", (self.own.shrinkage,)):
            head = Gaussians(*self.gaussians.weight.shape)
            told = {"shrinkage": gamma} if "shrinkage" in grids else {}
            yield told, head.fit(self._task, gamma)


def _spread(task: Task, rows: Float[Tensor, "n D"]) -> Float[Tensor, ""]:
    """Mean over rows of the standard deviation over classes of zero-shot's logits; 1 where there is no common
    space."""
    texts = task.query("text").texts.classes.double()
    if texts.shape[1] != rows.shape[1]:
        return rows.new_ones(())
    return task.logit_scale * (rows @ texts.T).std(1).mean()
