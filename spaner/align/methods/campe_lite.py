"""CAMPE without a tower: K attention queries over the cached embeddings of many templates. A reconstruction.

    e_ki = sum_j softmax_j(sqrt(D) q_i.t_kj) t_kj,   t'_k = n([P_1 e_k1; ...; P_K e_kK]),   logits = s x.t'_k

with t_kj class k in template j, a query q_i (D) and a map P_i (D -> D / K) per block. The loss is

    cross entropy with w_neg s x.t-_y as one more negative in each row  +  w_div mean over i < j of cos^2

of the blocks; t-_y is the row's own class in negated templates. After Kim & Angelova (arXiv:2508.02762), as
far as it tells. Reconstruction: the paper's weights, K and code are not public; queries, maps, the place of
the negative, optimiser and every default are ours. It starts at q = 0 and with the identity's rows as maps,
which is the mean of the templates: untrained, it is zero-shot.

What `campe` shares with it stands here too. Needs one width for both modalities, of which K is a divisor.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from spaner.align.methods import descent, prompting
from spaner.align.methods.prompting import LearnedTexts
from spaner.align.methods.state import load_tensors, module_tensors
from spaner.align.methods.support import require_one_width
from spaner.align.methods.task import Facts, Task, Tools
from spaner.errors import Mismatch, RunError
from spaner.settings import check, option


class Asked(Protocol):
    """Blocks of all classes as they are now; `negated`: of their negated forms too, where there are any."""

    def __call__(self, *, negated: bool) -> tuple[Float[Tensor, "C K E"], Float[Tensor, "C K E"] | None]: ...


@dataclass(frozen=True)
class Settings:
    """Settings of CAMPE-lite."""

    blocks: int = option(4, "Prompts K, a divisor of the embedding's width: each fills D / K of it.", low=1)
    div: float = option(0.1, "Weight of the blocks' mean squared cosine; 0: off.", low=0)
    neg: float = option(0.0, "Weight of the negated class as one more negative a row; 0: off.", low=0)
    negated: str = option("negated", "Text table of negated templates, for `neg`.", axis=None)

    def __post_init__(self) -> None:
        check(self)


def joined(blocks: Float[Tensor, "C K E"]) -> Float[Tensor, "C D"]:
    """The blocks of a class side by side, at unit length."""
    return F.normalize(blocks.flatten(1), dim=1)


def diversity(blocks: Float[Tensor, "C K E"]) -> Float[Tensor, ""]:
    """Mean squared cosine over all pairs of a class's blocks and all classes: 0 where all stand at right
    angles, 1 where all say the same; 0 of a single block."""
    unit = F.normalize(blocks, dim=2)
    first, second = torch.triu_indices(unit.shape[1], unit.shape[1], 1).unbind()
    if not len(first):
        return blocks.new_zeros(())
    return (unit @ unit.mT)[:, first, second].square().mean()


def negation_entropy(
    logits: Float[Tensor, "B C"],
    labels: Int[Tensor, " B"],
    negated: Float[Tensor, " B"] | None,
    weight: float,
) -> Float[Tensor, ""]:
    """Cross entropy with a row's own negated class as one more negative, counted `weight` times; without it
    at 0."""
    if negated is not None and weight:
        logits = torch.cat([logits, negated[:, None] + math.log(weight)], 1)
    return F.cross_entropy(logits, labels)


def told_apart(
    x: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    text: Float[Tensor, "C D"],
    negated: Float[Tensor, "C D"],
) -> float:
    """Share of rows that are nearer to their caption than to its negated form; chance is 1/2, and a tie is
    no answer. All vectors have unit length."""
    margin = (x * (text - negated)[labels]).sum(1)
    return float((margin > 0).double().mean())


class BlockMaps(nn.Module):
    """A map D -> D / K for each of K vectors, at the start the K-th part of the identity's rows."""

    def __init__(self, blocks: int, dim: int) -> None:
        super().__init__()
        self.maps = nn.Parameter(torch.eye(dim).unflatten(0, (blocks, -1)).clone())

    def forward(self, vectors: Float[Tensor, "K C D"]) -> Float[Tensor, "C K E"]:
        """Block i of every class, made of its vector i."""
        return torch.einsum("kcd,ked->cke", vectors, self.maps.to(vectors.dtype))


class TemplateQueries(nn.Module):
    """K queries (K, D) over a class's templates, and the maps of their blocks."""

    def __init__(self, blocks: int, dim: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(blocks, dim))
        self.heads = BlockMaps(blocks, dim)

    def forward(self, texts: Float[Tensor, "C T D"]) -> Float[Tensor, "C K E"]:
        """Blocks of every class from unit vectors of its templates, however many."""
        scale = math.sqrt(texts.shape[2])
        weights = torch.einsum("kd,ctd->kct", scale * self.queries, texts).softmax(2)
        return self.heads(torch.einsum("kct,ctd->kcd", weights, texts))


