"""CoOp: learn the words around the class names; the encoder stays frozen.

    t_k = n(tower([start] v1 ... vM [name k] . [end])),   logits = s x.t_k,   cross entropy

Zhou et al. 2022 (arXiv:2109.01134), after KaiyangZhou/CoOp ff61507 with Dassl c61a1b5: the vectors stand
before the name, around it or behind it, shared by all classes or one set for each; they start as words
(which fix M) or as N(0, 0.02^2). SGD 0.002, momentum 0.9, decay 5e-4, a cosine stepped once an epoch after
one warm-up epoch.

Images come from the cache: a step is the text tower and one product. Differs from the authors' code in:
float32 instead of float16; an epoch's random crop is one of the cached views; the text tower computes only
what the result depends on (exact).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spaner.align.methods import descent, prompting
from spaner.align.methods.prompting import LearnedTexts, Prompted, Tower, class_vectors
from spaner.align.methods.state import check_shapes
from spaner.align.methods.task import Facts, Task, Tools
from spaner.settings import check, option


@dataclass(frozen=True)
class Settings:
    """Settings of CoOp."""

    context: int = option(16, "Context vectors M, where no words give the start.", low=1)
    words: str = option("a photo of a", 'Words that the context starts as, and M; "" starts at random.')
    position: Literal["end", "middle", "front"] = option(
        "end", "Where the name stands: behind the context, in its middle, or in front."
    )
    class_specific: bool = option(default=False, help="Every class learns a context of its own.", axis=None)
    block_rows: int = prompting.block_rows("the rest")

    def __post_init__(self) -> None:
        check(self)


def start_context(
    tower: Tower, *, words: str, length: int, classes: int | None, seed: int
) -> Float[Tensor, "*C M W"]:
    """The words' vectors, if there are words; else `length` random ones, for each class its own if
    `classes`."""
    if words:
        context = tower.context_of(words.replace("_", " "))
        return context if classes is None else context.expand(classes, -1, -1).clone()
    shape = (length, tower.width) if classes is None else (classes, length, tower.width)
    return 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def train_context(
    prompted: Prompted,
    context: Float[Tensor, "*C M W"],
    x: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    *,
    scale: float,
    rates: Iterable[float],
    batches: Iterable[Int[Tensor, " B"]],
    weight_decay: float = 5e-4,
    momentum: float = 0.9,
) -> Iterator[Float[Tensor, ""]]:
    """Train the context in place, a step for every loss that is taken; `x` has unit length."""

    def logits(rows: Int[Tensor, " B"]) -> Float[Tensor, "B C"]:
        return scale * x[rows] @ class_vectors(prompted, context).T

    return descent.classify(
        [context], logits, labels, rates=rates, batches=batches, weight_decay=weight_decay, momentum=momentum
    )


class CoOp(LearnedTexts):
    """The context, and one unit vector per class that the tower made of it."""

    Settings: ClassVar[type] = Settings
    name: ClassVar[str] = "coop"
    training: ClassVar[Mapping[str, Any] | None] = {
        "epochs": 50,
        "batch_size": 32,
        "lr": 2e-3,
        "weight_decay": 5e-4,
    }
    needs_tower: ClassVar[bool] = True

    def __init__(self, context: Tensor, text: Tensor, facts: Facts) -> None:
        super().__init__(text, facts)
        self.context = context

    @classmethod
    def fit(cls, task: Task, settings: Any, tools: Tools) -> Self:
        """Train from the cache's images and the tower that `tools` hold.

        Raises:
            RunError: no tower, or a loss that is not finite. Mismatch: a tower of other weights.
        """
        tower = prompting.tower_of(cls.name, task, tools)
        names = prompting.spoken(task.class_names)
        context = start_context(
            tower,
            words=settings.words,
            length=settings.context,
            classes=len(names) if settings.class_specific else None,
            seed=settings.seed,
        )
        context = context.to(tower.device).requires_grad_()
        blocks = prompting.in_blocks(settings.block_rows)
        prompted = tower.prompted(names, context.shape[-2], settings.position, **blocks)
        train = partial(train_context, prompted, context)
        history = descent.follow(train, task, settings, tools, device=tower.device)
        with torch.no_grad():
            text = class_vectors(prompted, context).cpu()
        fitted = cls(context.detach().cpu(), text, task.facts())
        fitted.history = history
        if not settings.class_specific:
            length, own = context.shape[-2], context.detach()
            fitted.speak = lambda names: class_vectors(
                tower.prompted(prompting.spoken(names), length, settings.position, **blocks), own
            )
        return fitted

    def state(self) -> dict[str, Tensor]:
        """Context and class vectors."""
        return {"context": self.context, "text": self.text}

    @classmethod
    def restore(cls, state: Mapping[str, Tensor], settings: Any, facts: Facts) -> Self:
        """The inverse of `state`."""
        learned = tuple(state["context"].shape) if "context" in state else ("M", "W")
        shapes: Any = {"context": learned, "text": (len(facts.class_names), facts.widths["text"])}
        check_shapes(shapes, state)
        return cls(state["context"], state["text"], facts)
