"""Class retrieval: every test row looks for its class among C class vectors, on the device where these lie.

Vectors in (NumPy arrays, or tensors on any device), a `metrics.Match` out, whose numbers lie on the host.
Rows are scored in blocks, so memory does not grow with N, and of a block a few numbers per row are fetched.

Ties. Two scores closer than `TIE` are equal: float32 products of the same two vectors differ by that much
from one matrix shape, or device, to the next. A row whose best score is shared by t classes gets credit 1/t
when its own class is among them: the accuracy expected when ties are broken by lot. A space in which
everything coincides therefore scores exactly chance, whatever the labels are, and a class name that occurs
twice costs half of its rows.

It does not load caches, embed or print; what follows from a match is in `metrics`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spaner.align.score import metrics
from spaner.align.score.metrics import CERTAINTY, TIE, Match, blocks, check_labels, name_groups
from spaner.device import fast_products
from spaner.errors import DatasetError

Array = np.ndarray | Tensor

LEAST = -80.0
"""Exponent below which nothing is added to a sum of at least 1: a CPU takes ten times as long for what
is too small for a normal number."""


@torch.no_grad()
def match(
    rows: Float[Array, "N E"],
    classes: Float[Array, "C E"],
    labels: Int[np.ndarray, " N"],
    names: Sequence[str] | None = None,
    added: Float[Array, "N C"] | None = None,
    scale: float | None = None,
    temperature: float | None = None,
) -> Match:
    """Score every row against every class by cosine.

    Args:
        rows: embeddings, any length (made unit-length here).
        classes: one vector per class, row c for class c; on the device of the rows.
        labels: the class of each row.
        names: class names; classes of equal name are no negatives of each other. Default: all different.
        added: what decides together with the cosines, in their units. It moves accuracy and confidence alone.
        scale: how many units of a logit one unit of cosine is; None: no confidence.
        temperature: what logits are divided by for the fitted confidence; None: there is none.

    Raises:
        DatasetError: NaN or infinity, labels outside 0 … C-1, no rows, or fewer than two different classes.
    """
    groups = name_groups(names, len(classes))
    check_labels(labels, len(classes))
    queries, targets = unit(rows, "rows"), unit(classes, "class vectors")
    namesakes, more = _Namesakes.of(groups, queries.device), None if added is None else _tensor(added)
    scales, total, own = _Scales(scale, temperature), targets.sum(0), _on(labels, queries.device)
    found, sums = [], torch.zeros_like(total, dtype=torch.float64)
    parts = list(blocks(len(queries), len(targets)))
    room = queries.new_empty(parts[0].stop, len(targets))  # new memory for every block costs a tenth
    for block in parts:
        with fast_products(queries.device):
            scores = torch.mm(queries[block], targets.T, out=room[: block.stop - block.start])
        decided = scores if more is None else scores + more[block]
        numbers = _decide(decided, own[block], namesakes) | scales.certainty(decided, own[block])
        cosines = _cosines(scores, queries[block] @ total, own[block], namesakes)  # overwrites scores
        found.append(numbers | cosines)
        sums += queries[block].sum(0)
    counts = np.bincount(labels, minlength=len(classes))
    return Match(
        labels,
        **_joined(found),
        row_sum=_host(sums),
        target_sum=counts @ _host(targets).astype(np.float64),
    )


@torch.no_grad()
def match_scores(
    scores: Float[Array, "N C"],
    labels: Int[np.ndarray, " N"],
    names: Sequence[str] | None = None,
    scale: float | None = None,
    temperature: float | None = None,
    *,
    cosines: bool = False,
) -> Match:
    """What rows found by scores that somebody else gave: accuracy and confidence, and cosines if they are.

    Args:
        scores: in units of a cosine, so that `TIE` means the same.
        scale: how many units of a logit one unit of the scores is; None: no confidence.
        temperature: as in `match`.
        cosines: whether the scores are cosines. Nobody knows the vectors behind them, so that there is no
            centred cosine.

    Raises:
        DatasetError: as `match`.
    """
    groups = name_groups(names, scores.shape[1])
    check_labels(labels, scores.shape[1])
    given = _tensor(scores)
    if odd := int((~given.isfinite()).sum()):
        raise DatasetError(
            f"scores hold NaN or infinity: {odd:,} of {given.numel():,}; "
            "expected finite numbers; train again with a smaller lr"
        )
    namesakes, own = _Namesakes.of(groups, given.device), _on(labels, given.device)
    numbers = _decide(given, own, namesakes) | _Scales(scale, temperature).certainty(given, own)
    if cosines:
        numbers |= _cosines(given.clone(), given.sum(1), own, namesakes)
    return Match(labels, **_joined([numbers]))


def unit(x: Float[Array, "N E"], what: str) -> Float[Tensor, "N E"]:
    """Rows at unit length in float32, where they lie; a row of zeros stays zero.

    Raises:
        DatasetError: NaN or infinity.
    """
    given = _tensor(x).float()
    length = given.norm(dim=1, keepdim=True)
    if not length.isfinite().all():
        metrics.unit(_host(given), what)  # which refuses them, and says where they are
    return given / length.clamp(min=torch.finfo(torch.float32).tiny)


@dataclass(frozen=True)
class _Namesakes:
    """For each class the classes of its name, itself included, padded to the same number with itself."""

    columns: Int[Tensor, "C M"]
    real: Bool[Tensor, "C M"]  # False where padded

    @staticmethod
    def of(groups: Int[np.ndarray, " C"], device: torch.device) -> "_Namesakes":
        counts, order = np.bincount(groups), groups.argsort(kind="stable")
        place = np.arange(len(groups)) - (counts.cumsum() - counts)[groups[order]]  # within its name
        members = np.full((len(counts), counts.max()), -1)
        members[groups[order], place] = order
        alike = members[groups]
        columns = np.where(alike < 0, np.arange(len(groups))[:, None], alike)
        return _Namesakes(_on(columns, device), _on(alike >= 0, device))


def _decide(
    scores: Float[Tensor, "B C"], labels: Int[Tensor, " B"], namesakes: _Namesakes
) -> dict[str, Tensor]:
    """`predicted`, `credit` and `credit_by_name` of a `Match`."""
    best = scores.amax(1, keepdim=True)
    tied = (scores >= best - TIE * best.abs().clamp(min=1)).to(torch.uint8)
    ties = tied.sum(1, dtype=torch.int32).double()
    columns, real = namesakes.columns[labels], namesakes.real[labels]
    return {
        "predicted": tied.argmax(1),
        "credit": tied.gather(1, labels[:, None])[:, 0] / ties,
        "credit_by_name": (tied.gather(1, columns) * real).sum(1) / ties,
    }


def _cosines(
    scores: Float[Tensor, "B C"],
    sums: Float[Tensor, " B"],
    labels: Int[Tensor, " B"],
    namesakes: _Namesakes,
) -> dict[str, Tensor]:
    """`positive`, `hardest` and `negative` of a `Match`; `sums` are over classes. Overwrites `scores`."""
    columns, real = namesakes.columns[labels], namesakes.real[labels]
    alike = (scores.gather(1, columns) * real).sum(1)
    positive = scores.gather(1, labels[:, None])[:, 0]
    scores.scatter_(1, columns, -torch.inf)
    return {
        "positive": positive,
        "hardest": scores.amax(1),
        "negative": (sums - alike) / (scores.shape[1] - real.sum(1)),
    }


@dataclass(frozen=True)
class _Scales:
    """How scores become logits, and what these are divided by where that was fitted."""

    scale: float | None
    temperature: float | None = None

    def certainty(self, scores: Float[Tensor, "B C"], labels: Int[Tensor, " B"]) -> dict[str, Tensor]:
        """The fields of a `Match` that `CERTAINTY` names, as far as they are known."""
        if self.scale is None:
            return {}
        found = _certainty(scores, labels, self.scale)
        if self.temperature is not None:
            found += _certainty(scores, labels, self.scale / self.temperature)
        return dict(zip(CERTAINTY, found, strict=False))


def _certainty(scores: Float[Tensor, "B C"], labels: Int[Tensor, " B"], scale: float) -> tuple[Tensor, ...]:
    """Confidence and surprise, from one pass of exponentials over the block. A class that no head knows has
    the least number as its score."""
    best, own = scores.amax(1, keepdim=True), scores.gather(1, labels[:, None])
    powers = (scores - best).mul_(scale).clamp_(min=LEAST)
    total = powers.exp_().sum(1).double()
    return 1 / total, total.log() + scale * (best.double() - own)[:, 0]


def _tensor(x: Array) -> Tensor:
    if isinstance(x, Tensor):
        return x
    return torch.from_numpy(np.require(x, requirements=["C", "W"]))  # caches hand out read-only maps


def _on(x: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(x.astype(bool if x.dtype == bool else np.int64)).to(device)


def _host(x: Tensor) -> np.ndarray:
    return x.cpu().numpy()


def _joined(blocks: Sequence[dict[str, Tensor]]) -> dict[str, np.ndarray]:
    return {name: _host(torch.cat([block[name] for block in blocks])) for name in blocks[0]}
