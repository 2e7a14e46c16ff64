"""CoCoOp: CoOp whose context bends to every image, by a small network on the image's embedding.

    v_m(x) = v_m + W2 relu(W1 x + b1) + b2,   t_k(x) = n(tower([start] v1(x) ... vM(x) [name k] . [end]))

Zhou et al. 2022 (arXiv:2203.05557), after KaiyangZhou/CoOp ff61507: hidden width D / 16, M = 4 from "a
photo of a", SGD 0.002, ten epochs, batches of one image. One pass of the text tower per image; names run
once per image, the prefix too. The network reads the final embedding, so images come from the cache.

Differs from the authors' code in: float32 instead of float16; one of the cached views an epoch; larger
batches are an option (all contexts of a batch in one pass of the tower).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from spaner.align.methods import descent, prompting
from spaner.align.methods.coop import start_context
from spaner.align.methods.prompting import Prompted, Tower
from spaner.align.methods.state import load_tensors, module_tensors
from spaner.align.methods.task import Facts, Query, Task, Tools
from spaner.errors import RunError
from spaner.settings import check, option


@dataclass(frozen=True)
class Settings:
    """Settings of CoCoOp."""

    context: int = option(4, "Context vectors M, where no words give the start.", low=1)
    words: str = option("a photo of a", 'Words that the context starts as, and M; "" starts at random.')

    def __post_init__(self) -> None:
        check(self)


class MetaNet(nn.Module):
    """From a unit embedding to what is added to every context vector."""

    def __init__(self, dim: int, hidden: int, width: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B W"]:
        """ReLU between two linear maps."""
        return self.linear2(self.linear1(x).relu())


class ConditionalContext(nn.Module):
    """Context vectors (M, W), and the network that adds one vector, made from an embedding, to each of
    them."""

    def __init__(self, context: Float[Tensor, "M W"], dim: int) -> None:
        super().__init__()
        self.ctx = nn.Parameter(context)
        hidden, width = max(1, dim // 16), context.shape[1]
        self.meta_net = MetaNet(dim, hidden, width)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B M W"]:
        """One context per embedding of unit length."""
        return self.ctx + self.meta_net(x)[:, None]


def conditional_scores(
    prompted: Prompted, context: ConditionalContext, x: Float[Tensor, "B D"], scale: float
) -> Float[Tensor, "B C"]:
    """Scaled cosines of every embedding to the names in its own context."""
    text = F.normalize(prompted(context(x)), dim=2)
    return scale * torch.einsum("bd,bcd->bc", x, text)


def train_conditional(
    prompted: Prompted,
    context: ConditionalContext,
    x: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    *,
    scale: float,
    rates: Iterable[float],
    batches: Iterable[Int[Tensor, " B"]],
    weight_decay: float = 5e-4,
    momentum: float = 0.9,
) -> Iterator[Float[Tensor, ""]]:
    """Train context and network in place, a step for every loss that is taken; `x` has unit length."""
    parameters = context.parameters()

    def logits(rows: Int[Tensor, " B"]) -> Float[Tensor, "B C"]:
        return conditional_scores(prompted, context, x[rows], scale)

    return descent.classify(
        parameters, logits, labels, rates=rates, batches=batches, weight_decay=weight_decay, momentum=momentum
    )


class CoCoOp:
    """Context and network. To score, it needs the tower: one pass per image."""

    Settings: ClassVar[type] = Settings
    training: ClassVar[Mapping[str, Any] | None] = {
        "epochs": 10,
        "batch_size": 1,
        "lr": 2e-3,
        "weight_decay": 5e-4,
    }
    reads_query: ClassVar[bool] = True
    needs_tower: ClassVar[bool] = True
    scores_cosines: ClassVar[bool] = True

    def __init__(self, context: ConditionalContext, facts: Facts, tower: Tower | None = None) -> None:
        self.context, self.facts, self.tower = context, facts, tower
        self.logit_scale = facts.logit_scale
        self.history: list[dict[str, float]] = []

    @classmethod
    def fit(cls, task: Task, settings: Any, tools: Tools) -> Self:
        """Train from the cache's images and the tower that `tools` hold.

        Raises:
            RunError: no tower, or a loss that is not finite. Mismatch: a tower of other weights.
        """
        tower = prompting.tower_of("cocoop", task, tools)
        start = start_context(
            tower, words=settings.words, length=settings.context, classes=None, seed=settings.seed
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            context = ConditionalContext(start.cpu(), task.x.shape[2]).to(tower.device)
        prompted = tower.prompted(prompting.spoken(task.class_names), len(context.ctx))
        train = partial(train_conditional, prompted, context)
        history = descent.follow(train, task, settings, tools, device=tower.device)
        fitted = cls(context.requires_grad_(requires_grad=False), task.facts(), tower)
        fitted.history = history
        return fitted

    @torch.no_grad()
    def scores(self, x: Float[Tensor, "N D"], query: Query) -> Float[Tensor, "N C"]:
        """Scaled cosines: to every image's own prompts where templates ask (of any classes), to the query's
        own texts where raw names do.

        Raises:
            RunError: the run was loaded from its folder, and no tower was put beside it (`tower`).
        """
        if query.kind == "semantic":
            return self.logit_scale * x @ query.texts.classes.T
        if self.tower is None:
            raise RunError(
                "cocoop makes a prompt of every image and needs the text tower to score it; "
                "a saved run has none; set run.model.tower to extract.encoders.encoder.text_tower(...) "
                "of the cache's encoder"
            )
        prompted = self.tower.prompted(prompting.spoken(query.class_names), len(self.context.ctx))
        step = max(1, 4096 // len(query.class_names))
        blocks = x.to(self.tower.device).split(step)
        scores = [conditional_scores(prompted, self.context, rows, self.logit_scale) for rows in blocks]
        return torch.cat(scores).to(x.device)

    def state(self) -> dict[str, Tensor]:
        """Context and network."""
        return module_tensors(self.context)

    @classmethod
    def restore(cls, state: Mapping[str, Tensor], settings: Any, facts: Facts) -> Self:
        """The inverse of `state`, without a tower."""
        start = torch.zeros_like(state["ctx"]) if "ctx" in state else torch.zeros(1, 1)
        context = load_tensors(ConditionalContext(start, facts.widths[facts.modality]), state)
        return cls(context.requires_grad_(requires_grad=False), facts)
