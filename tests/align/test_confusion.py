"""Confusion counts on a case written out by hand."""

import numpy as np
import pytest

from spaner.align.score.confusion import confusion_matrix, most_confused_classes, most_confused_pairs
from spaner.align.score.matching import match
from spaner.errors import DatasetError

NAMES = ["cat", "dog", "toad", "frog", "ship"]
#          label, what the row looks like
ROWS = [(0, 0), (0, 1), (1, 0), (1, 0), (2, 3), (2, 3), (3, 3), (3, 2), (3, 2), (4, 4), (0, 3)]


def found():
    labels, looks = np.array(ROWS).T
    return match(np.eye(5)[looks], np.eye(5), labels, NAMES)


def test_matrix_equals_the_loop():
    expected = np.zeros((5, 5), int)
    for label, look in ROWS:
        expected[label, look] += 1
    assert confusion_matrix(found(), NAMES).tolist() == expected.tolist()


def test_worst_classes_count_errors_on_both_sides():
    matrix = confusion_matrix(found(), NAMES)  # errors: cat 2+2, dog 2+1, toad 2+2, frog 2+3, ship none
    assert most_confused_classes(matrix).tolist() == [3, 0, 2, 1]
    assert most_confused_classes(matrix, top=2).tolist() == [3, 0]


def test_worst_pairs_by_name():
    pairs = most_confused_pairs(confusion_matrix(found(), NAMES), NAMES)
    assert pairs[0] == {
        "a": "toad",
        "b": "frog",
        "a_index": 2,
        "b_index": 3,
        "a_as_b": 2,
        "b_as_a": 2,
        "rows": 4,
    }
    assert [(pair["a"], pair["b"], pair["rows"]) for pair in pairs[1:]] == [
        ("cat", "dog", 3),
        ("cat", "frog", 1),
    ]


def test_a_class_without_rows_is_an_error():
    some = match(np.eye(5)[:4], np.eye(5), np.arange(4), NAMES)
    with pytest.raises(DatasetError, match="1 of 5 classes have no test rows: 'ship'"):
        confusion_matrix(some, NAMES)
