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
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from spaner.align.score.metrics import TIE, blocks, unit
from spaner.errors import DatasetError


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
    members = _Members.of(query_labels, target_labels)
    x, y = unit(queries, "queries"), unit(targets, "targets")
    recalls, precisions = np.zeros(len(ks)), 0.0
    for block in blocks(len(x), len(y)):
        ranks = _Ranks.of(x[block] @ y.T, *members.pairs(query_labels[block]))
        recalls += [ranks.hits(k).sum() for k in ks]
        precisions += ranks.average_precision().sum()
    return {
        **{f"recall@{k}": float(total / len(x)) for k, total in zip(ks, recalls, strict=True)},
        "mAP": float(precisions / len(x)),
        "chance": float(members.counts[query_labels].mean() / len(y)),
        "queries": len(x),
        "targets": len(y),
    }


@dataclass(frozen=True)
class _Members:
    """The targets of every class: those of class c are `order[starts[c] : starts[c] + counts[c]]`."""

    order: np.ndarray
    starts: np.ndarray
    counts: np.ndarray

    @staticmethod
    def of(query_labels: np.ndarray, target_labels: np.ndarray) -> _Members:
        if len(query_labels) == 0 or len(target_labels) == 0:
            raise DatasetError(
                f"nothing to retrieve: {len(query_labels):,} queries and {len(target_labels):,} targets; "
                "expected at least one each; choose tables that hold rows"
            )
        counts = np.bincount(target_labels, minlength=int(query_labels.max()) + 1)
        empty = np.unique(query_labels[counts[query_labels] == 0])
        if len(empty):
            raise DatasetError(
                f"{len(empty):,} classes are asked for and have no target rows: first is class {empty[0]}; "
                "expected at least one target each; choose a split that holds every class"
            )
        return _Members(np.argsort(target_labels, kind="stable"), counts.cumsum() - counts, counts)

    def pairs(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Every (query, relevant target) of these queries, query by query."""
        counts = self.counts[labels]
        queries = np.repeat(np.arange(len(labels)), counts)
        within = np.arange(len(queries)) - np.repeat(counts.cumsum() - counts, counts)
        return queries, self.order[self.starts[labels][queries] + within]


@dataclass(frozen=True)
class _Ranks:
    """Where the relevant targets of some queries stand; flat vectors, query by query, worst target first.

    `query` says whose target it is. Of all targets `above` are better and `tied` equal, itself included;
    `relevant_above` and `relevant_tied` count the relevant ones among these.
    """

    query: np.ndarray
    above: np.ndarray
    tied: np.ndarray
    relevant_above: np.ndarray
    relevant_tied: np.ndarray

    @staticmethod
    def of(scores: np.ndarray, query: np.ndarray, target: np.ndarray) -> _Ranks:
        """One search in one sorted list answers for all: cosines of query q move to 4 q - 1 … 4 q + 1."""
        lift = 4.0 * np.arange(len(scores))
        relevant = np.sort(scores[query, target] + lift[query])  # stays query by query
        scores.sort(axis=1)
        everything = (scores + lift[:, None]).ravel()
        ends = (np.arange(len(scores)) + 1)[query] * scores.shape[1]
        relevant_ends = np.bincount(query).cumsum()[query]
        above, tied = _above_and_tied(everything, relevant, ends)
        return _Ranks(query, above, tied, *_above_and_tied(relevant, relevant, relevant_ends))

    def hits(self, k: int) -> Float[np.ndarray, " B"]:
        """Probability that a relevant target is among the best k.

        Only the best one counts. Of the tie that it stands in, t targets of which r are relevant, k - above
        places are drawn, and all of them miss with probability C(t - r, places) / C(t, places).
        """
        best = np.append(self.query[1:] != self.query[:-1], True)
        above, tied, good = self.above[best], self.tied[best], self.relevant_tied[best]
        places = np.clip(k - above, 0, tied)
        miss = np.ones(len(above))
        for draw in range(int(places.max())):
            chance = np.maximum(tied - good - draw, 0) / np.maximum(tied - draw, 1)
            miss *= np.where(draw < places, chance, 1)
        return 1 - miss

    def average_precision(self) -> Float[np.ndarray, " B"]:
        """Mean over relevant targets of the precision at their rank, both ranks in the middle of a tie."""
        precision = (self.relevant_above + (self.relevant_tied + 1) / 2) / (self.above + (self.tied + 1) / 2)
        return np.bincount(self.query, weights=precision) / np.bincount(self.query)


def _above_and_tied(
    ordered: np.ndarray, values: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How many of `ordered` lie between a value and its end, and how many are its equals."""
    below, through = (
        np.searchsorted(ordered, values - TIE),
        np.searchsorted(ordered, values + TIE, side="right"),
    )
    return ends - through, through - below


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
