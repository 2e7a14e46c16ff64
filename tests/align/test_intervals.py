"""Bootstrap intervals: a loop, the textbook's standard error, and what pairing buys."""

import numpy as np
import pytest

from spaner.align.score import intervals
from spaner.align.score.intervals import Number, bootstrap, paired_difference
from spaner.errors import DatasetError


def ends(found: Number) -> tuple[float, float]:
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


def width(found: Number) -> float:
    low, high = ends(found)
    return high - low


@pytest.mark.parametrize("block", [1, 1000, 1 << 21])
def test_bootstrap_equals_the_loop_in_any_block_size(monkeypatch, block):
    monkeypatch.setattr(intervals, "BLOCK", block)
    values = np.random.default_rng(0).random(17)
    rng = np.random.default_rng(5)
    means = [sum(values[rng.integers(0, 17)] for _ in range(17)) / 17 for _ in range(211)]
    found = bootstrap(values, resamples=211, level=0.9, seed=5)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.05, 0.95])), abs=0.03)
    assert (
        found
        == bootstrap(values, resamples=211, level=0.9, seed=5)
        != bootstrap(values, resamples=211, seed=6)
    )


def test_accuracy_interval_is_the_textbooks():
    """864 clips at 50 %: standard error 1.7 points, so 95 % lie within 3.3."""
    found = bootstrap(np.arange(864) % 2)
    assert found.value == 0.5
    assert width(found) == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 864), rel=0.1)


def test_pairing_cancels_what_rows_share():
    rng = np.random.default_rng(0)
    difficulty = rng.standard_normal(499)
    a, b = difficulty + 0.1, difficulty + 0.02 * rng.standard_normal(499)
    found = paired_difference(a, b)
    low, high = ends(found)
    assert 0.09 < low < found.value < high < 0.11
    apart = bootstrap(a)
    assert width(apart) > 20 * width(found)


def test_bad_input():
    with pytest.raises(DatasetError, match="one finite value per test row; found none; score the run again"):
        bootstrap(np.array([]))
    with pytest.raises(DatasetError, match="found NaN or infinity in 1 of 3"):
        bootstrap(np.array([1, np.nan, 2]))
    with pytest.raises(
        DatasetError, match="3 rows against 2; a paired difference expects the same test rows twice"
    ):
        paired_difference(np.ones(3), np.ones(2))
