"""A number and how sure it is: bootstrap intervals over test rows, paired differences between two runs, and
means over repetitions.

The interval is the percentile bootstrap over test rows: it answers "what if other rows had been tested", not
"what if training had begun with another seed". Seeded: the same values give the same interval on every
machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from spaner.errors import DatasetError

BLOCK = 1 << 21
"""Values resampled at once."""


@dataclass(frozen=True)
class Number:
    """A measured value: `low` and `high` bound its 95 % interval over test rows, or `std` is the sample's
    standard deviation over `n` repetitions."""

    value: float
    low: float | None = None
    high: float | None = None
    std: float | None = None
    n: int = 1

    @staticmethod
    def of(value: Number | float | None) -> Number | None:
        """A number as it is, a plain float as one, or nothing."""
        return value if value is None or isinstance(value, Number) else Number(float(value))

    @staticmethod
    def over(values: Iterable[float | None]) -> Number | None:
        """Mean and deviation over repetitions; nothing where one of them has no value."""
        found = list(values)
        known = [float(value) for value in found if value is not None]
        if not known or len(known) < len(found):
            return None
        std = statistics.stdev(known) if len(known) > 1 else None
        return Number(statistics.fmean(known), std=std, n=len(known))


def bootstrap(
    values: Float[np.ndarray, " N"] | Int[np.ndarray, " N"],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Number:
    """Mean of one value per test row (credit, cosine, margin …) with its bootstrap interval.

    Raises:
        DatasetError: no values, or NaN.
    """
    values = np.asarray(values, np.float64)
    if len(values) == 0 or not np.isfinite(values).all():
        bad = (
            f"NaN or infinity in {np.sum(~np.isfinite(values)):,} of {len(values):,}"
            if len(values)
            else "none"
        )
        raise DatasetError(
            f"a confidence interval needs one finite value per test row; found {bad}; score the run again"
        )
    rng = np.random.default_rng(seed)
    step = max(1, BLOCK // len(values))
    means = [
        values[rng.integers(0, len(values), (min(step, resamples - done), len(values)))].mean(axis=1)
        for done in range(0, resamples, step)
    ]
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Number(float(values.mean()), float(low), float(high))


def paired_difference(
    a: Float[np.ndarray, " N"],
    b: Float[np.ndarray, " N"],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Number:
    """Mean of a - b with its interval; entry i of both is the same test row, so what rows share cancels.

    An interval that excludes 0 says that the two differ on these rows.

    Raises:
        DatasetError: different numbers of rows, no values, or NaN.
    """
    if len(a) != len(b):
        raise DatasetError(
            f"{len(a):,} rows against {len(b):,}; a paired difference expects the same test rows twice; "
            "score both runs on one table of one cache"
        )
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return bootstrap(difference, resamples=resamples, level=level, seed=seed)
