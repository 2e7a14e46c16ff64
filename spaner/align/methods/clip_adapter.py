"""CLIP-Adapter: a small bottleneck network on the image embedding, mixed with the embedding itself.

    f' = n(r MLP(f) + (1 - r) f),   MLP(f) = relu(W2 relu(W1 f)),   logits = s f'.t_k

Gao et al. 2021; code gaopengcuhk/CLIP-Adapter 08d07f8 (r = 0.2, width D/4, no bias, ReLU after both
layers). The repository ships no optimiser settings; the framework that it runs in (Dassl) gives SGD with
momentum 0.9, rate 0.002, decay 5e-4, batches of 32, a cosine by epochs with one warm-up epoch at 1e-5.
Without bias the network commutes with positive factors, so training on unit rows is the same as on raw
ones, to the last gradient.

The authors choose r for each data set by hand; here training keeps to `train_ratio`, and validation rows
choose the `ratio` that the result is used with, which costs no training. Differs from the reference in:
that choice; an epoch's views come from the cache. The result is a space: texts stay where they were, and
classes that were never seen can be asked for.
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
from spaner.align.methods.task import Facts, Query, Task, Tools
from spaner.settings import check, option


@dataclass(frozen=True)
class Settings:
    """Settings of CLIP-Adapter."""

    ratio: float = option(
        0.2,
        "Share of the network in the result, once it is trained.",
        low=0,
        high=1,
        grid=tuple(i / 10 for i in range(11)),
    )
    train_ratio: float = option(
        0.2, "Share of the network in the result, while it is trained.", low=0, high=1
    )
    reduction: int = option(4, "The hidden layer is this many times narrower than the embedding.", low=1)

    def __post_init__(self) -> None:
        check(self)


def adapted(
    x: Float[Tensor, "B D"], down: Float[Tensor, "H D"], up: Float[Tensor, "D H"], ratio: float
) -> Float[Tensor, "B D"]:
    """The mixture, not normalised."""
    return ratio * ((x @ down.T).relu() @ up.T).relu() + (1 - ratio) * x


def start(width: int, reduction: int, seed: int) -> tuple[Float[Tensor, "H D"], Float[Tensor, "D H"]]:
    """Both layers as torch starts linear layers."""
    generator = torch.Generator().manual_seed(seed)
    hidden = max(1, width // reduction)
    down = descent.uniform((hidden, width), width, generator)
    return down, descent.uniform((width, hidden), hidden, generator)


def train_adapter(
    down: Float[Tensor, "H D"],
    up: Float[Tensor, "D H"],
    text: Float[Tensor, "K D"],
    pool: Float[Tensor, "M D"],
    labels: Int[Tensor, " N"],
    *,
    scale: float,
    ratio: float,
    rates: Iterable[float],
    batches: Iterable[Int[Tensor, " B"]],
    weight_decay: float = 5e-4,
    momentum: float = 0.9,
) -> Iterator[Float[Tensor, ""]]:
    """Train both layers in place, a step for every loss that is taken."""

    def logits(rows: Int[Tensor, " B"]) -> Float[Tensor, "B K"]:
        return scale * F.normalize(adapted(pool[rows], down, up, ratio), dim=1) @ text.T

    return descent.classify(
        [down, up], logits, labels, rates=rates, batches=batches, weight_decay=weight_decay, momentum=momentum
    )


class ClipAdapter:
    """W1 (H, D) and W2 (D, H), and the share that they have."""

    Settings: ClassVar[type] = Settings
    training: ClassVar[Mapping[str, Any] | None] = {
        "epochs": 50,
        "batch_size": 32,
        "lr": 2e-3,
        "weight_decay": 5e-4,
    }
    reads_query: ClassVar[bool] = True
    tuned: ClassVar[tuple[str, ...]] = ("ratio",)

    def __init__(self, down: Tensor, up: Tensor, ratio: float, facts: Facts) -> None:
        self.down, self.up, self.ratio, self.facts = down, up, ratio, facts
        self.logit_scale = facts.logit_scale
        self.history: list[dict[str, float]] = []

    @classmethod
    def fit(cls, task: Task, settings: Any, tools: Tools) -> Self:
        """Every row once an epoch, in a random one of its views.

        Raises:
            Mismatch: images and texts have different widths. RunError: the loss is not finite.
        """
        require_one_width("clip_adapter", task)
        device, width = tools.device, task.x.shape[2]
        down, up = (w.to(device).requires_grad_() for w in start(width, settings.reduction, settings.seed))
        text = trained_texts(task).classes.to(device)
        train = partial(train_adapter, down, up, text, ratio=settings.train_ratio)
        history = descent.follow(train, task, settings, tools)
        fitted = cls(down.detach().cpu(), up.detach().cpu(), settings.ratio, task.facts())
        fitted.history = history
        return fitted

    def embed(self, modality: str, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Rows of the trained modality through the adapter, all others as they are; unit length."""
        if modality == self.facts.modality:
            x = adapted(x, self.down, self.up, self.ratio)
        return F.normalize(x, dim=1)

    def scores(self, x: Float[Tensor, "N D"], query: Query) -> Float[Tensor, "N C"]:
        """Scaled cosines to the query's texts."""
        return self.logit_scale * self.embed(self.facts.modality, x) @ query.texts.classes.T

    def tune(
        self, x: Float[Tensor, "N D"], query: Query, grids: Mapping[str, tuple[Any, ...]]
    ) -> Iterator[tuple[dict[str, Any], Float[Tensor, "N C"]]]:
        """Every ratio."""
        for ratio in grids.get("ratio", (self.ratio,)):
            yield {"ratio": ratio}, self.tuned_to({"ratio": ratio}).scores(x, query)

    def tuned_to(self, choice: Mapping[str, Any]) -> Self:
        """The same network with another share."""
        other = type(self)(self.down, self.up, choice.get("ratio", self.ratio), self.facts)
        other.history = self.history
        return other

    def state(self) -> dict[str, Tensor]:
        """Both layers and the share."""
        return {"down": self.down, "up": self.up, "ratio": as_tensor(self.ratio)}

    @classmethod
    def restore(cls, state: Mapping[str, Tensor], settings: Any, facts: Facts) -> Self:
        """The inverse of `state`."""
        width = facts.widths[facts.modality]
        hidden = max(1, width // settings.reduction)
        check_shapes({"down": (hidden, width), "up": (width, hidden), "ratio": ()}, state)
        return cls(state["down"], state["up"], float(state["ratio"]), facts)
