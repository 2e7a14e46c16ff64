"""Choosing settings honestly: on few-shot validation rows, with a receipt of everything that was tried.

A method's fields with a grid that were not given are chosen: `--select val` scores the grid on the validation
rows of the task and refits on nothing else; the first of equals wins, in the order of the grid. `--select
published` keeps the authors' fixed values. There is no way to choose on test rows: a task holds none.
"""

import itertools
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from spaner.align.methods.method import Tunable
from spaner.align.methods.task import Samples, Task, Tools
from spaner.align.train.config import TrainConfig


@dataclass(frozen=True)
class Receipt:
    """How settings came about: who chose, from what, on which rows, every score, and the choice.

    `by` is "val", "published" (the grid was left alone, `why` says for what reason) or "none" (the method has
    nothing to choose). `scores` are accuracies on the validation rows, in the order of `tried`.
    """

    by: str
    why: str = ""
    grid: dict[str, tuple[Any, ...]] | None = None
    rows: int = 0
    rows_sha256: str = ""
    tried: tuple[dict[str, Any], ...] = ()
    scores: tuple[float, ...] = ()
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
    if not grid or config.select == "published" or task.validation is None:
        return method.fit(task, config, tools), config, _unchosen(grid, config, task)
    best: tuple[float, dict[str, Any], Any] | None = None
    tried, scores = [], []
    for choice, fitted, found in _candidates(method, task, config, tools, grid):
        tried.append(choice)
        scores.append(accuracy(found, task.validation.labels))
        if best is None or scores[-1] > best[0]:
            best = scores[-1], choice, fitted
    assert best is not None  # a grid is never empty
    _, choice, fitted = best
    if isinstance(fitted, Tunable):
        fitted = fitted.tuned_to({name: choice[name] for name in fitted.tuned if name in choice})
    validation = task.validation
    receipt = Receipt(
        "val", "", grid, len(validation.labels), validation.draw.sha256, tuple(tried), tuple(scores), choice
    )
    return fitted, config.replace(**choice), receipt


def _unchosen(grid: dict[str, tuple[Any, ...]], config: TrainConfig, task: Task) -> Receipt:
    if not grid:
        return Receipt("none")
    why = "asked for" if config.select == "published" else "the cache has no validation rows"
    return Receipt("published", why, choice={name: getattr(config, name) for name in grid})


def _candidates(method: Any, task: Task, config: TrainConfig, tools: Tools, grid: dict[str, tuple[Any, ...]]):
    """(choice, fitted, scores of the validation rows): a fit for each combination that needs one, and of each
    fit everything that it can be tuned to."""
    tuned = getattr(method, "tuned", ())
    refit = {name: values for name, values in grid.items() if name not in tuned}
    after = {name: values for name, values in grid.items() if name in tuned}
    assert task.validation is not None
    x, query = _centre(task.validation), task.query("text")
    for values in itertools.product(*refit.values()):
        choice = dict(zip(refit, values, strict=True))
        fitted = method.fit(task, config.replace(**choice), tools)
        if not after:
            yield choice, fitted, fitted.scores(x, query)
            continue
        for further, scores in fitted.tune(x, query, after):
            yield choice | further, fitted, scores


def _centre(samples: Samples) -> Float[Tensor, "N D"]:
    """View 0, which is what evaluation sees."""
    return samples.x[:, 0]


def accuracy(scores: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> float:
    """Share of rows whose highest score is their class's."""
    return float((scores.argmax(1) == labels).double().mean())
