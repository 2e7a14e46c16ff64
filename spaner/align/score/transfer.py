"""Trained here, asked there: runs scored on other data sets without training, beside the frozen encoder.

For every run and cache: accuracy in text and semantic retrieval, their gap, and how well images and texts
group by class (V-measure of k-means over both), of the run and of the frozen encoder on the same rows. What
the run gains on the encoder is paired over test rows; below 0 it has lost what the encoder knew. Class
names are those of the cache that is asked, so data sets need not share a class; the encoder must be the
run's own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spaner import cache as caches
from spaner.align.score import metrics
from spaner.align.score.evaluate import Frozen, asking, matches
from spaner.align.score.intervals import paired_difference
from spaner.align.score.space import coherence_of
from spaner.align.score.tables import opened_cache, tested_table
from spaner.errors import Mismatch, RunError

KINDS = ("text", "semantic")


def transfer(runs: Mapping[str, Any], to: Sequence[caches.Cache | str | Path]) -> list[dict[str, Any]]:
    """Every run on every cache.

    Returns:
        One dict a run and cache: `run`, `trained_on`, `dataset`, `classes`, `chance`, `rows`, `reason` (why
        there is no number, or None), and where there is: `text`, `semantic`, `gap`, `v_measure`,
        `chance_v_measure`, `frozen` with the same of the encoder (None where its widths differ), and
        `gains` over it: for both kinds `mean`, `low`, `high` (95 % over test rows), for `v_measure` the
        difference. A method without a space has no V-measure, a head that reads no query no semantic score:
        None.

    Raises:
        RunError: no run or no cache.
    """
    if not runs or not to:
        raise RunError(
            "transfer: found no run or no cache to score on; expected one or more of each; "
            "type `spaner transfer RUN --to CACHE`"
        )
    found = []
    for name, run in runs.items():
        for each in to:
            with opened_cache(each) as cache:
                found.append(_one(name, run, cache))
    return found


def _one(name: str, run: Any, cache: caches.Cache) -> dict[str, Any]:
    table = tested_table(cache, None)
    told: dict[str, Any] = {
        "run": name,
        "trained_on": run.dataset,
        "dataset": cache.dataset,
        "classes": len(cache.class_names),
        "chance": metrics.chance(len(cache.class_names)),
        "reason": None,
    }
    try:
        for needed in (table, *asking(cache).values()):
            run.check(cache.table(needed).manifest)
        found = matches(run, cache, table)
    except Mismatch as refused:
        return told | {"reason": str(refused)}
    told |= {"rows": len(found["text"].labels), **_numbers(run, cache, table, found)}
    if len({cache.table(needed).dim for needed in (table, *asking(cache).values())}) > 1:
        return told | {"frozen": None, "gains": None}
    frozen = matches(Frozen(), cache, table)
    before = _numbers(Frozen(), cache, table, frozen)
    return told | {"frozen": before, "gains": _gains(told, before, found, frozen)}


def _numbers(
    space: Any, cache: caches.Cache, table: str, found: Mapping[str, metrics.Match]
) -> dict[str, Any]:
    text, semantic = (float(found[kind].credit.mean()) if kind in found else None for kind in KINDS)
    gap = None if text is None or semantic is None else text - semantic
    clusters: dict[str, Any] = {}
    if space.has_space:
        sides = (table.split("/")[0], "text")
        clusters = coherence_of(space, cache, sides, table, transfer=False)["clusters"]
    names = ("v_measure", "chance_v_measure")
    return {"text": text, "semantic": semantic, "gap": gap, **{name: clusters.get(name) for name in names}}


def _gains(
    own: Mapping[str, Any],
    before: Mapping[str, Any],
    found: Mapping[str, metrics.Match],
    frozen: Mapping[str, metrics.Match],
) -> dict[str, Any]:
    gains: dict[str, Any] = {}
    for kind in KINDS:
        if kind in found and kind in frozen:
            sure = paired_difference(found[kind].credit, frozen[kind].credit)
            gains[kind] = {"mean": sure.value, "low": sure.low, "high": sure.high}
    both = own["v_measure"], before["v_measure"]
    return gains | {"v_measure": None if None in both else both[0] - both[1]}
