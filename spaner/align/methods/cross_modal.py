"""Cross-modal linear probe: texts are training samples too, in every batch beside the images.

    logits = s n(x).w_k,   w_k = n(mean over templates of raw text) at the start, rows not normalised again

Lin et al. 2023; code linzhiqiu/cross_modal_adaptation ac9077e. Half of a batch are images (all views), half
texts (all templates), each from its own endless shuffled loader. AdamW, 12,800 iterations, the rate linear
over 50 iterations and then a cosine over 12,800 more, so that it ends above zero. Every 100 iterations the
validation rows are scored; the first best state is kept. `wise_ft` mixes W with its start afterwards (the
authors report 0 and 0.5). `head="adapter"` puts CLIP-Adapter's network in front, whose result is not
normalised again.

The authors choose rate, decay and batch on validation rows (at most 4 a class), which leaks nothing; here
rate and decay. Differs from the reference in: batch 32 of {8, 32} unless told; images beside the centre
crop are the views of the cache, the reference adds its mirror image; without validation rows the last state
counts. The reference's script for its image-only rows starts from zero-shot although it should not: there
is no such row here. Ignores the query, so it has no semantic score.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from spaner.align.methods import clip_adapter, descent
from spaner.align.methods.state import as_tensor, check_shapes
from spaner.align.methods.support import require_one_width, trained_texts
from spaner.align.methods.task import Facts, Query, Task, Tools, check_classes
from spaner.settings import check, option

RATIO = 0.2
"""Share of the adapter's network in its result."""


