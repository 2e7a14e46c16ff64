"""Tip-Adapter: training rows as a cache of keys, labels as values; Tip-Adapter-F trains the keys.

    logits = s x.t_k + alpha sum_{i of class k} exp(-beta (1 - x.key_i))
    key_i = n(mean over views of raw x_i)

Zhang et al. 2022; code gaopengcuhk/Tip-Adapter d0e2d6f. Tip-Adapter-F minimises cross entropy over the
keys, which are not normalised again: AdamW (eps 1e-4, decay 0.01), cosine per step, alpha and beta fixed
meanwhile.

The authors search beta and alpha after fitting, and choose F's epoch: for ImageNet all of it on the test
set, for other sets the epoch. Here validation rows choose alpha and beta from their ImageNet grid (every
tenth of their 200 betas; all 20 alphas), and the last epoch counts unless `keep_epoch=val`. Differs from
the reference in: sums over a class's keys instead of a product with one-hot values; a random view for each
row and epoch, from those that the cache holds, instead of new crops. Needs no row of a class: without one
it is zero-shot there.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from spaner.align.methods import descent
from spaner.align.methods.state import as_tensor, check_shapes
from spaner.align.methods.support import column_sums, require_one_width, trained_texts
from spaner.align.methods.task import Facts, Query, Task, Tools, check_classes
from spaner.settings import check, option


def search_values(most: float, steps: int) -> tuple[float, ...]:
    """The authors' grid from 0.1 towards `most`, which itself is never tried."""
    return tuple(i * (most - 0.1) / steps + 0.1 for i in range(steps))


