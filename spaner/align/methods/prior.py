"""A closed-form prior for a trained space: Gaussians of the frozen embeddings that join its scores.

    scores = s cos(f, t_k) + alpha c (x' P mu_k - mu_k' P mu_k / 2),   P = (S + gamma tr(S)/D I)^-1

with mu_k the class means of the unit rows x that train (all views), S their covariance around the means, and
gamma the share of the mean variance that shrinks it. The arithmetic is `gda`'s. c makes the head spread over
the classes, on the training rows, as zero-shot's logits do: so alpha means the same at one shot, where S is
made of two views of one picture, and at sixteen.

Ours: a head alone has no space, a space alone forgets the second moments of its rows. `embed` and every
cosine stay those of the space. A query of other classes is answered as far as it names classes that were
learned; a class that was not is scored by the space alone, and then so are all, since a sum with the head
would favour the others.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spaner.align.methods.gda import gaussian_head, shrunk_covariance
from spaner.align.methods.support import class_means
from spaner.align.methods.task import Query, Task


class GaussianPrior(nn.Module):
    """Head W (C, D) and b (C) as buffers; `weight` is alpha.

    What is needed to shrink it differently is kept until the run is saved: refitting costs one solve.
    """

    def __init__(self, classes: int, width: int, class_names: tuple[str, ...], weight: float) -> None:
        super().__init__()
        self.class_names, self.alpha = class_names, weight
        self.head: Tensor
        self.bias: Tensor
        self.register_buffer("head", torch.zeros(classes, width))
        self.register_buffer("bias", torch.zeros(classes))
        self._task: Task | None = None

    def fit(self, task: Task, shrinkage: float) -> Self:
        """Means, covariance and one solve, in float64; zeros where the rows have no covariance at all (one
        view and one row a class) or a class has no row."""
        self._task = task
        rows = task.x.flatten(0, 1).double()
        labels = task.labels.repeat_interleave(task.x.shape[1])
        counts = torch.bincount(labels, minlength=len(self.class_names))
        if counts.min() < 1:
            return self
        means = class_means(rows, labels, len(self.class_names))
        shrunk = shrunk_covariance(rows, labels, means, shrinkage)
        if shrunk.trace() > 1e-12 * len(rows):
            head, bias = gaussian_head(means, shrunk)
            scale = _spread(task, rows) / (rows @ head.T + bias).std(1).mean()
            self.head = (scale * head).float()
            self.bias = (scale * (bias - bias.mean())).float()
        return self

    def forward(self, x: Float[Tensor, "N D"], query: Query) -> Float[Tensor, "N C"]:
        """What is added to the logits; zeros where the query names a class that was not learned."""
        columns = self._columns(query)
        if columns is None:
            return x.new_zeros(len(x), len(query.class_names))
        return self.alpha * (x @ self.head[columns].T + self.bias[columns])

    def _columns(self, query: Query) -> Tensor | None:
        if query.class_names == self.class_names:
            return torch.arange(len(self.class_names))
        place = {name: i for i, name in enumerate(self.class_names)}
        if any(name not in place for name in query.class_names):
            return None
        return torch.tensor([place[name] for name in query.class_names])

    def tune(
        self, x: Float[Tensor, "N D"], query: Query, grids: Mapping[str, tuple[Any, ...]], shrinkage: float
    ) -> Iterator[tuple[dict[str, Any], Float[Tensor, "N C"]]]:
        """What would be added for every combination; the prior is left as the last of them."""
        assert self._task is not None  # tuned where it was fitted, never after loading
        chosen = self.alpha
        for gamma in grids.get("shrinkage", (shrinkage,)):
            self.fit(self._task, gamma)
            self.alpha = 1.0
            plain = self(x, query)
            for alpha in grids.get("prior_weight", (chosen,)):
                yield {"shrinkage": gamma, "prior_weight": alpha}, alpha * plain
        self.alpha = chosen


def _spread(task: Task, rows: Float[Tensor, "n D"]) -> Float[Tensor, ""]:
    """Mean over rows of the standard deviation over classes of zero-shot's logits; 1 where there is no common
    space."""
    texts = task.query("text").texts.classes.double()
    if texts.shape[1] != rows.shape[1]:
        return rows.new_ones(())
    return task.logit_scale * (rows @ texts.T).std(1).mean()
