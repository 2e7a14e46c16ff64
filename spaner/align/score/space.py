"""One space or several? The measures of `coherence` and `pairs`, read from the test tables of a cache.

    coherence_of    do the modalities' rows group by class, lie in the same places, agree on who is near whom?
    joint_of        what are the modalities of one sample worth together, and with rows missing?

A space is a trained run or the frozen encoder. Text has a row for every template of its largest set, so
that its rows are many enough to be clustered. Rows are partners by id where two tables share ids, by class
means elsewhere; which it was, is said beside the numbers. Nothing is trained except the probes of linear
transfer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from spaner import cache as caches
from spaner.align.score import coherence, pairs
from spaner.align.score.evaluate import asking, class_vectors, embedded
from spaner.align.score.metrics import unit
from spaner.align.score.tables import opened_cache

TEMPERATURE = 0.1
"""Of the weights that the class which asks gives to modalities (`pairs.joint_scores`)."""

FEWEST = 16
"""Samples that two tables must share for their rows to be compared sample by sample."""


@dataclass(frozen=True)
class Side:
    """The embedded test rows of one modality."""

    x: Float[np.ndarray, "N E"]
    labels: Int[np.ndarray, " N"]
    ids: Sequence[str]


def sides_of(
    space: Any, cache: caches.Cache, modalities: Sequence[str], tested: str | None = None
) -> dict[str, Side]:
    """The test rows of every modality that has a test table; of text, every template of every class. `tested`
    names the table of its modality where that is another than `test`."""
    found = {}
    for name in modalities:
        full = tested if tested and tested.split("/")[0] == name else f"{name}/test"
        if name == "text":
            found[name] = _texts(space, cache)
        elif cache.has(full):
            table = cache.table(full)
            x, labels = embedded(space, cache, full)
            found[name] = Side(x, labels, table.ids[table.ok].tolist())
    return found


def _texts(space: Any, cache: caches.Cache) -> Side:
    tables = [cache.table(name) for name in cache.tables() if name.startswith("text/")]
    table = max(tables, key=lambda each: len(each.manifest.views))
    features, labels = table.read()[table.ok].astype(np.float32), table.labels[table.ok]
    views = [space.embed("text", features[:, view]) for view in range(features.shape[1])]
    return Side(np.concatenate(views), np.tile(labels, len(views)), [])


def coherence_of(
    space: Any,
    cache: caches.Cache | str | Path,
    modalities: Sequence[str],
    tested: str | None = None,
    *,
    transfer: bool = True,
) -> dict[str, Any]:
    """Clusters of the pooled modalities, and for every pair of them distances and agreement.

    Args:
        transfer: also train the probes of `coherence.linear_transfer`, the dearest of the measures.

    Returns:
        `clusters` (`coherence.clusters`), and `pairs`: `a`, `b`, `by` ("id" or "class means"), and by measure
        `gaps`, `mutual_knn`, `cka`, `cknna`, `rsa`, `transfer` what `coherence` gives, each with its chance.

    Raises:
        DatasetError: fewer than two modalities with test rows, or two classes.
    """
    with opened_cache(cache) as opened:
        sides = sides_of(space, opened, modalities, tested)
        classes = len(opened.class_names)
        found = [
            {"a": a, "b": b, **_pair(sides[a], sides[b], classes, transfer=transfer)}
            for a, b in combinations(sides, 2)
        ]
        clusters = coherence.clusters([(side.x, side.labels) for side in sides.values()])
        return {"clusters": clusters, "pairs": found}


def _pair(a: Side, b: Side, classes: int, *, transfer: bool) -> dict[str, Any]:
    means = [coherence.class_means(side.x, side.labels, classes) for side in (a, b)]
    x, y, by = (*means, "class means")
    rows = {name: row for row, name in enumerate(b.ids)}
    shared = [(row, rows[name]) for row, name in enumerate(a.ids) if name in rows]
    if len(shared) >= FEWEST:
        own, other = np.array(shared).T
        x, y, by = a.x[own], b.x[other], "id"
    near = min(10, max(1, len(x) // 4))
    found: dict[str, Any] = {"by": by, "samples": len(x), "gaps": coherence.gaps(x, y)}
    found |= {"k": near, "mutual_knn": coherence.mutual_knn(x, y, near)} if len(x) > near + 1 else {}
    found |= {"cka": coherence.cka(x, y), "cknna": coherence.cknna(x, y, near)} if len(x) > 3 else {}
    found |= {"rsa": coherence.rsa(*means)} if classes > 2 else {}
    if transfer:
        found["transfer"] = coherence.linear_transfer(a.x, a.labels, b.x, b.labels)
    return found


def joint_of(
    space: Any,
    cache: caches.Cache | str | Path,
    modalities: Sequence[str],
    tested: str | None = None,
    *,
    seed: int = 0,
) -> dict[str, Any] | None:
    """The modalities of one sample asked together by class names, while more and more rows are missing.

    Samples are the test rows of the first modality that is not text; a further one takes part where it has
    a row of every such id.

    Returns:
        `modalities`, `alone` (those without such rows), `samples`, `curve` (`pairs.missing_curve`, every
        modality counting the same) and `weighted` (the class weighs them); None where fewer than two take
        part or there is no text to ask with.
    """
    with opened_cache(cache) as opened:
        if "text" not in modalities:
            return None
        sides = sides_of(space, opened, [name for name in modalities if name != "text"], tested)
        first = next(iter(sides.values()), None)
        if first is None:
            return None
        together = {name: rows for name, side in sides.items() if (rows := _rows_of(side, first)) is not None}
        if len(together) < 2:
            return None
        classes = class_vectors(space, opened, asking(opened)["semantic"])
        curves = {
            name: pairs.missing_curve(together, classes, first.labels, temperature=temperature, seed=seed)
            for name, temperature in (("curve", None), ("weighted", TEMPERATURE))
        }
        alone = [name for name in sides if name not in together]
        return {"modalities": list(together), "alone": alone, "samples": len(first.labels), **curves}


def _rows_of(side: Side, first: Side) -> Float[np.ndarray, "N E"] | None:
    """The side's row of each of the first's samples; None where it lacks one."""
    place: Mapping[str, int] = {name: row for row, name in enumerate(side.ids)}
    if any(name not in place for name in first.ids):
        return None
    return unit(side.x[[place[name] for name in first.ids]], "rows")
