"""Tables of a cache as tensors: rows at unit length, a class's texts in order, which table asks and which is
tested.

Reads sealed tables; it scores nothing and draws nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from spaner import cache as caches
from spaner.align.methods.task import Query, Texts
from spaner.errors import CacheError, Corrupt

OWN_QUERY = "query"
"""Template set of a data set that asks in words of its own (CoOp's sets: "a centered satellite photo of
{}.")."""


def query_sets(cache: caches.Cache) -> dict[str, str]:
    """Which template set asks, by kind of retrieval: the data set's own or "a photo of a {}.", and the raw
    class name."""
    text = OWN_QUERY if cache.has(f"text/{OWN_QUERY}") else "vanilla"
    return {"text": text, "semantic": "classname"}


def queries(cache: caches.Cache) -> dict[str, Query]:
    """What a cache asks of a fitted method, by kind.

    Raises:
        CacheError: a text table or the text of a class is missing.
    """
    names = tuple(cache.class_names)
    return {
        kind: Query(kind, names, class_texts(cache.table(f"text/{templates}"), list(names)))
        for kind, templates in query_sets(cache).items()
    }


def tested_table(cache: caches.Cache, split: str | None, modality: str = "image") -> str:  # noqa: PT028
    """The full name of the table to score; by default the modality's `test`, or its `val` where it has no
    `test`.

    Raises:
        CacheError: the cache has no such table.
    """
    if split is None:
        split = "test" if cache.has(f"{modality}/test") or not cache.has(f"{modality}/val") else "val"
    return split if "/" in split else f"{modality}/{split}"


@contextmanager
def opened_cache(cache: caches.Cache | str | Path) -> Iterator[caches.Cache]:
    """The cache, for the length of a block: one given by its path is opened and closed, an opened one stays
    its owner's."""
    if isinstance(cache, str | Path):
        with caches.open(Path(cache)) as opened:
            yield opened
    else:
        yield cache


def class_texts(table: caches.Table, class_names: list[str]) -> Texts:
    """Texts in class order, whatever the order of the table's rows.

    Raises:
        CacheError: a class has none.
    """
    row_of = {int(label): row for row, label in enumerate(table.labels) if table.ok[row]}
    missing = [name for label, name in enumerate(class_names) if label not in row_of]
    if missing:
        raise CacheError(
            f"{table.name} has no text for class {missing[0]!r} ({len(missing):,} such classes); "
            f"expected one row per class; extract the text again"
        )
    return Texts(*unit_rows(table, np.array([row_of[label] for label in range(len(class_names))])))


def unit_rows(table: caches.Table, rows: np.ndarray) -> tuple[Float[Tensor, "N V D"], Float[Tensor, "N V"]]:
    """All views of the rows at unit length, and their lengths.

    Raises:
        Corrupt: an embedding is not finite or is zero; the line names the first.
    """
    features = table.read(rows).astype(np.float32)
    norms = np.linalg.norm(features, axis=2, keepdims=True)
    bad = ~(np.isfinite(norms) & (norms > 0)).all(axis=(1, 2))
    if bad.any():
        first = str(table.ids[rows[bad.argmax()]])
        raise Corrupt(
            f"{table.name}: the embedding of {first!r} is not finite or is all zeros ({bad.sum():,} such "
            "rows); expected finite numbers; see `spaner cache verify`, and extract the table again"
        )
    return torch.from_numpy(features / norms), torch.from_numpy(norms[..., 0])
