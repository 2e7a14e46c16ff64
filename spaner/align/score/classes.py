"""A cache seen through some of its classes: the others' rows are not there, labels count anew.

For protocols that split classes (base-to-new): everything that trains from or scores a cache takes the view
in the cache's place. A few-shot draw is drawn from all classes and then cut, as CoOp's base-to-new code
does, so the rows of a class are the same whether the others are in sight or not. Nothing is copied or
written.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from spaner import cache as caches
from spaner.errors import DatasetError


class SomeClasses:
    """A cache of the given classes, in their order; what it does not say itself, the cache says."""

    def __init__(self, cache: caches.Cache, classes: Sequence[int]) -> None:
        self.whole, self._classes = cache, np.asarray(classes)
        self.class_names = [cache.class_names[label] for label in classes]

    def table(self, name: str) -> "SomeRows":
        """The table, without the rows of other classes."""
        return self.seen(self.whole.table(name))

    def seen(self, table: caches.Table) -> "SomeRows":
        """Any table whose labels are those of the whole, without the rows of other classes."""
        return SomeRows(table, self._classes, len(self.whole.class_names))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)


class SomeRows:
    """A table whose rows of other classes count as rows that are not there."""

    def __init__(self, table: caches.Table, classes: Int[np.ndarray, " K"], count: int) -> None:
        self._table = table
        number = np.full(count, -1, np.int32)
        number[classes] = np.arange(len(classes))
        self.labels: Int[np.ndarray, " N"] = number[table.labels]
        self.ok: Bool[np.ndarray, " N"] = table.ok & (self.labels >= 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)


def halves(cache: caches.Cache) -> tuple[Any, Any]:
    """The first half of the classes, rounded up, and the rest, as CoOp and CoCoOp split them.

    Raises:
        DatasetError: fewer than four classes: a half of one class cannot be wrong.
    """
    count = len(cache.class_names)
    if count < 4:
        raise DatasetError(
            f"base-to-new: {cache.path} has {count} classes; "
            "expected four or more, so that each half has a choice; use a cache with more classes"
        )
    middle = (count + 1) // 2
    return SomeClasses(cache, range(middle)), SomeClasses(cache, range(middle, count))