@dataclass(frozen=True)
class Settings:
    """Settings of the cross-modal probe."""

    head: Literal["linear", "adapter"] = option(
        "linear", "A linear layer, or CLIP-Adapter's network before it.", axis="head_kinds"
    )
    iterations: int = option(12_800, "Steps; the cosine is as long.", low=1)
    batch_size: int = option(32, "Images and texts of a step, half and half.", low=2)
    lr: float = option(1e-3, "AdamW's rate after the warm-up.", low=1e-12, grid=(1e-3, 1e-4))
    weight_decay: float = option(0.01, "AdamW's weight decay.", low=0, grid=(0.0, 0.01, 1e-4))
    warmup: int = option(50, "Iterations of the linear warm-up.", low=0)
    judge_every: int = option(100, "Iterations between two looks at the validation rows.", low=1, axis=None)
    wise_ft: float = option(
        0.0, "Share of the zero-shot head mixed into W after training.", low=0, high=1, grid=(0.0, 0.5)
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class ProbeHead:
    """W, and the adapter's layers where there are any."""

    weight: Float[Tensor, "K D"]
    down: Float[Tensor, "H D"] | None = None
    up: Float[Tensor, "D H"] | None = None

    def tensors(self) -> dict[str, Tensor]:
        """What is trained, by name."""
        named = {"weight": self.weight, "down": self.down, "up": self.up}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def logits(self, x: Float[Tensor, "B D"], scale: float) -> Float[Tensor, "B K"]:
        """Products with unit rows; the adapter's result keeps its length."""
        x = F.normalize(x, dim=1)
        if self.down is not None and self.up is not None:
            x = clip_adapter.adapted(x, self.down, self.up, RATIO)
        return scale * x @ self.weight.T

    def copy(self) -> "ProbeHead":
        return ProbeHead(**{name: tensor.detach().clone() for name, tensor in self.tensors().items()})


def zero_shot(raw: Float[Tensor, "K T D"]) -> Float[Tensor, "K D"]:
    """The start of W."""
    return F.normalize(raw.mean(1), dim=1)


def train_head(
    head: ProbeHead,
    pool: Float[Tensor, "M D"],
    labels: Int[Tensor, " M"],
    *,
    scale: float,
    rates: Iterable[float],
    batches: Iterable[Int[Tensor, " B"]],
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Iterator[Float[Tensor, ""]]:
    """Train in place on a pool of images and texts, a step for every loss that is taken."""
    parameters = [tensor.requires_grad_() for tensor in head.tensors().values()]
    optimizer = torch.optim.AdamW(parameters, betas=betas, eps=eps, weight_decay=weight_decay)
    return descent.descend(
        optimizer, rates, batches, lambda rows: F.cross_entropy(head.logits(pool[rows], scale), labels[rows])
    )


def keep_best(
    losses: Iterable[Float[Tensor, ""]],
    head: ProbeHead,
    every: int,
    judge: Callable[[ProbeHead], float] | None,
) -> Iterator[tuple[Float[Tensor, ""], float | None, ProbeHead]]:
    """Per iteration: its loss, what the judge said after it if it was asked, and the first best head so far;
    without a judge the head itself."""
    best, kept = -1.0, head
    for iteration, loss in enumerate(losses):
        said = None
        if judge is not None and iteration % every == 0:
            with torch.no_grad():
                said = judge(head)
            if said > best:
                best, kept = said, head.copy()
        yield loss, said, kept


class CrossModal:
    """The trained head, its start, and their mixture."""

    Settings: ClassVar[type] = Settings
    training: ClassVar[Mapping[str, Any] | None] = None
    reads_query: ClassVar[bool] = False
    tuned: ClassVar[tuple[str, ...]] = ("wise_ft",)

    def __init__(self, head: ProbeHead, origin: Float[Tensor, "K D"], wise_ft: float, facts: Facts) -> None:
        self.head, self.origin, self.wise_ft, self.facts = head, origin, wise_ft, facts
        self.logit_scale = facts.logit_scale
        self.history: list[dict[str, float]] = []

    @classmethod
    def fit(cls, task: Task, settings: Any, tools: Tools) -> Self:
        """Every view of every row, and every template of every class.

        Raises:
            RunError: the loss is not finite. Mismatch: images and texts have different widths.
        """
        require_one_width("cross_modal", task)
        device, texts = tools.device, trained_texts(task)
        origin = zero_shot(texts.raw).to(device)
        images, templates = descent.view_first(task.x), texts.x.shape[1]
        pool = torch.cat([images, texts.x.flatten(0, 1)]).to(device)
        text_labels = torch.arange(len(origin)).repeat_interleave(templates)
        labels = torch.cat([task.labels.repeat(task.x.shape[1]), text_labels]).to(device)
        head = _started(origin, settings)
        rates = descent.warmed_cosine(
            settings.lr,
            settings.iterations,
            warmup=settings.warmup,
            warmup_lr=1e-5,
            total=settings.iterations,
        )
        losses = train_head(
            head,
            pool,
            labels,
            scale=task.logit_scale,
            rates=rates,
            batches=_batches(len(images), len(text_labels), settings),
            weight_decay=settings.weight_decay,
        )
        judge = _judge(task, device)
        steps = keep_best(losses, head, settings.judge_every, judge)
        kept, history = _driven(steps, rates, settings.judge_every, tools)
        kept = ProbeHead(**{name: tensor.detach().cpu() for name, tensor in kept.tensors().items()})
        fitted = cls(kept, origin.cpu(), settings.wise_ft, task.facts())
        fitted.history = history
        return fitted

    def mixed(self) -> ProbeHead:
        """W beside its start."""
        weight = (1 - self.wise_ft) * self.head.weight + self.wise_ft * self.origin
        return replace(self.head, weight=weight)

    def scores(self, x: Float[Tensor, "N D"], query: Query) -> Float[Tensor, "N C"]:
        """Logits of the training classes.

        Raises:
            Mismatch: the query asks about other classes.
        """
        check_classes("cross_modal", self.facts.class_names, query)
        return self.mixed().logits(x, self.logit_scale)

    def tune(
        self, x: Float[Tensor, "N D"], query: Query, grids: Mapping[str, tuple[Any, ...]]
    ) -> Iterator[tuple[dict[str, Any], Float[Tensor, "N C"]]]:
        """Every mixture."""
        for share in grids.get("wise_ft", (self.wise_ft,)):
            yield {"wise_ft": share}, self.tuned_to({"wise_ft": share}).scores(x, query)

    def tuned_to(self, choice: Mapping[str, Any]) -> Self:
        """The same head with another share of its start."""
        other = type(self)(self.head, self.origin, choice.get("wise_ft", self.wise_ft), self.facts)
        other.history = self.history
        return other

    def state(self) -> dict[str, Tensor]:
        """The head, its start and the share."""
        return {**self.head.tensors(), "origin": self.origin, "wise_ft": as_tensor(self.wise_ft)}

    @classmethod
    def restore(cls, state: Mapping[str, Tensor], settings: Any, facts: Facts) -> Self:
        """The inverse of `state`."""
        classes, width = len(facts.class_names), facts.widths[facts.modality]
        shapes: dict[str, tuple[int, ...]] = {"weight": (classes, width), "origin": (classes, width)}
        if settings.head == "adapter":
            shapes |= {"down": (max(1, width // 4), width), "up": (width, max(1, width // 4))}
        check_shapes(shapes | {"wise_ft": ()}, state)
        head = ProbeHead(**{name: state[name] for name in shapes if name != "origin"})
        return cls(head, state["origin"], float(state["wise_ft"]), facts)


def _started(origin: Float[Tensor, "K D"], settings: Any) -> ProbeHead:
    if settings.head == "linear":
        return ProbeHead(origin.clone())
    down, up = clip_adapter.start(origin.shape[1], 4, settings.seed)
    return ProbeHead(origin.clone(), down.to(origin), up.to(origin))


def _batches(images: int, texts: int, settings: Any) -> Iterator[Int[Tensor, " B"]]:
    """Rows of the pool: images first, then as many texts."""
    half = settings.batch_size // 2
    first = descent.endless(images, settings.batch_size - half, settings.iterations, settings.seed)
    second = descent.endless(texts, half, settings.iterations, settings.seed + 1)
    return (torch.cat([a, images + b]) for a, b in zip(first, second, strict=True))


def _judge(task: Task, device: torch.device) -> Callable[[ProbeHead], float] | None:
    held = task.validation
    if held is None:
        return None
    x, labels = held.x[:, 0].to(device), held.labels.to(device)
    return lambda head: descent.accuracy(head.logits(x, task.logit_scale), labels)


def _driven(
    steps: Iterator[tuple[Tensor, float | None, ProbeHead]], rates: list[float], every: int, tools: Tools
) -> tuple[ProbeHead, list[dict[str, float]]]:
    """Take all steps: the head that is kept, and a record per `every` iterations."""
    said: list[float] = []
    kept: list[ProbeHead] = []

    def losses() -> Iterator[Tensor]:
        for loss, judged, head in steps:
            kept[:] = [head]
            if judged is not None:
                said.append(judged)
            yield loss

    length = min(every, len(rates))
    history = list(descent.by_epoch(losses(), rates, length, tools.progress))
    for record, value in zip(history, said, strict=False):
        record["val"] = value
    return kept[0], history
