"""Score a trained run, or the frozen encoder itself, on a table of any cache made with the same encoder.

Text retrieval asks with "a photo of a {}." (table `text/vanilla`), semantic retrieval with the raw class name
(`text/classname`); the gap is their difference in accuracy. Class names are those of the cache that is
scored, so a run can be tested on another data set. Rows whose extraction failed are left out and counted.

Reads sealed caches, streams the table, and holds a few numbers per row. It never trains and never chooses
anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from spaner import cache as caches
from spaner.align.score import metrics, retrieval
from spaner.errors import CacheError, DatasetError

QUERIES = {"text": "text/vanilla", "semantic": "text/classname"}
"""Which table asks, by kind of retrieval."""

BLOCK = 4096
"""Rows embedded at once."""


class Space(Protocol):
    """Where embeddings are compared: a trained run, or the frozen encoder's own space."""

    def embed(self, modality: str, features: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N E"]: ...


class Frozen:
    """The encoder's own space: every embedding as it is."""

    def embed(self, modality: str, features: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
        return metrics.unit(features, f"{modality} features")


def evaluate(
    run: Any,
    cache: caches.Cache | str | Path,
    split: str | None = None,
    frozen: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Text and semantic retrieval accuracy of a run, the frozen encoder's own beside them.

    Args:
        run: a trained run (`embed`, `check`).
        cache: a cache, or its path.
        split: "image/test" or "test"; default `image/test` where there is one, else `image/val`.
        frozen: the result of `zero_shot` on the same table, where the caller has it already.

    Returns:
        `text` and `semantic` (the numbers of `metrics.summary`), `gap`, `chance`, `ceiling`, `rows`,
        `failed`, `tested` (which table of which cache, by hash), `synthetic`, and `zero_shot` (the same
        without itself; None where the encoders share no space of their own).

    Raises:
        Mismatch: the cache was made with another encoder than the run; the message names what differs.
        CacheError: a table is missing.
        DatasetError: no rows, one class only, NaN.
    """
    opened = opened_cache(cache)
    name = tested_table(opened, split)
    for needed in (name, *QUERIES.values()):
        run.check(opened.table(needed).manifest)
    found = matches(run, opened, name)
    return {**_result(found, opened, name), "zero_shot": frozen or zero_shot(opened, name)}


def zero_shot(cache: caches.Cache | str | Path, split: str | None = None) -> dict[str, Any] | None:
    """The frozen encoder's own result; None where the widths differ and there is no space to share."""
    opened = opened_cache(cache)
    name = tested_table(opened, split)
    if len({opened.table(needed).dim for needed in (name, *QUERIES.values())}) > 1:
        return None
    return _result(matches(Frozen(), opened, name), opened, name)


def matches(space: Space, cache: caches.Cache, name: str) -> dict[str, metrics.Match]:
    """What every row found, by kind of retrieval: the material of intervals, curves and confusion."""
    table = cache.table(name)
    classes = {kind: class_vectors(space, cache, query) for kind, query in QUERIES.items()}
    parts: dict[str, list[metrics.Match]] = {kind: [] for kind in QUERIES}
    for features, labels in _embedded_blocks(space, table):
        for kind, vectors in classes.items():
            parts[kind].append(metrics.match(features, vectors, labels, cache.class_names))
    if not parts["text"]:
        raise DatasetError(
            f"no row of {name} can be scored: {table.rows:,} rows, all failed; expected at least 1; "
            f"see `spaner cache info {cache.path}`"
        )
    return {kind: metrics.Match.join(found) for kind, found in parts.items()}


def evaluate_pair(run: Any, cache: caches.Cache | str | Path, query: str, target: str) -> dict[str, Any]:
    """Retrieval in one direction between two tables, e.g. `image/test` looking for `audio/fold1`.

    Rows are relevant to each other when their classes are equal. A text table counts as one row per class.

    Returns:
        `retrieval.retrieval`'s numbers, and the names of the two tables.
    """
    opened = opened_cache(cache)
    sides = []
    for name in (query, target):
        run.check(opened.table(name).manifest)
        sides.append(embedded(run, opened, name))
    (queries, query_labels), (targets, target_labels) = sides
    scores = retrieval.retrieval(queries, targets, query_labels, target_labels)
    return {"query": query, "target": target, **scores}


def embedded(
    space: Space, cache: caches.Cache, name: str
) -> tuple[Float[np.ndarray, "N E"], Int[np.ndarray, " N"]]:
    """All good rows of a table, unit-length, with their labels; a text table gives one row per class."""
    table = cache.table(name)
    if table.manifest.modality == "text":
        return class_vectors(space, cache, name), np.arange(len(cache.class_names))
    parts = list(_embedded_blocks(space, table))
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([labels for _, labels in parts])


def class_vectors(space: Space, cache: caches.Cache, name: str) -> Float[np.ndarray, "C E"]:
    """One unit-length vector per class: the mean over templates of the embedded texts.

    Raises:
        CacheError: a class has no text.
    """
    table = cache.table(name)
    labels, features = table.labels[table.ok], table.read()[table.ok]
    missing = sorted(set(range(len(cache.class_names))) - set(labels.tolist()))
    if missing:
        raise CacheError(
            f"{name} has no text for class {cache.class_names[missing[0]]!r} ({len(missing):,} such); "
            f"expected one row per class; run `spaner extract --modality text` into {cache.path}"
        )
    views = [space.embed("text", features[:, view].astype(np.float32)) for view in range(features.shape[1])]
    mean = np.mean(views, axis=0)
    classes = np.empty((len(cache.class_names), mean.shape[1]), np.float32)
    classes[labels] = mean
    return metrics.unit(classes, name)


def tested_table(cache: caches.Cache, split: str | None) -> str:
    """The full name of the table to score.

    Raises:
        CacheError: the cache has no such table.
    """
    if split is None:
        return "image/test" if cache.has("image/test") or not cache.has("image/val") else "image/val"
    return split if "/" in split else f"image/{split}"


def opened_cache(cache: caches.Cache | str | Path) -> caches.Cache:
    """The cache itself, opened where a path was given."""
    return caches.open(Path(cache)) if isinstance(cache, str | Path) else cache


def _embedded_blocks(space: Space, table: Any):
    """(features (n, E), labels (n,)) of the good rows, block by block, centre view only."""
    modality, ok = table.manifest.modality, table.ok
    for rows, features in table.stream(BLOCK):
        keep = ok[rows]
        if keep.any():
            yield space.embed(modality, features[keep, 0].astype(np.float32)), table.labels[rows][keep]


def _result(found: dict[str, metrics.Match], cache: caches.Cache, name: str) -> dict[str, Any]:
    table = cache.table(name)
    scores = {kind: metrics.summary(match) for kind, match in found.items()}
    labels = found["text"].labels
    return {
        **scores,
        "gap": scores["text"]["accuracy"] - scores["semantic"]["accuracy"],
        "chance": metrics.chance(len(cache.class_names)),
        "ceiling": metrics.ceiling(labels, cache.class_names),
        "rows": len(labels),
        "failed": table.rows - len(labels),
        "tested": {
            "dataset": cache.dataset,
            "table": name,
            "manifest_sha256": table.manifest.sha256,
            "encoder": f"{table.manifest.encoder.name} {table.manifest.encoder.weights}",
        },
        "synthetic": table.manifest.encoder.synthetic,
    }
