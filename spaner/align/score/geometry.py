"""The shape of a shared space: how far apart modalities lie, whether a line tells them apart, how evenly rows
spread.

Arrays in, numbers out; embeddings of any length are made unit-length here. Where a number compares all pairs
and rows are many, it is computed on a seeded sample whose size is an argument. It does not look at labels.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from spaner.align.score.metrics import blocks, unit
from spaner.errors import DatasetError


def modality_gap(a: Float[np.ndarray, "N E"], b: Float[np.ndarray, "M E"]) -> float:
    """Distance between the centroids of two modalities on the unit sphere, 0 … 2 (Liang et al. 2022, sec. 2).

    Raises:
        DatasetError: NaN or infinity, or a side without rows.
    """
    return float(np.linalg.norm(_centroid(a) - _centroid(b)))


def separability(
    a: Float[np.ndarray, "N E"],
    b: Float[np.ndarray, "M E"],
    *,
    folds: int = 5,
    limit: int = 2000,
    seed: int = 0,
) -> float:
    """How well a logistic regression tells two modalities apart: balanced accuracy, cross-validated.

    0.5: one cloud. 1: a plane lies between them (Liang et al. 2022 find this for CLIP). Balanced, so that ten
    texts beside a thousand images cannot score by always answering "image". At most `limit` rows of each side
    are used.

    Raises:
        DatasetError: NaN or infinity, or fewer rows on a side than folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    if min(len(a), len(b)) < folds:
        raise DatasetError(
            f"separability needs {folds} rows of each modality; found {len(a):,} and {len(b):,}; "
            "use a larger split"
        )
    rng = np.random.default_rng(seed)
    sides = [_sample(unit(side, "rows"), limit, rng) for side in (a, b)]
    modality = np.repeat([0, 1], [len(side) for side in sides])
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    classifier = LogisticRegression(max_iter=1000, class_weight="balanced")
    scores = cross_val_score(
        classifier, np.concatenate(sides), modality, cv=split, scoring="balanced_accuracy"
    )
    return float(scores.mean())


def uniformity(x: Float[np.ndarray, "N E"], *, t: float = 2, limit: int = 4096, seed: int = 0) -> float:
    """log of the mean over pairs of exp(-t |x_i - x_j|²) (Wang & Isola 2020, eq. 2).

    0 when everything coincides; the lower, the more evenly rows cover the sphere (-2t is the limit for many
    dimensions, -4 at t = 2). Above `limit` rows a seeded sample stands for all.

    Raises:
        DatasetError: NaN or infinity, or fewer than two rows.
    """
    if len(x) < 2:
        raise DatasetError(
            f"uniformity compares pairs of rows; found {len(x)} rows; expected 2 or more; use a larger split"
        )
    rows = _sample(unit(x, "rows"), limit, np.random.default_rng(seed))
    total = 0.0
    for block in blocks(len(rows), len(rows)):
        squared = np.maximum(2 - 2 * (rows[block] @ rows.T), 0)
        total += np.exp(-t * squared).sum(dtype=np.float64)
    n = len(rows)
    return float(np.log((total - n) / (n * (n - 1))))


def plane(x: Float[np.ndarray, "N E"], *, perplexity: float = 30, seed: int = 0) -> Float[np.ndarray, "N 2"]:
    """Positions in the plane by t-SNE over cosine distance (van der Maaten & Hinton 2008), for looking only:
    distances between clusters mean nothing. Seeded. Perplexity is lowered where rows are few.

    Raises:
        DatasetError: NaN or infinity, or fewer than four rows.
    """
    from sklearn.manifold import TSNE

    if len(x) < 4:
        raise DatasetError(
            f"t-SNE needs 4 rows; found {len(x)}; expected more to look at; use a larger split"
        )
    rows = unit(x, "rows")
    enough = min(perplexity, (len(x) - 1) / 3)
    # On the unit sphere squared Euclidean distance is twice the cosine distance, and has the faster search.
    method = "exact" if len(x) < 200 else "barnes_hut"
    return TSNE(2, perplexity=enough, init="pca", method=method, random_state=seed).fit_transform(rows)


def _centroid(x: np.ndarray) -> np.ndarray:
    if len(x) == 0:
        raise DatasetError(
            "a modality has no rows; expected at least 1 on each side; choose another split with --split"
        )
    return unit(x, "rows").mean(axis=0, dtype=np.float64)


def _sample(x: np.ndarray, limit: int, rng: np.random.Generator) -> np.ndarray:
    return x if len(x) <= limit else x[np.sort(rng.choice(len(x), limit, replace=False))]
