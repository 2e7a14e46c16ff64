"""Calibration against loops, on scores whose right answer is known, and on a collapsed space."""

import math

import numpy as np
import pytest

from spaner.align.score import matching, metrics
from spaner.align.score.calibration import COLDEST, HOTTEST, ece, nll, of_match, temperature
from spaner.errors import DatasetError

N, C = 211, 7


def scores() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, C, N)
    return rng.standard_normal((N, C)) + 2 * np.eye(C)[labels], labels


def probabilities(row: np.ndarray) -> list[float]:
    powers = [math.exp(float(v)) for v in row]
    return [power / sum(powers) for power in powers]


def test_ece_equals_the_loop():
    logits, labels = scores()
    for bins in (15, 4):
        total = 0.0
        for b in range(bins):
            gaps = []
            for row, label in zip(logits, labels, strict=True):
                p = probabilities(row)
                if b / bins < max(p) <= (b + 1) / bins:
                    gaps.append((p.index(max(p)) == label) - max(p))
            total += abs(sum(gaps)) / N
        assert ece(logits, labels, bins) == pytest.approx(total)


def test_nll_equals_the_loop():
    logits, labels = scores()
    for heat in (1.0, 0.3, 5.0):
        own = [math.log(probabilities(row / heat)[c]) for row, c in zip(logits, labels, strict=True)]
        assert nll(logits, labels, heat) == pytest.approx(-sum(own) / N)


def test_temperature_finds_the_scale_that_labels_were_drawn_with():
    """Labels drawn from softmax(logits): multiplied by 20, the logits need T = 20 and are then calibrated."""
    rng = np.random.default_rng(1)
    logits = 2 * rng.standard_normal((20_011, C))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random((len(p), 1)) > p.cumsum(axis=1)).sum(axis=1)
    assert temperature(20 * logits, labels) == pytest.approx(20, rel=0.05)
    best = temperature(20 * logits, labels)
    assert all(nll(20 * logits, labels, best) < nll(20 * logits, labels, best * f) for f in (0.99, 1.01))
    fitted = temperature(20 * logits[:5000], labels[:5000])
    found = of_match(matching.match_scores(logits, labels, scale=20, temperature=fitted))
    after, before, cost_after, cost_before = (
        found[name] or 0.0 for name in ("ece_fitted", "ece", "nll_fitted", "nll")
    )
    assert 0 < after < 0.02 < 0.2 < before
    assert 0 < cost_after < math.log(C) < cost_before


def test_a_collapsed_space_fools_ece_but_not_nll():
    logits, labels = np.full((N, C), 20.0), np.arange(N) % C
    logits += 1e-6 * np.random.default_rng(0).standard_normal((N, C))  # the noise of float32
    assert ece(logits, labels) == pytest.approx(0, abs=0.01)
    assert nll(logits, labels) == pytest.approx(math.log(C), abs=1e-4)


def test_no_finite_temperature():
    assert temperature(np.eye(C), np.arange(C)) == COLDEST  # all right: the colder the better
    assert temperature(-np.eye(C), np.arange(C)) == HOTTEST  # all wrong: the less said the better
    assert temperature(np.ones((C, C)), np.arange(C)) == HOTTEST


def test_bad_input():
    logits, labels = scores()
    with pytest.raises(DatasetError, match="scores hold NaN or infinity: 1 of 211 rows, first at row 3; exp"):
        ece(np.where(np.arange(N)[:, None] == 3, np.nan, logits), labels)
    with pytest.raises(DatasetError, match="label 7 in 1 test rows; expected 0 to 6"):
        nll(logits, np.where(np.arange(N) == 5, 7, labels))
    with pytest.raises(DatasetError, match="temperature is 0; expected a number above 0; fit one with"):
        nll(logits, labels, 0)
    with pytest.raises(DatasetError, match="no test rows to score"):
        temperature(logits[:0], labels[:0])


@pytest.mark.parametrize("block", [1 << 21, 50])
def test_a_match_knows_its_calibration(block: int, monkeypatch: pytest.MonkeyPatch):
    """Row by row while scoring, as from the whole matrix of logits; what is added counts, and so does the
    scale."""
    monkeypatch.setattr(metrics, "BLOCK", block)
    rng = np.random.default_rng(2)
    rows, classes, added = rng.standard_normal((N, 9)), rng.standard_normal((C, 9)), rng.random((N, C)) / 9
    labels = rng.integers(0, C, N)
    cosines = metrics.unit(rows, "rows") @ metrics.unit(classes, "classes").T
    for more in (None, added):
        found = of_match(matching.match(rows, classes, labels, added=more, scale=12.5, temperature=1.7))
        logits = 12.5 * (cosines if more is None else cosines + more)
        expected = {"ece": ece(logits, labels), "nll": nll(logits, labels)}
        expected |= {"ece_fitted": ece(logits / 1.7, labels), "nll_fitted": nll(logits, labels, 1.7)}
        assert found == pytest.approx(expected, rel=1e-5)
    values, labels = scores()
    found = of_match(matching.match_scores(values / 3, labels, scale=3))
    unfitted = {"ece_fitted": None, "nll_fitted": None}
    known = {key: value for key, value in found.items() if key not in unfitted}
    assert known == pytest.approx({"ece": ece(values, labels), "nll": nll(values, labels)}, rel=1e-5)
    assert of_match(matching.match(rows, classes, labels)) == {"ece": None, "nll": None, **unfitted}


def test_a_class_that_a_head_never_saw_is_a_large_surprise_and_no_warning():
    lowest = np.finfo(np.float32).min
    found = matching.match_scores(np.array([[1, lowest], [2, 1]], np.float32), np.array([1, 0]), scale=10)
    assert found.confidence == pytest.approx([1, 1 / (1 + math.exp(-10))])
    assert found.surprise[0] > 1e38
