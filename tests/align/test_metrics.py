"""Class retrieval against loops a child could check."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spaner.align.score import matching, metrics
from spaner.errors import DatasetError

N, C, E = 29, 7, 11


def space(seed: int = 0, n: int = N, c: int = C, e: int = E) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    classes = rng.standard_normal((c, e)).astype(np.float32)
    labels = rng.integers(0, c, n)
    return classes[labels] + rng.standard_normal((n, e)).astype(np.float32), classes, labels


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(float), b.astype(float)
    return float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))


def naive_summary(
    rows: np.ndarray, classes: np.ndarray, labels: np.ndarray, names: list[str]
) -> dict[str, float]:
    strict, by_name, positive, hardest, negative = [], [], [], [], []
    for row, label in zip(rows, labels, strict=True):
        scores = [cosine(row, each) for each in classes]
        best = [c for c, score in enumerate(scores) if score >= max(scores) - metrics.TIE]
        strict.append((label in best) / len(best))
        by_name.append(sum(names[c] == names[label] for c in best) / len(best))
        others = [score for c, score in enumerate(scores) if names[c] != names[label]]
        positive.append(scores[label])
        hardest.append(max(others))
        negative.append(sum(others) / len(others))
    unit_rows = [row / np.sqrt(row @ row) for row in rows.astype(float)]
    unit_targets = [classes[label] / np.sqrt(classes[label] @ classes[label]) for label in labels]
    r = [row - sum(unit_rows) / len(rows) for row in unit_rows]
    t = [target - sum(unit_targets) / len(rows) for target in unit_targets]
    products = sum(a @ b for a, b in zip(r, t, strict=True))
    spread = np.sqrt(sum(a @ a for a in r) * sum(b @ b for b in t))
    return {
        "accuracy": sum(strict) / len(rows),
        "accuracy_tie_aware": sum(by_name) / len(rows),
        "positive_cosine": sum(positive) / len(rows),
        "margin": (sum(positive) - sum(hardest)) / len(rows),
        "negative_cosine": sum(negative) / len(rows),
        "centred_cosine": float(products / spread) if spread > 1e-6 else 0.0,
    }


def test_read_only_rows_and_rows_with_a_gradient_are_scored_like_any():
    rows = np.eye(3, 4, dtype=np.float32)
    rows.flags.writeable = False
    learned = torch.eye(3, 4, requires_grad=True)
    for x in (rows, learned):
        assert matching.match(x, x, np.arange(3)).credit.tolist() == [1, 1, 1]
    assert matching.match_scores(learned[:, :3], np.arange(3)).credit.tolist() == [1, 1, 1]


@pytest.mark.parametrize("block", [1, 17, 1 << 20])
@pytest.mark.parametrize("names", [list("abcdefg"), list("abcabca")])
def test_summary_equals_the_loop_in_any_block_size(monkeypatch, names, block):
    monkeypatch.setattr(metrics, "BLOCK", block)
    rows, classes, labels = space()
    found = metrics.summary(matching.match(rows, classes, labels, names))
    assert found == pytest.approx(naive_summary(rows, classes, labels, names), abs=1e-6)


@given(st.integers(0, 2**32), st.integers(2, 13), st.integers(1, 23), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_summary_equals_the_loop_whatever_the_sizes_and_name_collisions(seed, c, n, distinct):
    rows, classes, labels = space(seed, n, c, 5)
    names = [f"name {i % max(distinct, 2)}" for i in range(c)]
    for twin in range(2, c):  # namesakes share their vector, as in a text table
        classes[twin] = classes[names.index(names[twin])]
    found = metrics.summary(matching.match(rows, classes, labels, names))
    assert found == pytest.approx(naive_summary(rows, classes, labels, names), abs=1e-5)


def test_joining_blocks_changes_nothing():
    rows, classes, labels = space()
    whole = matching.match(rows, classes, labels)
    parts = [matching.match(rows[s], classes, labels[s]) for s in (slice(0, 5), slice(5, 18), slice(18, N))]
    assert metrics.summary(metrics.Match.join(parts)) == pytest.approx(metrics.summary(whole), abs=1e-6)


@pytest.mark.parametrize("only", [None, 0, C - 1])
def test_a_collapsed_space_looks_bad(only):
    """The positive cosine is perfect; every other number says that nothing was learned."""
    _, classes, labels = space()
    labels = labels if only is None else np.full(N, only)
    point = classes[0]
    found = metrics.summary(matching.match(np.tile(3 * point, (N, 1)), np.tile(point, (C, 1)), labels))
    assert found["positive_cosine"] == pytest.approx(1, abs=1e-6)
    assert found["accuracy"] == pytest.approx(metrics.chance(C))
    assert found["margin"] == pytest.approx(0, abs=1e-6)
    assert found["negative_cosine"] == pytest.approx(1, abs=1e-6)
    assert found["centred_cosine"] == 0


def test_namesakes_cap_the_strict_score_and_not_the_tie_aware_one():
    names = ["missile", "tabby", "missile", "tree frog", "toad"]
    classes = np.eye(5, 13, dtype=np.float32)
    classes[2] = classes[0]
    labels = np.repeat(np.arange(5), 3)
    found = matching.match(classes[labels], classes, labels, names)
    assert found.credit.mean() == pytest.approx(0.8) == pytest.approx(metrics.ceiling(labels, names))
    assert found.credit_by_name.mean() == 1
    assert metrics.margin(found) == pytest.approx(1)  # a namesake is no negative


def test_two_namesakes_among_a_thousand_classes_give_the_known_ceiling():
    names = [f"class {i}" for i in range(998)] + ["class 3", "class 5"]
    assert metrics.ceiling(np.arange(1000), names) == pytest.approx(0.998)


def test_rounding_does_not_break_a_tie():
    row = np.ones((1, 3), np.float32)
    classes = np.array([[1, 1, 1], [1, 1, 1 + 1e-6], [1, -1, 0]], np.float32)
    assert matching.match(row, classes, np.array([1])).credit[0] == 0.5


def test_per_class_accuracy_equals_the_loop():
    rows, classes, labels = space(n=97)
    found = matching.match(rows, classes, labels)
    for c, accuracy in enumerate(metrics.per_class_accuracy(found, "abcdefg")):
        own = [
            cosine(row, classes[c]) >= max(cosine(row, each) for each in classes) for row in rows[labels == c]
        ]
        assert accuracy == pytest.approx(sum(own) / len(own))


def test_cdf_counts_cosines_at_or_below():
    cosines = np.array([0.5, -0.25, 0.5, 0.75])
    at, share = metrics.cosine_cdf(cosines, np.array([-1, -0.25, 0.4, 0.5, 1]))
    assert share.tolist() == [0, 0.25, 0.25, 0.75, 1]
    assert len(metrics.cosine_cdf(cosines)[0]) == 401
    assert at[0] == -1


def test_nan_names_the_row():
    rows, classes, labels = space()
    rows[13, 2] = np.nan
    with pytest.raises(
        DatasetError, match=r"rows hold NaN or infinity: 1 of 29, first at row 13; expected finite"
    ):
        matching.match(rows, classes, labels)


def test_one_class_only_is_no_test():
    rows, classes, labels = space(c=1)
    with pytest.raises(
        DatasetError, match="retrieval among one class only: every row would be right; expected two"
    ):
        matching.match(rows, classes, labels)
    with pytest.raises(DatasetError, match="one class only"):
        matching.match(np.ones((2, 3)), np.ones((2, 3)), np.array([0, 1]), ["same", "same"])


def test_no_rows_and_impossible_labels_and_missing_names():
    rows, classes, labels = space()
    with pytest.raises(DatasetError, match=r"no test rows to score: found 0; expected at least 1; .*--split"):
        matching.match(rows[:0], classes, labels[:0])
    with pytest.raises(DatasetError, match="label 7 in 1 test rows; expected 0 to 6"):
        matching.match(rows[:1], classes, np.array([7]))
    with pytest.raises(DatasetError, match="2 class names for 7 class vectors; expected one each"):
        matching.match(rows, classes, labels, ["a", "b"])


def test_a_class_without_test_rows_is_named():
    rows, classes, _ = space()
    found = matching.match(rows, classes, np.arange(N) % 5)
    with pytest.raises(
        DatasetError, match=r"2 of 7 classes have no test rows: 'f', 'g'; expected at least one each"
    ):
        metrics.per_class_accuracy(found, "abcdefg")
