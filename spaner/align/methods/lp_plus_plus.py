"""LP++: a linear probe and one weight per class for the text, with step sizes that follow from the data.

    logit_k = f.w_k + b_k + a_k f.t_k          (no factor 100)

Huang et al. 2024; code FereshteShakeri/FewShot-CLIP-Strong-Baseline f81054f. Starts from w_k = the *sum* of
class k's rows and a_k = 250 times the mean over classes of their rows' mean f.t_k; 300 full-batch steps: W
and b by SGD with momentum 0.9 and rate 4N / lambda_max(F'F), a every tenth step with rate N / (4 max_k
sum_i (f_i.t_k)^2). The iteration that is best on validation rows is kept, the latest of equals; without
validation rows the last.

Kept from the released code: the gradient of a is never cleared, so that the j-th update uses the sum of all
so far (`clear="each"` and `"update"` mend it). Differs from the reference in: float32 where it runs in
float16; validation rows are min(K, 4) a class, the reference takes K (`held="equal"`); training rows are
view 0, the reference takes one random view; gradients are written out, in blocks that stay in the
processor's cache.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spaner.align.methods import descent
from spaner.align.methods.state import check_shapes
from spaner.align.methods.support import (
    class_means,
    class_sums,
    require_one_width,
    require_rows,
    trained_texts,
)
from spaner.align.methods.task import Facts, Query, Task, Tools, check_classes
from spaner.errors import RunError
from spaner.settings import check, option

BLOCK = 1 << 20
"""Numbers of a block of logits: 4 MB, which passes over it find in the cache."""


@dataclass(frozen=True)
class Settings:
    """Settings of LP++."""

    iterations: int = option(300, "Full-batch steps.", low=1)
    text_start: float = option(250.0, "Factor of the initial text weights a.", low=0)
    text_every: int = option(10, "Steps between two updates of a.", low=1)
    momentum: float = option(0.9, "Momentum of W and b.", low=0, high=1)
    clear: Literal["never", "each", "update"] = option(
        "never", "When the gradient of a is cleared: never (as released), every step, or after an update."
    )
    keep: Literal["val", "last"] = option("val", "Which iteration: best on validation rows, or the last.")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class WeightedHead:
    """W, b and a."""

    weight: Float[Tensor, "K D"]
    bias: Float[Tensor, " K"]
    text: Float[Tensor, " K"]

    def logits(self, x: Float[Tensor, "N D"], cosines: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """The answer for rows whose cosines to the texts are known."""
        return torch.addmm(self.bias, x, self.weight.T).addcmul_(self.text, cosines)

    def copy(self) -> "WeightedHead":
        return WeightedHead(self.weight.clone(), self.bias.clone(), self.text.clone())


@dataclass(frozen=True)
class Rows:
    """Training rows, their labels and cosines to the texts, of unit vectors."""

    x: Float[Tensor, "N D"]
    labels: Int[Tensor, " N"]
    cosines: Float[Tensor, "N K"]


def start(rows: Rows, bias: Float[Tensor, " K"], factor: float) -> WeightedHead:
    """Class sums, and one text weight for all."""
    classes = len(bias)
    own = rows.cosines.gather(1, rows.labels[:, None])
    each = factor * class_means(own, rows.labels, classes).mean()
    return WeightedHead(class_sums(rows.x, rows.labels, classes), bias.clone(), each.repeat(classes))


def step_sizes(rows: Rows) -> tuple[float, float]:
    """Of W and b, and of a: the inverse of bounds on the curvature."""
    n = len(rows.x)
    largest = torch.linalg.eigvalsh(rows.x.T @ rows.x)[-1]
    return float(4 * n / largest), float(n / (4 * rows.cosines.square().sum(0).max()))


def gradients(head: WeightedHead, rows: Rows) -> tuple[Float[Tensor, ""], WeightedHead]:
    """The mean cross entropy and its gradients, block by block."""
    n, classes = rows.cosines.shape
    loss, slope = (
        rows.x.new_zeros(()),
        WeightedHead(*map(torch.zeros_like, (head.weight, head.bias, head.text))),
    )
    for part in torch.arange(n).split(max(1, BLOCK // classes)):
        first, last = int(part[0]), int(part[-1]) + 1
        x, labels, cosines = rows.x[first:last], rows.labels[first:last], rows.cosines[first:last]
        share = torch.log_softmax(head.logits(x, cosines), 1)
        loss -= share.gather(1, labels[:, None]).sum()
        share.exp_().scatter_add_(1, labels[:, None], -torch.ones_like(share[:, :1]))
        slope.weight.addmm_(share.T, x)
        slope.bias.add_(share.sum(0))
        slope.text.add_(share.mul_(cosines).sum(0))
    return loss / n, WeightedHead(slope.weight / n, slope.bias / n, slope.text / n)


def train(
    head: WeightedHead, rows: Rows, rate: float, text_rate: float, settings: Settings
) -> Iterator[tuple[float, WeightedHead]]:
    """Per iteration: the loss before its step, and the head after it (the same tensors, changed in place)."""
    speed = WeightedHead(*map(torch.zeros_like, (head.weight, head.bias, head.text)))
    gathered = torch.zeros_like(head.text)
    for step in range(1, settings.iterations + 1):
        loss, slope = gradients(head, rows)
        for value, moving, gradient in (
            (head.weight, speed.weight, slope.weight),
            (head.bias, speed.bias, slope.bias),
        ):
            value.sub_(moving.mul_(settings.momentum).add_(gradient), alpha=rate)
        gathered = slope.text if settings.clear == "each" else gathered + slope.text
        if step % settings.text_every == 0:
            head.text.sub_(gathered, alpha=text_rate)
            if settings.clear == "update":
                gathered = torch.zeros_like(gathered)
        yield float(loss), head


class LpPlusPlus:
    """W (C, D), b (C) and a (C)."""

    Settings: ClassVar[type] = Settings
    training: ClassVar[Mapping[str, Any] | None] = None
    reads_query: ClassVar[bool] = True

    def __init__(self, head: WeightedHead, facts: Facts) -> None:
        self.head, self.facts = head, facts
        # names that are no better than chance have weights of either sign: a unit has none
        self.logit_scale = float(head.text.abs().mean()) or 1.0
        self.history: list[dict[str, float]] = []

    @classmethod
    def fit(cls, task: Task, settings: Any, tools: Tools) -> Self:
        """Train on view 0 of every row; judge on the validation rows, if there are any.

        Raises:
            RunError: a class without rows, or a loss that is not finite.
            Mismatch: images and texts have different widths.
        """
        require_rows("lp_plus_plus", task)
        require_one_width("lp_plus_plus", task)
        text, x = trained_texts(task).classes.to(tools.device), task.x[:, 0].to(tools.device)
        rows = Rows(x, task.labels.to(tools.device), x @ text.T)
        draw = torch.Generator().manual_seed(settings.seed)
        bias = descent.uniform((len(text),), x.shape[1], draw).to(tools.device)
        steps = train(start(rows, bias, settings.text_start), rows, *step_sizes(rows), own(settings))
        history, best = [], -1.0
        kept = None
        for loss, head in steps:
            history.append({"epoch": len(history) + 1, "loss": loss})
            if not loss < float("inf"):
                raise RunError(
                    f"lp_plus_plus: the loss is {loss} in iteration {len(history)}; check the cache"
                )
            if settings.keep == "val" and task.validation is not None:
                history[-1]["val"] = _judge(head, task, text)
                if history[-1]["val"] >= best:
                    best, kept = history[-1]["val"], head.copy()
            else:
                kept = head
            if tools.progress:
                tools.progress(len(history), settings.iterations, f"loss {loss:.4f}")
        assert kept is not None, "there is at least one iteration"
        fitted = cls(WeightedHead(kept.weight.cpu(), kept.bias.cpu(), kept.text.cpu()), task.facts())
        fitted.history = history
        return fitted

    def scores(self, x: Float[Tensor, "N D"], query: Query) -> Float[Tensor, "N C"]:
        """Logits, with the query's texts.

        Raises:
            Mismatch: the query asks about other classes.
        """
        check_classes("lp_plus_plus", self.facts.class_names, query)
        return self.head.logits(x, x @ query.texts.classes.T)

    def state(self) -> dict[str, Tensor]:
        """W, b and a."""
        return {"weight": self.head.weight, "bias": self.head.bias, "text": self.head.text}

    @classmethod
    def restore(cls, state: Mapping[str, Tensor], settings: Any, facts: Facts) -> Self:
        """The inverse of `state`."""
        classes, width = len(facts.class_names), facts.widths[facts.modality]
        check_shapes({"weight": (classes, width), "bias": (classes,), "text": (classes,)}, state)
        return cls(WeightedHead(**state), facts)


def own(settings: Any) -> Settings:
    """The method's own part of a flat configuration."""
    return Settings(**{name: getattr(settings, name) for name in Settings.__dataclass_fields__})


def _judge(head: WeightedHead, task: Task, text: Float[Tensor, "K D"]) -> float:
    held = task.validation
    assert held is not None, "asked for with validation rows alone"
    x = held.x[:, 0].to(text)
    return descent.accuracy(head.logits(x, x @ text.T).cpu(), held.labels)
