"""Retrieval between two sets of rows: recall@k, mean average precision, hubness.

A target is relevant when its label equals the query's. recall@k is the share of queries with a relevant
target among the best k (the convention of cross-modal retrieval). Ties (closer than `metrics.TIE`) never go
to the first position: recall is the one expected when ties are broken by lot, average precision ranks tied
targets in the middle of their tie. A space in which everything coincides gets what a blind draw gets.

Arrays in, numbers out, blockwise: memory grows with N + M, never with N · M. It does not choose which rows to
compare.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from spaner.align.metrics import TIE, blocks, unit
from spaner.cache.errors import DatasetError


def retrieval(
    queries: Float[np.ndarray, "N E"],
    targets: Float[np.ndarray, "M E"],
    query_labels: Int[np.ndarray, " N"],
    target_labels: Int[np.ndarray, " M"],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float | int]:
    """Rank all targets for every query.

    Returns:
        `recall@k` for each k, `mAP`, `chance` (recall@1 of a blind draw), `queries` N and `targets` M.

    Raises:
        DatasetError: NaN or infinity, no rows, or a query whose class has no target.
    """
    members = _members(query_labels, target_labels)
    x, y = unit(queries, "queries"), unit(targets, "targets")
    recalls, precisions = [], []
    for block in blocks(len(x), len(y)):
        scores = x[block] @ y.T
        relevant = [
            np.sort(row[members[label]]) for row, label in zip(scores, query_labels[block], strict=True)
        ]
        scores.sort(axis=1)
        recalls += [_hits(row, own, ks) for row, own in zip(scores, relevant, strict=True)]
        precisions += [_average_precision(row, own) for row, own in zip(scores, relevant, strict=True)]
    share = [len(members[label]) / len(y) for label in query_labels]
    return {
        **{f"recall@{k}": float(hit) for k, hit in zip(ks, np.mean(recalls, axis=0), strict=True)},
        "mAP": float(np.mean(precisions)),
        "chance": float(np.mean(share)),
        "queries": len(x),
        "targets": len(y),
    }


def _members(query_labels: np.ndarray, target_labels: np.ndarray) -> dict[int, np.ndarray]:
    """The targets of every class asked for."""
    if len(query_labels) == 0 or len(target_labels) == 0:
        raise DatasetError(
            f"nothing to retrieve: {len(query_labels):,} queries and {len(target_labels):,} targets; "
            "expected at least one each; choose tables that hold rows"
        )
    members = {label: np.flatnonzero(target_labels == label) for label in np.unique(query_labels)}
    empty = [label for label, own in members.items() if len(own) == 0]
    if empty:
        raise DatasetError(
            f"{len(empty):,} classes are asked for and have no target rows: first is class {empty[0]}; "
            "expected at least one target each; choose a split that holds every class"
        )
    return members


def _hits(scores: np.ndarray, relevant: np.ndarray, ks: Sequence[int]) -> list[float]:
    """Probability that a relevant target is among the best k, for each k; both arguments sorted upwards.

    Only the best relevant score counts: with `above` targets before its tie of t, of which r are relevant,
    the k - above places left are a draw from the tie, and all miss with probability C(t-r, places) / C(t,
    places).
    """
    best = relevant[-1]
    above = len(scores) - np.searchsorted(scores, best + TIE, side="right")
    tied = len(scores) - np.searchsorted(scores, best - TIE) - above
    good = len(relevant) - np.searchsorted(relevant, best - TIE)
    hits = []
    for k in ks:
        draws = np.arange(min(max(k - above, 0), tied))
        hits.append(1 - float(np.prod(np.maximum(tied - good - draws, 0) / (tied - draws))))
    return hits


def _average_precision(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Mean over relevant targets of the precision at their rank, in the middle of a tie; sorted upwards."""

    def middle_rank(among: np.ndarray) -> np.ndarray:
        below, through = (
            np.searchsorted(among, relevant - TIE),
            np.searchsorted(among, relevant + TIE, side="right"),
        )
        return len(among) - through + (through - below + 1) / 2

    return float(np.mean(middle_rank(relevant) / middle_rank(scores)))


def hubness(queries: Float[np.ndarray, "N E"], targets: Float[np.ndarray, "M E"], k: int = 10) -> float:
    """Skewness of how often each target is among the k nearest of a query (Radovanović et al. 2010).

    0: every target is found about equally often. Large: a few hubs answer most queries. Targets at equal
    distance are taken in order, so a space where everything coincides has k perfect hubs. 0 when no target is
    found more than another.

    Raises:
        DatasetError: NaN or infinity, or fewer targets than k.
    """
    if len(targets) < k or len(queries) == 0:
        raise DatasetError(
            f"hubness needs {k} targets and a query; found {len(targets):,} and {len(queries):,}; "
            "lower k or use more rows"
        )
    x, y = unit(queries, "queries"), unit(targets, "targets")
    found = np.zeros(len(y))
    for block in blocks(len(x), len(y)):
        scores = x[block] @ y.T
        last = np.partition(scores, -k, axis=1)[:, [-k]]
        above, tied = scores > last + TIE, np.abs(scores - last) <= TIE
        places = k - np.count_nonzero(above, axis=1, keepdims=True)
        found += (above | (tied & (tied.cumsum(axis=1) <= places))).sum(axis=0)
    away = found - found.mean()
    return float((away**3).mean() / away.std() ** 3) if away.any() else 0.0
