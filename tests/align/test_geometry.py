"""The shape of the space against loops, and at its two ends: everything in one point, everything apart."""

import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from spaner.align.score.geometry import modality_gap, plane, separability, uniformity
from spaner.errors import DatasetError

N, M, E = 29, 31, 7


def clouds() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((N, E)), rng.standard_normal((M, E)) + 1


def unit(row: np.ndarray) -> np.ndarray:
    return row / math.sqrt(sum(float(v) ** 2 for v in row))


def test_modality_gap_equals_the_loop():
    a, b = clouds()
    centroids = [sum(unit(row) for row in side) / len(side) for side in (a, b)]
    expected = math.sqrt(sum((p - q) ** 2 for p, q in zip(*centroids, strict=True)))
    assert modality_gap(a, b) == pytest.approx(expected, abs=1e-6)
    assert modality_gap(5 * a, a) == pytest.approx(0, abs=1e-6)  # length does not count
    assert modality_gap(np.eye(1, E), -np.eye(1, E)) == pytest.approx(2)


def test_uniformity_equals_the_loop(monkeypatch):
    monkeypatch.setattr("spaner.align.score.metrics.BLOCK", 100)
    x = clouds()[0]
    rows = [unit(row) for row in x]
    pairs = [
        math.exp(-2 * sum((p - q) ** 2)) for i, p in enumerate(rows) for j, q in enumerate(rows) if i != j
    ]
    assert uniformity(x) == pytest.approx(math.log(sum(pairs) / len(pairs)), abs=1e-5)


def test_uniformity_is_worst_in_a_collapsed_space_and_samples_by_seed():
    assert uniformity(np.tile([0.2, 0.5, 0.1], (N, 1))) == pytest.approx(0, abs=1e-5)
    x = np.random.default_rng(1).standard_normal((997, E))
    whole = uniformity(x)
    assert uniformity(x, limit=499, seed=3) == uniformity(x, limit=499, seed=3) != whole
    assert uniformity(x, limit=499) == pytest.approx(whole, abs=0.1)


def test_separability_tells_one_cloud_from_two():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((211, E)), rng.standard_normal((53, E))
    assert separability(a, b) == pytest.approx(0.5, abs=0.12)  # 4 to 1: answering "a" would be right in 80 %
    assert separability(a - 9, b + 9) == 1
    assert separability(a, b, limit=41, seed=2) == separability(a, b, limit=41, seed=2)


def test_plane_keeps_clusters_together_and_repeats():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal((13, E)) - 9, rng.standard_normal((17, E)) + 9])
    places = plane(x, seed=3)
    assert np.array_equal(places, plane(x, seed=3))
    apart = np.linalg.norm(places[:13].mean(0) - places[13:].mean(0))
    assert apart > 2 * places[:13].std()
    with pytest.raises(
        DatasetError, match="t-SNE needs 4 rows; found 3; expected more to look at; use a larger split"
    ):
        plane(x[:3])


def test_separability_counts_each_modality_the_same():
    """Overlapping clouds, 5 to 1: the folds by hand, the share right of each side, their mean."""
    rng = np.random.default_rng(0)
    sides = [rng.standard_normal((101, E)), rng.standard_normal((23, E)) + 0.5]
    x, modality = (
        np.concatenate([[unit(row) for row in side] for side in sides]),
        np.repeat([0, 1], [101, 23]),
    )
    scores = []
    for train, test in StratifiedKFold(5, shuffle=True, random_state=7).split(x, modality):
        model = LogisticRegression(class_weight="balanced").fit(x[train], modality[train])
        right = model.predict(x[test]) == modality[test]
        scores.append((right[modality[test] == 0].mean() + right[modality[test] == 1].mean()) / 2)
    assert separability(*sides, seed=7) == pytest.approx(sum(scores) / 5, abs=1e-3)


def test_bad_input():
    a, b = clouds()
    with pytest.raises(
        DatasetError, match="a modality has no rows; expected at least 1 on each side; choose another"
    ):
        modality_gap(a[:0], b)
    with pytest.raises(
        DatasetError, match="rows hold NaN or infinity: 1 of 29, first at row 3; expected finite"
    ):
        uniformity(np.where(np.arange(N)[:, None] == 3, np.nan, a))
    with pytest.raises(DatasetError, match="found 1 rows; expected 2 or more; use a larger split"):
        uniformity(a[:1])
    with pytest.raises(
        DatasetError, match="separability needs 5 rows of each modality; found 29 and 4; use a larger"
    ):
        separability(a, b[:4])
