"""Choosing settings honestly: on few-shot validation rows, with a receipt of everything that was tried.

A method's fields with a grid that were not given are chosen. `--select val` scores every combination, and the
authors' own values before all others, on the validation rows of the task, and refits on nothing else. What is
compared is the cross entropy of each row, at the temperature that suits the combination best. The published
values stay unless another combination is better by more than one standard error of the paired difference (the
rule of Breiman et al. 1984): at one shot there is one validation row a class, and the best accuracy of a
hundred candidates on ten rows is luck. `docs/log.md` has what other rules gave. `--select folds` is for where
every row trains: each class's rows are dealt out to folds, a combination is scored on each fold by a fit on
the others, and the choice is fitted on all rows. `--select published` keeps the authors' values. There is no
way to choose on test rows: a task holds none.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spaner.align.methods.descent import accuracy
from spaner.align.methods.method import Tunable
from spaner.align.methods.task import Task, Tools
from spaner.align.train.config import TrainConfig
from spaner.errors import DatasetError

ERRORS = 1.0
"""Standard errors by which a combination must be better than the published one."""

STEPS, FURTHEST = (4.0, 2.0, 2**0.5, 2**0.25), 2.0**14
"""Factors by which the temperature is searched, from coarse to fine, and how far it may go."""

FOLDS = 4
"""Parts that the training rows are dealt out to by `--select folds`; fewer where a class has fewer rows."""

WORST = 100.0
"""Most nats that a row costs: a class that a head has never seen has a score of minus infinity."""


@dataclass(frozen=True)
class Receipt:
    """How settings came about: who chose, from what, on which rows, every score, and the choice.

    `by` is "val", "folds", "published" (the grid was left alone, `why` says for what reason) or "none" (the
    method has nothing to choose). In the order of `tried`, whose first are the published values: `scores` are
    accuracies on the rows that judge, `nll` their mean cross entropies at the best temperature, and `errors`
    how many standard errors a combination is better than the first (negative: worse).
    """

    by: str
    why: str = ""
    grid: dict[str, tuple[Any, ...]] | None = None
    rows: int = 0
    rows_sha256: str = ""
    tried: tuple[dict[str, Any], ...] = ()
    scores: tuple[float, ...] = ()
    nll: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()
    choice: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """What there is to tell, as JSON types."""
        return {name: value for name, value in vars(self).items() if value not in ("", None, (), 0)}


def fit_chosen(
    method: Any, task: Task, config: TrainConfig, tools: Tools
) -> tuple[Any, TrainConfig, Receipt]:
    """Fit a method, its open settings chosen as `config.select` says.

    Returns:
        The fitted method, the configuration with the choice in it, and the receipt.
    """
    grid = config.open_grid()
    config = config.replace(**config.starts())
    if grid and config.select == "folds":
        receipt = _by_folds(method, task, config, tools, grid)
        config = config.replace(**(receipt.choice or {}))
        return method.fit(task, config, tools), config, receipt
    if not grid or config.select == "published" or task.validation is None:
        return method.fit(task, config, tools), config, _unchosen(grid, config)
    rows, best = task.validation, None
    judge = Judge(rows.labels)
    for choice, fitted, found in _candidates(method, task, rows.x[:, 0], config, tools, grid):
        if judge.leads(choice, found):
            best = fitted
    choice = judge.choice
    if isinstance(best, Tunable):
        told = {name: choice[name] for name in best.tuned if choice.get(name) is not None}
        best = best.tuned_to(told)
    return best, config.replace(**choice), judge.receipt("val", grid, rows.draw.sha256)


def _by_folds(
    method: Any, task: Task, config: TrainConfig, tools: Tools, grid: Mapping[str, tuple[Any, ...]]
) -> Receipt:
    """The choice by cross-validation over the training rows.

    All folds walk through the combinations in step, so that one fit of each is held, and one combination's
    scores.
    """
    held = folds(task)
    judge = Judge(torch.cat([task.labels[fold] for fold in held]))
    walks = [
        _candidates(method, task.without(fold), task.x[fold][:, 0], config, tools, grid) for fold in held
    ]
    for step in zip(*walks, strict=True):
        judge.leads(step[0][0], torch.cat([found for _, _, found in step]))
    return judge.receipt("folds", dict(grid), task.draw.sha256)


def folds(task: Task) -> list[Bool[Tensor, " N"]]:
    """Which training rows each fold leaves out: the rows of every class, dealt out in their order.

    Raises:
        DatasetError: a class has one row, or none.
    """
    counts = torch.bincount(task.labels, minlength=len(task.class_names))
    if (fewest := int(counts.min())) < 2:
        raise DatasetError(
            f"select is folds, and class {task.class_names[int(counts.argmin())]!r} has {fewest} training "
            "rows; expected 2 or more in every class; use --select val or --select published"
        )
    order = task.labels.argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts)[task.labels[order]]
    return [place % min(FOLDS, fewest) == part for part in range(min(FOLDS, fewest))]


def _unchosen(grid: dict[str, tuple[Any, ...]], config: TrainConfig) -> Receipt:
    if not grid:
        return Receipt("none")
    lacking = "no validation rows are left; --select folds chooses on the training rows"
    why = "asked for" if config.select == "published" else lacking
    return Receipt("published", why, choice={name: getattr(config, name) for name in grid})


def _candidates(
    method: Any,
    task: Task,
    x: Float[Tensor, "n D"],
    config: TrainConfig,
    tools: Tools,
    grid: Mapping[str, tuple[Any, ...]],
) -> Iterator[tuple[dict[str, Any], Any, Float[Tensor, "n C"]]]:
    """(choice, fitted, scores of `x`, centre views as evaluation sees them): the published values first, then
    a fit for each combination that needs one, and of each fit everything that it can be tuned to."""
    tuned = getattr(method, "tuned", ())
    refit = {name: values for name, values in grid.items() if name not in tuned}
    after = {name: values for name, values in grid.items() if name in tuned}
    query = task.query("text")
    published = {name: getattr(config, name) for name in grid}
    own = {name: published[name] for name in refit}
    first = method.fit(task, config, tools)
    yield published, first, first.scores(x, query)
    for values in itertools.product(*refit.values()):
        choice = dict(zip(refit, values, strict=True))
        if choice == own and not after:
            continue  # it came first
        fitted = first if choice == own else method.fit(task, config.replace(**choice), tools)
        tried = fitted.tune(x, query, after) if after else [({}, fitted.scores(x, query))]
        for further, scores in tried:
            if (combination := choice | further) != published:
                yield combination, fitted, scores


@dataclass
class Judge:
    """Compares combinations, one after another, on rows with these labels.

    Holds what every combination cost each row's mean, and of two combinations the whole rows: the first,
    which the others must beat, and the one that leads.
    """

    labels: Int[Tensor, " n"]
    tried: list[dict[str, Any]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    choice: dict[str, Any] = field(default_factory=dict)
    _first: Tensor | None = None
    _lead: float = 0.0

    def leads(self, choice: dict[str, Any], scores: Float[Tensor, "n C"]) -> bool:
        """Write a combination down; whether it is the best so far.

        The best has the lowest upper bound, mean plus `ERRORS` standard errors, of its difference to the
        first; the first itself has 0, and of equals the earlier leads.
        """
        rows = surprise(scores.detach(), self.labels)
        first = self._first is None
        if self._first is None:
            self._first = rows
        better = self._first - rows
        error = float(better.std()) / len(rows) ** 0.5 if len(rows) > 1 else float("inf")
        mean = float(better.mean())
        self.tried.append(choice)
        self.scores.append(accuracy(scores, self.labels))
        self.nll.append(float(rows.mean()))
        self.errors.append(mean / error if mean and error else 0.0)
        bound = ERRORS * error - mean
        if first or bound < self._lead:
            self._lead, self.choice = (0.0 if first else bound), choice
            return True
        return False

    def receipt(self, by: str, grid: dict[str, tuple[Any, ...]], rows_sha256: str) -> Receipt:
        """Everything that was seen."""
        seen = tuple(self.scores), tuple(self.nll), tuple(self.errors)
        return Receipt(
            by, "", grid, len(self.labels), rows_sha256, tuple(self.tried), *seen, choice=self.choice
        )


def surprise(scores: Float[Tensor, "n C"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Cross entropy of each row, in nats, at the temperature where their mean is lowest.

    Methods and combinations differ in how large their scores are; that is not what they are compared by. The
    mean is convex in 1 / temperature, so the walk over a geometric grid stops where it rises.
    """
    best = F.cross_entropy(scores, labels, reduction="none").clamp(max=WORST)
    for step in STEPS:
        for toward in (step, 1 / step):
            scale = toward
            while 1 / FURTHEST <= scale <= FURTHEST:
                rows = F.cross_entropy(scores * scale, labels, reduction="none").clamp(max=WORST)
                if not rows.mean() < best.mean():
                    break
                best, scale = rows, scale * toward
            scores = scores * (scale / toward)
            if scale != toward:
                break
    return best
