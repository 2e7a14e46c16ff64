"""Learning from images and their captions: what `campe` and `campe_lite` share where `texts` is "caption".

    L = (CE(s x_i.t'_j, s x_i.t-_i) + CE(s t'_j.x_i)) / 2  +  w_div mean over i < j of cos^2 of the blocks

over the pairs of a batch, diagonal targets: each image with one of its captions, by lot another one every
epoch, and with `w_neg` the caption's negated form as one more negative in the image's row. Images without a
caption are left out. The history has the batches' mean `diversity`, and `negation` where captions have a
negated form, before each step.

Knows no tower: who is asked for blocks says how they are made.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from spaner.align.methods import descent
from spaner.align.methods.blocks import diversity, joined
from spaner.align.methods.task import Captions, Task, Tools
from spaner.settings import option


def learned_from() -> Any:
    """The setting `texts` of a method's dataclass."""
    told = "What images are trained beside: their class among all, or a caption of theirs in the batch."
    return option("class", told, axis=None)


class Worded(Protocol):
    """Blocks of some captions, by their places in `Captions`, as they are now, and of their negated forms,
    with which of them have one; where `negated` is false these are measured at most."""

    def __call__(
        self, chosen: Int[Tensor, " B"], /, *, negated: bool
    ) -> tuple[Float[Tensor, "B K E"], Float[Tensor, "B K E"] | None, Bool[Tensor, " B"]]: ...


def pair_entropy(
    logits: Float[Tensor, "B B"],
    negated: Float[Tensor, " B"] | None = None,
    denied: Bool[Tensor, " B"] | None = None,
    weight: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean over both directions of the cross entropy with diagonal targets; an image's own negated caption,
    where `denied` says that there is one, is one more negative of it, counted `weight` times."""
    own = torch.arange(len(logits), device=logits.device)
    back = F.cross_entropy(logits.T, own)
    if negated is not None and denied is not None and weight:
        further = (negated + math.log(weight)).masked_fill(~denied, -math.inf)
        logits = torch.cat([logits, further[:, None]], 1)
    return (F.cross_entropy(logits, own) + back) / 2


def train_captioned(
    worded: Worded,
    parameters: Iterable[nn.Parameter],
    measured: list[dict[str, float]],
    x: Float[Tensor, "M D"],
    captions: Captions,
    *,
    seed: int,
    scale: float,
    div: float,
    neg: float,
    rates: Iterable[float],
    batches: Iterable[Int[Tensor, " B"]],
    weight_decay: float,
) -> Iterator[Float[Tensor, ""]]:
    """Train with AdamW, a step for every loss that is taken.

    Args:
        measured: gets `diversity` and `negation` of every batch.
        x: unit rows; row i is of the sample i % N, all of which have captions.
    """
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=weight_decay)
    generator, samples = torch.Generator().manual_seed(seed), len(captions.count)

    def loss(rows: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        own = rows.cpu() % samples  # captions are counted on the host
        lot = torch.rand(len(own), generator=generator, dtype=torch.float64)
        chosen = captions.start[own] + (lot * captions.count[own]).long()
        blocks, forms, denied = worded(chosen, negated=neg > 0)
        text, images = joined(blocks), x[rows]
        negated = None if forms is None else scale * (images * joined(forms)).sum(1)
        logits, spread = scale * images @ text.T, diversity(blocks)
        measured.append(_measured(spread, logits.diagonal(), negated, denied))
        entropy = pair_entropy(logits, negated, denied, neg)
        return entropy + div * spread if div else entropy

    return descent.descend(optimizer, rates, batches, loss)


def _measured(
    spread: Float[Tensor, ""],
    own: Float[Tensor, " B"],
    negated: Float[Tensor, " B"] | None,
    denied: Bool[Tensor, " B"],
) -> dict[str, float]:
    found = {"diversity": float(spread.detach())}
    if negated is not None and denied.any():
        found["negation"] = int((own > negated)[denied].sum()) / int(denied.sum())
    return found


def follow_captions(
    worded: Worded, learned: nn.Module, task: Task, settings: Any, tools: Tools, device: torch.device
) -> list[dict[str, float]]:
    """Train `learned`, through which `worded` goes, on the samples that have captions.

    Raises:
        RunError: the loss is not finite.
    """
    captions = task.captions
    assert captions is not None, "the task is one of captions"
    there = captions.count > 0
    rates, batches, each = descent.dassl_plan(int(there.sum()), task.x.shape[1], settings)
    kept = Captions(**{**vars(captions), "start": captions.start[there], "count": captions.count[there]})
    measured: list[dict[str, float]] = []
    losses = train_captioned(
        worded,
        learned.parameters(),
        measured,
        descent.view_first(task.x[there]).to(device),
        kept,
        seed=settings.seed,
        scale=task.logit_scale,
        div=settings.div,
        neg=settings.neg,
        rates=rates,
        batches=batches,
        weight_decay=settings.weight_decay,
    )
    history = descent.by_epoch(losses, rates, each, tools.progress)
    return [epoch | _means(measured[-each:]) for epoch in history]


def _means(batches: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each number over the batches that have it."""
    names = dict.fromkeys(name for batch in batches for name in batch)
    values = {name: [batch[name] for batch in batches if name in batch] for name in names}
    return {name: sum(each) / len(each) for name, each in values.items()}