@dataclass(frozen=True)
class Settings:
    """Settings of Tip-Adapter."""

    alpha: float = option(
        1.17, "Weight of the cache's answer beside zero-shot.", low=0, grid=search_values(3, 20)
    )
    beta: float = option(
        1.0, "Sharpness of the cache: only near keys count.", low=0, grid=search_values(7, 20)
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class TrainedSettings(Settings):
    """Settings of Tip-Adapter-F."""

    train_alpha: float = option(1.17, "Weight of the cache's answer while the keys are trained.", low=0)
    train_beta: float = option(1.0, "Sharpness of the cache while the keys are trained.", low=0)
    keep_epoch: Literal["last", "val"] = option(
        "last", "Which epoch's keys: the last, or the best on validation rows."
    )


def keys_of(raw: Float[Tensor, "N V D"]) -> Float[Tensor, "N D"]:
    """One unit vector a row: the mean over views of what the encoder gave."""
    return F.normalize(raw.mean(1), dim=1)


def cache_scores(
    x: Float[Tensor, "B D"], keys: Float[Tensor, "N D"], labels: Int[Tensor, " N"], classes: int, beta: float
) -> Float[Tensor, "B K"]:
    """How near the keys of each class are."""
    return column_sums((-beta * (1 - x @ keys.T)).exp(), labels, classes)


def train_keys(
    keys: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    text: Float[Tensor, "K D"],
    pool: Float[Tensor, "M D"],
    *,
    scale: float,
    alpha: float,
    beta: float,
    rates: list[float],
    batches: Iterable[Int[Tensor, " B"]],
    weight_decay: float = 0.01,
    eps: float = 1e-4,
) -> tuple[Float[Tensor, "N D"], Iterator[Float[Tensor, ""]]]:
    """The keys as a parameter, and the losses: each that is taken trains them one step further."""
    trained, n = keys.clone().requires_grad_(), len(labels)
    optimizer = torch.optim.AdamW([trained], weight_decay=weight_decay, eps=eps)

    def loss(rows: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        x = pool[rows]
        cached = cache_scores(x, trained, labels, len(text), beta)
        return F.cross_entropy(scale * x @ text.T + alpha * cached, labels[rows % n])

    return trained, descent.descend(optimizer, rates, batches, loss)


class TipAdapter:
    """Keys (N, D) in class order with their labels, alpha and beta."""

    Settings: ClassVar[type] = Settings
    training: ClassVar[Mapping[str, Any] | None] = None
    reads_query: ClassVar[bool] = True
    tuned: ClassVar[tuple[str, ...]] = ("alpha", "beta")
    name: ClassVar[str] = "tip_adapter"

    def __init__(self, keys: Tensor, labels: Tensor, alpha: float, beta: float, facts: Facts) -> None:
        self.keys, self.labels, self.alpha, self.beta, self.facts = keys, labels, alpha, beta, facts
        self.logit_scale = facts.logit_scale
        self.history: list[dict[str, float]] = []

    @classmethod
    def fit(cls, task: Task, settings: Any, tools: Tools) -> Self:
        """Keep the keys; nothing is learned.

        Raises:
            Mismatch: images and texts have different widths.
        """
        require_one_width(cls.name, task)
        order = task.labels.argsort(stable=True)
        keys = keys_of(task.support.raw)[order]
        return cls(keys, task.labels[order], settings.alpha, settings.beta, task.facts())

    def cached(self, x: Float[Tensor, "N D"], beta: float) -> Float[Tensor, "N C"]:
        """The cache's answer, in blocks of rows."""
        classes = len(self.facts.class_names)
        blocks = [cache_scores(rows, self.keys, self.labels, classes, beta) for rows in x.split(1024)]
        return torch.cat(blocks)

    def scores(self, x: Float[Tensor, "N D"], query: Query) -> Float[Tensor, "N C"]:
        """Zero-shot plus alpha times the cache's answer.

        Raises:
            Mismatch: the query asks about other classes.
        """
        check_classes(self.name, self.facts.class_names, query)
        return self.logit_scale * x @ query.texts.classes.T + self.alpha * self.cached(x, self.beta)

    def tune(
        self, x: Float[Tensor, "N D"], query: Query, grids: Mapping[str, tuple[Any, ...]]
    ) -> Iterator[tuple[dict[str, Any], Float[Tensor, "N C"]]]:
        """Every beta, outer, with every alpha."""
        check_classes(self.name, self.facts.class_names, query)
        zero_shot = self.logit_scale * x @ query.texts.classes.T
        for beta in grids.get("beta", (self.beta,)):
            cached = self.cached(x, beta)
            for alpha in grids.get("alpha", (self.alpha,)):
                yield {"alpha": alpha, "beta": beta}, zero_shot + alpha * cached

    def tuned_to(self, choice: Mapping[str, Any]) -> Self:
        """The same keys with other numbers."""
        alpha, beta = choice.get("alpha", self.alpha), choice.get("beta", self.beta)
        other = type(self)(self.keys, self.labels, alpha, beta, self.facts)
        other.history = self.history
        return other

    def state(self) -> dict[str, Tensor]:
        """The cache and its numbers."""
        numbers = {"alpha": as_tensor(self.alpha), "beta": as_tensor(self.beta)}
        return {"keys": self.keys, "labels": self.labels, **numbers}

    @classmethod
    def restore(cls, state: Mapping[str, Tensor], settings: Any, facts: Facts) -> Self:
        """The inverse of `state`."""
        rows = len(state.get("labels", state.get("keys", ())))
        expected = {"keys": (rows, facts.widths[facts.modality]), "labels": (rows,), "alpha": (), "beta": ()}
        check_shapes(expected, state)
        return cls(state["keys"], state["labels"], float(state["alpha"]), float(state["beta"]), facts)


class TipAdapterF(TipAdapter):
    """Tip-Adapter whose keys were trained."""

    Settings: ClassVar[type] = TrainedSettings
    training: ClassVar[Mapping[str, Any] | None] = {"epochs": 20}
    name: ClassVar[str] = "tip_adapter_f"

    @classmethod
    def fit(cls, task: Task, settings: Any, tools: Tools) -> Self:
        """Every row once an epoch, in a random one of its views."""
        start = TipAdapter.fit(task, settings, tools)
        fitted = cls(start.keys, start.labels, start.alpha, start.beta, start.facts)
        device, (n, views) = tools.device, task.x.shape[:2]
        order = task.labels.argsort(stable=True)
        pool = descent.view_first(task.x[order]).to(device)
        count = descent.per_epoch(n, settings.batch_size, drop_last=False)
        rates = descent.cosine(settings.lr, settings.epochs * count)
        keys, losses = train_keys(
            start.keys.to(device),
            start.labels.to(device),
            trained_texts(task).classes.to(device),
            pool,
            scale=task.logit_scale,
            alpha=settings.train_alpha,
            beta=settings.train_beta,
            rates=rates,
            batches=descent.shuffled(
                n, views, settings.batch_size, settings.epochs, settings.seed, drop_last=False
            ),
            weight_decay=settings.weight_decay,
        )
        epochs = descent.by_epoch(losses, rates, count, tools.progress)
        fitted._keep(keys, epochs, task if settings.keep_epoch == "val" else None)
        return fitted

    def _keep(self, keys: Tensor, epochs: Iterator[dict[str, float]], judge: Task | None) -> None:
        """Take the last epoch's keys, or with a judge the first that were best on its validation rows."""
        best, kept = -1.0, self.keys
        for record in epochs:
            self.history.append(record)
            self.keys = keys.detach().cpu().clone()
            if judge is not None and judge.validation is not None:
                held = judge.validation
                record["val"] = descent.accuracy(self.scores(held.x[:, 0], judge.query()), held.labels)
                if record["val"] > best:
                    best, kept = record["val"], self.keys
        if best >= 0:
            self.keys = kept
