"""Retrieval against loops a child could check; ties against every way of breaking them."""

from itertools import permutations
from math import comb

import numpy as np
import pytest

from spaner.align.score import metrics
from spaner.align.score.retrieval import hubness, retrieval
from spaner.errors import DatasetError

N, M, E, C = 19, 23, 5, 3


def two_sides(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((C, E))
    a, b = rng.integers(0, C, N), rng.integers(0, C, M)
    return centres[a] + rng.standard_normal((N, E)), centres[b] + rng.standard_normal((M, E)), a, b


def naive(order: list[bool]) -> dict[str, float]:
    """Metrics of one query from its ranked list of relevant or not."""
    found = {f"recall@{k}": float(any(order[:k])) for k in (1, 5, 10)}
    precisions = [sum(order[: rank + 1]) / (rank + 1) for rank, relevant in enumerate(order) if relevant]
    return {**found, "mAP": sum(precisions) / len(precisions)}


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_every_direction_equals_the_loop(monkeypatch, block):
    monkeypatch.setattr(metrics, "BLOCK", block)
    x, y, a, b = two_sides()
    for queries, targets, query_labels, target_labels in [(x, y, a, b), (y, x, b, a), (x, x, a, a)]:
        lists = []
        for query, label in zip(queries, query_labels, strict=True):
            scores = [query @ t / np.linalg.norm(query) / np.linalg.norm(t) for t in targets]
            ranked = sorted(range(len(targets)), key=lambda i, s=scores: -s[i])
            lists.append(naive([bool(target_labels[i] == label) for i in ranked]))
        expected = {key: float(np.mean([each[key] for each in lists])) for key in lists[0]}
        found = retrieval(queries, targets, query_labels, target_labels)
        assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-6)
        assert (found["queries"], found["targets"]) == (len(queries), len(targets))


def test_ties_are_broken_by_lot():
    """Six targets, the middle four at one score, two of those relevant: the mean over all 720 orders."""
    scores, labels = [0.9, 0.5, 0.5, 0.5, 0.5, 0.1], [0, 0, 1, 1, 0, 1]
    targets = np.array([[s, np.sqrt(1 - s * s)] for s in scores])
    found = retrieval(np.array([[1.0, 0.0]]), targets, np.array([1]), np.array(labels), ks=(1, 2, 3, 5))
    orders = [sorted(order, key=lambda i: -scores[i]) for order in permutations(range(6))]
    for k in (1, 2, 3, 5):
        expected = np.mean([any(labels[i] for i in order[:k]) for order in orders])
        assert found[f"recall@{k}"] == pytest.approx(expected)


def test_a_collapsed_space_gives_a_blind_draw_whatever_the_order():
    labels = np.sort(np.arange(30) % 5)
    point = np.tile(np.array([[0.3, -0.7, 0.2]], np.float32), (30, 1))
    for order in (labels, labels[::-1]):
        found = retrieval(point[:7], point, np.zeros(7, int), order)
        assert found["recall@1"] == pytest.approx(0.2) == pytest.approx(found["chance"])
        assert found["mAP"] == pytest.approx(0.2, abs=0.03)
        assert found["recall@10"] == pytest.approx(1 - comb(24, 10) / comb(30, 10))


def test_perfect_retrieval():
    x = np.eye(11, 13)
    assert retrieval(x, x, np.arange(11), np.arange(11))["mAP"] == 1


def test_hubness_equals_the_loop_and_finds_a_hub():
    x, y, *_ = two_sides()
    counts = np.zeros(M)
    for query in x:
        nearest = sorted(range(M), key=lambda i: -(query @ y[i]) / np.linalg.norm(y[i]))[:4]
        counts[nearest] += 1
    away = counts - counts.sum() / M
    expected = (sum(away**3) / M) / (sum(away**2) / M) ** 1.5
    assert hubness(x, y, k=4) == pytest.approx(expected)
    assert hubness(np.eye(11), np.eye(11), k=1) == 0
    collapsed = hubness(np.ones((N, E)), np.ones((M, E)), k=1)
    assert collapsed == pytest.approx((M - 2) / np.sqrt(M - 1))  # one target answers everything
    assert collapsed > expected


def test_bad_input():
    x, y, a, b = two_sides()
    with pytest.raises(
        DatasetError, match="nothing to retrieve: 0 queries and 23 targets; expected at least one each"
    ):
        retrieval(x[:0], y, a[:0], b)
    with pytest.raises(
        DatasetError, match="1 classes are asked for and have no target rows: first is class 2; expected"
    ):
        retrieval(x, y, a, np.minimum(b, 1))
    with pytest.raises(DatasetError, match="targets hold NaN or infinity: 1 of 23, first at row 4"):
        retrieval(x, np.where(np.arange(M)[:, None] == 4, np.nan, y), a, b)
    with pytest.raises(DatasetError, match="hubness needs 10 targets and a query; found 3 and 19; lower k"):
        hubness(x, y[:3])
