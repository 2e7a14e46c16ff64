"""Who is taken for whom: the class confusion matrix, its worst classes and its worst pairs (the paper's
Figure 8).

Counts predictions of `metrics.Match`; where scores tie, the lowest class is the predicted one, so a tie shows
up as confusion and not as a fraction. It does not draw; see `figures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from spaner.align.score.metrics import Match, check_every_class


def confusion_matrix(found: Match, names: Sequence[str]) -> Int[np.ndarray, "C C"]:
    """Entry (i, j): how many rows of class i were taken for class j.

    Raises:
        DatasetError: a class has no test rows.
    """
    classes = len(names)
    check_every_class(np.bincount(found.labels, minlength=classes), names)
    pairs = found.labels.astype(np.int64) * classes + found.predicted
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def most_confused_classes(matrix: Int[np.ndarray, "C C"], top: int = 20) -> Int[np.ndarray, " K"]:
    """Classes in most errors, as the right or as the wrong answer; worst first, error-free ones left out."""
    wrong = matrix - np.diag(np.diag(matrix))
    errors = wrong.sum(axis=0) + wrong.sum(axis=1)
    worst = np.argsort(-errors, kind="stable")[:top]
    return worst[errors[worst] > 0]


def most_confused_pairs(
    matrix: Int[np.ndarray, "C C"], names: Sequence[str], top: int = 20
) -> list[dict[str, Any]]:
    """Pairs of classes by the number of rows taken for the other, worst first.

    Returns:
        For each pair `a`, `b` (names), `a_index`, `b_index`, `a_as_b`, `b_as_a` and their sum `rows`.
        Namesakes such as ImageNet's two "missile" are pairs too: look at the index.
    """
    both = np.triu(matrix + matrix.T, k=1)
    worst = np.argsort(-both, axis=None, kind="stable")[:top]
    pairs = [
        (int(i), int(j)) for i, j in zip(*np.unravel_index(worst, both.shape), strict=True) if both[i, j] > 0
    ]
    return [
        {
            "a": names[i],
            "b": names[j],
            "a_index": i,
            "b_index": j,
            "a_as_b": int(matrix[i, j]),
            "b_as_a": int(matrix[j, i]),
            "rows": int(both[i, j]),
        }
        for i, j in pairs
    ]
