"""Calibration: whether a score of 0.8 is right in 80 % of the cases.

Logits and labels in, numbers out. The logits are what the method reports, at its own scale (for a space:
logit scale times cosine); `temperature` finds, on *validation* rows, the one number by which they should have
been divided. It never looks for it on the rows that are scored: the caller hands in two different sets.

A collapsed space is perfectly calibrated: it says 1/C and is right in 1/C of the cases. So ECE belongs beside
accuracy and NLL, never alone; NLL of a space that knows nothing is ln C.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import root_scalar

from spaner.align.score.metrics import TIE, Match, check_labels
from spaner.errors import DatasetError

BINS = 15
"""Bins of the expected calibration error, as in Guo et al. 2017."""

COLDEST, HOTTEST = 1e-4, 1e4
"""Bounds of the temperature: rows that are all right have no finite best one."""


def ece(scores: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"], bins: int = BINS) -> float:
    """Expected calibration error: mean over rows of |accuracy - confidence| of their bin (Guo et al. 2017).

    Confidence is the largest softmax probability, bins are equally wide over 0 … 1 and closed above. Equal
    logits share the credit, as everywhere here. 0: every bin is as right as it says; the worst is 1.

    Raises:
        DatasetError: NaN or infinity, no rows, or labels outside 0 … C-1.
    """
    logits = _checked(scores, labels)
    confidence = np.exp(_log_softmax(logits)).max(axis=1)
    near = TIE * np.maximum(np.abs(logits).max(axis=1, keepdims=True), 1)  # rounding grows with the scale
    tied = logits >= logits.max(axis=1, keepdims=True) - near
    credit = tied[np.arange(len(logits)), labels] / np.count_nonzero(tied, axis=1)
    return _binned(confidence, credit, bins)


def of_match(found: Match) -> dict[str, float | None]:
    """`ece` and `nll` of rows that were matched at a logit scale, `ece_fitted` and `nll_fitted` of the same
    at a temperature; None where there was none."""

    def numbers(confidence: np.ndarray, surprise: np.ndarray) -> tuple[float | None, float | None]:
        if not len(confidence):
            return None, None
        return _binned(confidence, found.credit, BINS), float(surprise.mean())

    both = numbers(found.confidence, found.surprise), numbers(found.fitted_confidence, found.fitted_surprise)
    return dict(zip(("ece", "nll", "ece_fitted", "nll_fitted"), (*both[0], *both[1]), strict=True))


def _binned(confidence: Float[np.ndarray, " N"], credit: Float[np.ndarray, " N"], bins: int) -> float:
    edges = np.linspace(0, 1, bins + 1)
    inside = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    return float(np.abs(np.bincount(inside, weights=credit - confidence)).sum() / len(credit))


def nll(scores: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"], temperature: float = 1.0) -> float:
    """Mean negative log probability of the right class, in nats, after division by a temperature.

    ln C is what knowing nothing costs; being sure and wrong costs more than that.

    Raises:
        DatasetError: NaN or infinity, no rows, labels outside 0 … C-1, or a temperature that is not positive.
    """
    if not temperature > 0:
        raise DatasetError(
            f"temperature is {temperature}; expected a number above 0; "
            "fit one with `calibration.temperature` on validation rows"
        )
    log_p = _log_softmax(_checked(scores, labels) / temperature)
    return float(-log_p[np.arange(len(log_p)), labels].mean())


def temperature(scores: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"]) -> float:
    """The T that minimises `nll(scores / T)` on these rows: validation rows, never those that are scored.

    NLL is convex in 1/T and its slope is the mean over rows of (expected minus own logit), so the root of the
    slope is the only minimum. T > 1: the method was too sure. `COLDEST` where every row is right at any
    scale, `HOTTEST` where confidence says nothing.

    Raises:
        DatasetError: NaN or infinity, no rows, or labels outside 0 … C-1.
    """
    logits = _checked(scores, labels)
    own = logits[np.arange(len(logits)), labels]

    def slope(log_beta: float) -> float:
        p = np.exp(_log_softmax(logits * np.exp(log_beta)))
        return float(((p * logits).sum(axis=1) - own).mean())

    low, high = -np.log(HOTTEST), -np.log(COLDEST)
    if slope(low) >= 0:
        return HOTTEST
    if slope(high) <= 0:
        return COLDEST
    return float(np.exp(-root_scalar(slope, bracket=(low, high), xtol=1e-10).root))


def _checked(scores: np.ndarray, labels: np.ndarray) -> Float[np.ndarray, "N C"]:
    check_labels(labels, scores.shape[1])
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(bad):
        raise DatasetError(
            f"scores hold NaN or infinity: {len(bad):,} of {len(scores):,} rows, first at row {bad[0]}; "
            "expected finite logits; lower logit_scale or the learning rate and train again"
        )
    return np.asarray(scores, np.float64)


def _log_softmax(logits: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "N C"]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
