"""Many modalities in one space: every ordered pair, what was never trained together, and what modalities are
worth together.

Arrays in, numbers out; rows of any length are made unit-length here. A pair is *emergent* when no loss ever
compared its two modalities: what it finds, it finds through a third. *Joint* scores ask the modalities of one
sample together; the *aggregation gain* is their accuracy minus that of the best single modality, and is
negative where joining hurts. Missing rows are left out of a sample's centre, never filled in; a sample with
none left scores every class alike, which is chance.

Ties are broken by lot in expectation (`metrics`), so a collapsed space gets chance in every cell and a gain
of 0. It does not load, train or choose: the best single modality is the best on the same rows, the hardest
rival there is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from spaner.align.score.metrics import TIE, blocks, chance, check_labels, unit
from spaner.align.score.retrieval import retrieval
from spaner.errors import DatasetError

SHARES = (0.0, 0.25, 0.5, 0.75, 0.9)
"""Shares of missing rows at which the curve is read."""


def ordered_pairs(
    sides: Mapping[str, tuple[Float[np.ndarray, "N E"], Int[np.ndarray, " N"]]],
    trained: Collection[tuple[str, str]],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, Any]:
    """Retrieval from every modality to every other.

    Args:
        sides: rows and labels of each modality; of text one row per class.
        trained: pairs that a loss compared, in either order.

    Returns:
        `pairs`: a dict for each ordered pair with `query`, `target`, `emergent` and the numbers of
        `retrieval.retrieval`, its `chance` among them; `trained` and `emergent`: mean recall@1, mAP and
        chance over the pairs of that kind, None where there is none.

    Raises:
        DatasetError: fewer than two modalities, NaN, no rows, or a class without a target.
    """
    if len(sides) < 2:
        raise DatasetError(
            f"pairs of modalities: found {', '.join(sides) or 'none'}; expected two modalities or more; "
            "score a run that was trained on more"
        )
    together = {frozenset(pair) for pair in trained}
    found = [
        {
            "query": query,
            "target": target,
            "emergent": frozenset((query, target)) not in together,
            **retrieval(sides[query][0], sides[target][0], sides[query][1], sides[target][1], ks),
        }
        for query, target in permutations(sides, 2)
    ]
    kinds = {"trained": False, "emergent": True}
    means = {kind: _mean([p for p in found if p["emergent"] is emergent]) for kind, emergent in kinds.items()}
    return {"pairs": found, **means}


def _mean(found: list[dict[str, Any]]) -> dict[str, float] | None:
    names = ("recall@1", "mAP", "chance")
    return {name: float(np.mean([pair[name] for pair in found])) for name in names} if found else None


def joint_scores(
    rows: Float[np.ndarray, "M N E"],
    classes: Float[np.ndarray, "C E"],
    present: Bool[np.ndarray, "M N"] | None = None,
    *,
    temperature: float | None = None,
) -> Float[np.ndarray, "N C"]:
    """Cosine between each class and the centre of a sample's modalities.

    Args:
        rows: row n of every modality is one sample.
        classes: one vector a class: what asks.
        present: which rows exist; absent: all.
        temperature: None: every modality counts the same. A number: the class that asks weighs modality m by
            softmax(class · z_m / temperature), so that a modality which cannot answer is not heard.

    Raises:
        DatasetError: NaN or infinity.
    """
    there = np.ones(rows.shape[:2], bool) if present is None else present
    z = np.stack([unit(side, "rows") for side in rows]) * there[..., None]
    queries = unit(classes, "class vectors")
    parts = [
        _block_scores(z[:, block], queries, there[:, block], temperature)
        for block in blocks(z.shape[1], len(z) * len(queries))
    ]
    return np.concatenate(parts)


def _block_scores(
    z: Float[np.ndarray, "M B E"],
    queries: Float[np.ndarray, "C E"],
    there: Bool[np.ndarray, "M B"],
    temperature: float | None,
) -> Float[np.ndarray, "B C"]:
    """sum_m w_m q·z_m / |sum_m w_m z_m| with weights for each sample and query."""
    if temperature is None:
        return unit(z.sum(axis=0), "centres") @ queries.T
    cosines = z @ queries.T  # (M, B, C)
    exponents = np.where(there[..., None], cosines / temperature, -np.inf)
    highest = np.maximum(exponents.max(axis=0), -1 / temperature)  # finite where a sample has nothing
    weights = np.exp(exponents - highest)
    squared = np.einsum("mbc,kbc,mbe,kbe->bc", weights, weights, z, z, optimize=True)
    return (weights * cosines).sum(axis=0) / np.sqrt(np.maximum(squared, TIE**2))


def aggregation(
    sides: Mapping[str, Float[np.ndarray, "N E"]],
    classes: Float[np.ndarray, "C E"],
    labels: Int[np.ndarray, " N"],
    present: Bool[np.ndarray, "M N"] | None = None,
    *,
    temperature: float | None = None,
) -> dict[str, Any]:
    """Accuracy of all modalities together, of each alone, and the gain.

    Args:
        sides: rows of each modality, row n of all of them one sample; `present` in the same order.
        temperature: of the weights, see `joint_scores`.

    Returns:
        `joint`; `single`: accuracy of each modality, where a missing row is right by chance only; `best`: the
        name of the best; `gain`: joint minus best; `chance`.

    Raises:
        DatasetError: NaN, no rows, labels outside 0 … C-1, or modalities with different numbers of rows.
    """
    rows = _stacked(sides)
    check_labels(labels, len(classes))
    there = np.ones(rows.shape[:2], bool) if present is None else present
    joint = _accuracy(joint_scores(rows, classes, there, temperature=temperature), labels)
    single = {
        name: _accuracy(joint_scores(rows[[m]], classes, there[[m]]), labels) for m, name in enumerate(sides)
    }
    best = max(single, key=single.__getitem__)
    gain = joint - single[best]
    return {"joint": joint, "single": single, "best": best, "gain": gain, "chance": chance(len(classes))}


def missing_curve(
    sides: Mapping[str, Float[np.ndarray, "N E"]],
    classes: Float[np.ndarray, "C E"],
    labels: Int[np.ndarray, " N"],
    *,
    shares: Sequence[float] = SHARES,
    temperature: float | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """`aggregation` while more and more rows are missing, each with its `missing` share and the share of
    samples that are left with nothing, `empty`.

    One draw by seed serves all shares, so a row that is missing at a quarter is missing at a half: the curve
    bends for what is lost, not for another draw.

    Raises:
        DatasetError: a share outside 0 … 1, and as `aggregation`.
    """
    wrong = [share for share in shares if not 0 <= share <= 1]
    if wrong:
        raise DatasetError(f"share of missing rows is {wrong[0]}; expected 0 to 1; for nine in ten write 0.9")
    shape = len(sides), len(labels)
    draw = np.random.default_rng(seed).random(shape)
    return [
        {
            "missing": share,
            "empty": float((draw < share).all(axis=0).mean()),
            **aggregation(sides, classes, labels, draw >= share, temperature=temperature),
        }
        for share in shares
    ]


def _stacked(sides: Mapping[str, np.ndarray]) -> Float[np.ndarray, "M N E"]:
    if len({rows.shape for rows in sides.values()}) != 1:
        found = ", ".join(f"{name} {rows.shape}" for name, rows in sides.items()) or "no modality"
        raise DatasetError(
            f"modalities asked together need the same samples in one space; found {found}; "
            "pair rows by id and mark the missing ones"
        )
    return np.stack(list(sides.values()))


def _accuracy(scores: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"]) -> float:
    """Share of rows whose class scores best; t equals give 1/t."""
    tied = scores >= scores.max(axis=1, keepdims=True) - TIE
    return float((tied[np.arange(len(labels)), labels] / np.count_nonzero(tied, axis=1)).mean())