def train_blocks(
    asked: Asked,
    parameters: Iterable[nn.Parameter],
    measured: list[dict[str, float]],
    every: int,
    x: Float[Tensor, "M D"],
    labels: Int[Tensor, " N"],
    *,
    scale: float,
    div: float,
    neg: float,
    rates: Iterable[float],
    batches: Iterable[Int[Tensor, " B"]],
    weight_decay: float,
) -> Iterator[Float[Tensor, ""]]:
    """Train with AdamW, a step for every loss that is taken.

    Args:
        measured: after each `every` steps gets what `measure` finds on the first view of all rows.
        x: unit rows, row i of class labels[i % N].
        div, neg: weights of the two further terms.
    """
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=weight_decay)

    def loss(rows: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        (blocks, denied), own = asked(negated=neg > 0), labels[rows % len(labels)]
        logits = scale * x[rows] @ joined(blocks).T
        negated = None if denied is None else scale * (x[rows] * joined(denied)[own]).sum(1)
        entropy = negation_entropy(logits, own, negated, neg)
        return entropy + div * diversity(blocks) if div else entropy

    for step, value in enumerate(descent.descend(optimizer, rates, batches, loss), 1):
        if step % every == 0:
            measured.append(measure(asked, x[: len(labels)], labels))
        yield value


@torch.no_grad()
def measure(asked: Asked, x: Float[Tensor, "N D"], labels: Int[Tensor, " N"]) -> dict[str, float]:
    """`diversity` of the blocks, and `negation` (see `told_apart`) where classes have a negated form."""
    blocks, denied = asked(negated=True)
    found = {"diversity": float(diversity(blocks))}
    if denied is not None:
        found["negation"] = told_apart(x, labels, joined(blocks), joined(denied))
    return found


def follow_blocks(
    asked: Asked, learned: nn.Module, task: Task, settings: Any, tools: Tools, device: torch.device
) -> list[dict[str, float]]:
    """Train `learned`, through which `asked` goes; the history has what `measure` finds after every epoch.

    Raises:
        RunError: the loss is not finite.
    """
    measured: list[dict[str, float]] = []
    every = descent.per_epoch(len(task.x), settings.batch_size, drop_last=True)
    terms = {"div": settings.div, "neg": settings.neg}
    train = partial(train_blocks, asked, learned.parameters(), measured, every, **terms)
    history = descent.follow(train, task, settings, tools, device=device)
    return [epoch | found for epoch, found in zip(history, measured, strict=True)]


def check_blocks(method: str, blocks: int, task: Task) -> int:
    """The width D, if it can be cut into blocks.

    Raises:
        Mismatch: the modalities have different widths, or K is no divisor of theirs.
    """
    require_one_width(method, task)
    dim = task.x.shape[2]
    if dim % blocks:
        near = max(k for k in range(1, blocks + 1) if dim % k == 0)
        raise Mismatch(
            f"blocks is {blocks}, and embeddings of {dim} numbers do not fall into {blocks} equal blocks; "
            f"expected a divisor of {dim}; use blocks={near}"
        )
    return dim


class CampeLite(LearnedTexts):
    """Queries and maps, and one unit vector per class that they made of its templates."""

    Settings: ClassVar[type] = Settings
    name: ClassVar[str] = "campe_lite"
    training: ClassVar[Mapping[str, Any] | None] = {
        "epochs": 50,
        "batch_size": 32,
        "lr": 1e-3,
        "weight_decay": 0.0,
    }

    def __init__(self, learned: TemplateQueries, text: Tensor, facts: Facts) -> None:
        super().__init__(text, facts)
        self.learned = learned

    @classmethod
    def fit(cls, task: Task, settings: Any, tools: Tools) -> Self:
        """Every row once an epoch, in a random one of its views, among all classes.

        Raises:
            Mismatch: see `check_blocks`. RunError: no negated templates, or a loss that is not finite.
        """
        dim = check_blocks(cls.name, settings.blocks, task)
        texts, denied = task.text.to(tools.device), negated_texts(task, settings)
        denied = None if denied is None else denied.to(tools.device)
        learned = TemplateQueries(settings.blocks, dim).to(tools.device)

        def asked(*, negated: bool) -> tuple[Tensor, Tensor | None]:
            return learned(texts), learned(denied) if negated and denied is not None else None

        history = follow_blocks(asked, learned, task, settings, tools, tools.device)
        with torch.no_grad():
            text = joined(learned(texts)).cpu()
            negated = None if denied is None else joined(learned(denied)).cpu()
        fitted = cls(learned.requires_grad_(requires_grad=False).cpu(), text, task.facts())
        fitted.history, fitted.negated = history, negated
        return fitted

    @torch.no_grad()
    def caption_rows(self, t: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """A caption has one wording, so that only the maps of the blocks change it."""
        return joined(self.learned(t[:, None]))

    def state(self) -> dict[str, Tensor]:
        """Queries, maps and class vectors."""
        return module_tensors(self.learned) | self.class_tensors()

    @classmethod
    def restore(cls, state: Mapping[str, Tensor], settings: Any, facts: Facts) -> Self:
        """The inverse of `state`."""
        text, tensors = prompting.apart(state, facts, "queries", "heads.maps")
        learned = load_tensors(TemplateQueries(settings.blocks, facts.widths["text"]), tensors)
        fitted = cls(learned.requires_grad_(requires_grad=False), text, facts)
        fitted.negated = state.get("negated")
        return fitted


def negated_texts(task: Task, settings: Any) -> Float[Tensor, "C T D"] | None:
    """The classes in negated templates, where the cache has them.

    Raises:
        RunError: it has none, and `neg` needs them.
    """
    if settings.negated in task.texts:
        return task.texts[settings.negated].x
    if settings.neg:
        raise RunError(
            f"neg is {settings.neg:g}, and the cache has no text table {settings.negated!r}; expected one of "
            "negated templates; write lines such as `a photo without a {}.` into "
            f"{settings.negated}.txt and type `spaner extract --templates {settings.negated}.txt` for this "
            "cache, or use neg=0"
        )
    return None
