"""What test rows found among classes, a few numbers per row (`Match`), and the numbers that follow from it.

Arrays in, numbers out; how a match is found is in `matching`. Ranking between two sets of rows is in
`retrieval`, the shape of the space in `geometry`, confidence in `intervals`, who is taken for whom in
`confusion`.

It does not load caches, embed or print.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from spaner.errors import DatasetError

TIE = 1e-6
"""Cosines closer than this are equal (float32 rounding of a product over some hundred dimensions)."""

BLOCK = 1 << 21
"""Scores held at once by a blockwise computation (8 MB of float32: about one processor cache)."""


def _none() -> Float[np.ndarray, " 0"]:
    """What stands for cosines where there are none."""
    return np.empty(0)


CERTAINTY = ("confidence", "surprise", "fitted_confidence", "fitted_surprise")
"""Fields of a `Match` that say how sure each row was, as far as scale and temperature are known."""


@dataclass(frozen=True)
class Match:
    """What N rows found among C classes; N-vectors, one entry per row.

    `credit` is the strict score (0 … 1), `credit_by_name` counts every class of the right *name* as right.
    `positive` is the cosine to the row's own class, `hardest` and `negative` the largest and the mean cosine
    to classes of another name. `row_sum` and `target_sum` are sums over rows, from which the centred cosine
    follows; they are empty where cosines are known and vectors are not. All five are empty where scores are
    no cosines. `confidence` is the largest softmax probability and `surprise` the negative log probability of
    the own class (nats), at a logit scale; empty without one. `fitted_confidence` and `fitted_surprise` are
    the same after division by a temperature that was fitted elsewhere; empty without one.
    """

    labels: Int[np.ndarray, " N"]
    predicted: Int[np.ndarray, " N"]
    credit: Float[np.ndarray, " N"]
    credit_by_name: Float[np.ndarray, " N"]
    positive: Float[np.ndarray, " N"] = field(default_factory=_none)
    hardest: Float[np.ndarray, " N"] = field(default_factory=_none)
    negative: Float[np.ndarray, " N"] = field(default_factory=_none)
    row_sum: Float[np.ndarray, " E"] = field(default_factory=_none)
    target_sum: Float[np.ndarray, " E"] = field(default_factory=_none)
    confidence: Float[np.ndarray, " N"] = field(default_factory=_none)
    surprise: Float[np.ndarray, " N"] = field(default_factory=_none)
    fitted_confidence: Float[np.ndarray, " N"] = field(default_factory=_none)
    fitted_surprise: Float[np.ndarray, " N"] = field(default_factory=_none)

    @property
    def has_cosines(self) -> bool:
        """False for the scores of a head."""
        return len(self.positive) > 0

    @staticmethod
    def join(parts: Sequence[Match]) -> Match:
        """The match of all rows from the matches of consecutive blocks."""
        rows = ["labels", "predicted", "credit", "credit_by_name", *CERTAINTY]
        if not parts[0].has_cosines:
            return Match(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in rows})
        rows += ["positive", "hardest", "negative"]
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in rows}
        sums = {
            name: np.sum([getattr(part, name) for part in parts], axis=0)
            for name in ("row_sum", "target_sum")
        }
        return Match(**joined, **sums)


def summary(found: Match) -> dict[str, Any]:
    """The numbers to print together: a high positive cosine alone is also what a collapsed space gives.

    Cosines are None where there are none.
    """
    accuracies: dict[str, Any] = {
        "accuracy": float(found.credit.mean()),
        "accuracy_tie_aware": float(found.credit_by_name.mean()),
    }
    if not found.has_cosines:
        cosines = ("positive_cosine", "margin", "negative_cosine", "centred_cosine")
        return accuracies | dict.fromkeys(cosines)
    return accuracies | {
        "positive_cosine": float(found.positive.mean(dtype=np.float64)),
        "margin": margin(found),
        "negative_cosine": float(found.negative.mean(dtype=np.float64)),
        "centred_cosine": centred_cosine(found) if len(found.row_sum) else None,
    }


def margin(found: Match) -> float:
    """Mean over rows of the cosine to the own class minus the largest cosine to a class of another name."""
    return float((found.positive - found.hardest).mean(dtype=np.float64))


def centred_cosine(found: Match) -> float:
    """Cosine between rows and their class vectors after each side's mean is removed, pooled over rows.

    The sum of (r - mean r) · (c - mean c) over the square root of the product of the two sums of squares.
    Pooling keeps rows that sit on the mean from counting as much as rows that say something. 0 where a side
    has no spread.
    """
    n = len(found.labels)
    row_mean, target_mean = found.row_sum / n, found.target_sum / n
    spread = (1 - row_mean @ row_mean) * (1 - target_mean @ target_mean)
    if 1 - row_mean @ row_mean < TIE or 1 - target_mean @ target_mean < TIE:
        return 0.0
    return float((found.positive.mean(dtype=np.float64) - row_mean @ target_mean) / np.sqrt(spread))


def per_class_accuracy(found: Match, names: Sequence[str]) -> Float[np.ndarray, " C"]:
    """Strict accuracy of each class.

    Raises:
        DatasetError: a class has no test rows, so that its accuracy is undefined.
    """
    counts = np.bincount(found.labels, minlength=len(names))
    check_every_class(counts, names)
    return np.bincount(found.labels, weights=found.credit, minlength=len(names)) / counts


def cosine_cdf(
    cosines: Float[np.ndarray, " N"], at: Float[np.ndarray, " G"] | None = None
) -> tuple[Float[np.ndarray, " G"], Float[np.ndarray, " G"]]:
    """Where to look (default: 401 points from -1 to 1) and the share of cosines at or below each point."""
    at = np.linspace(-1, 1, 401) if at is None else at
    return at, np.searchsorted(np.sort(cosines), at, side="right") / len(cosines)


def ceiling(labels: Int[np.ndarray, " N"], names: Sequence[str]) -> float:
    """The best strict accuracy possible when classes of one name have one vector (ImageNet's list: 0.998)."""
    groups = name_groups(names, len(names))
    return float((1 / np.bincount(groups)[groups[labels]]).mean())


def chance(classes: int) -> float:
    """Strict accuracy of guessing, which is also that of a space where everything coincides."""
    return 1 / classes


def unit(x: Float[np.ndarray, "N E"], what: str) -> Float[np.ndarray, "N E"]:
    """Rows at unit length in float32; a row of zeros stays zero.

    Raises:
        DatasetError: NaN or infinity.
    """
    x = np.ascontiguousarray(x, dtype=np.float32)
    length = np.sqrt(np.einsum("ne,ne->n", x, x))
    bad = np.flatnonzero(~np.isfinite(length))
    if len(bad):
        raise DatasetError(
            f"{what} hold NaN or infinity: {len(bad):,} of {len(x):,}, first at row {bad[0]}; "
            "expected finite numbers; find the rows with `spaner cache verify`, or lower the learning rate"
        )
    return x / np.maximum(length, np.finfo(np.float32).tiny)[:, None]


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Consecutive slices of `rows` such that a slice times `columns` scores stays near `BLOCK`."""
    step = max(1, BLOCK // max(columns, 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def name_groups(names: Sequence[str] | None, classes: int) -> Int[np.ndarray, " C"]:
    """One number per class, equal for classes of equal name.

    Raises:
        DatasetError: fewer than two different classes, or not one name per class.
    """
    groups = (
        np.arange(classes) if names is None else np.unique(np.asarray(names, str), return_inverse=True)[1]
    )
    if len(groups) != classes:
        raise DatasetError(
            f"{len(groups):,} class names for {classes:,} class vectors; expected one each; "
            "extract the text table from the same class list"
        )
    if len(np.unique(groups)) < 2:
        found = "no class" if classes == 0 else "one class only"
        raise DatasetError(
            f"retrieval among {found}: every row would be right; expected two different classes or more; "
            "use a cache with more classes"
        )
    return groups


def check_labels(labels: Int[np.ndarray, " N"], classes: int) -> None:
    """Raise DatasetError for no rows or for a label that names no class."""
    if len(labels) == 0:
        raise DatasetError(
            "no test rows to score: found 0; expected at least 1; choose another split with --split"
        )
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise DatasetError(
            f"label {wrong[0]} in {len(wrong):,} test rows; expected 0 to {classes - 1}; "
            "evaluate on a cache whose text tables hold these classes"
        )


def check_every_class(counts: Int[np.ndarray, " C"], names: Sequence[str]) -> None:
    """Raise DatasetError naming the classes without a test row."""
    empty = [names[int(c)] for c in np.flatnonzero(counts == 0)]
    if empty:
        listed = ", ".join(repr(name) for name in empty[:3]) + (", …" if len(empty) > 3 else "")
        raise DatasetError(
            f"{len(empty):,} of {len(names):,} classes have no test rows: {listed}; "
            "expected at least one each; choose another split with --split, "
            "or leave these classes out of the cache"
        )
