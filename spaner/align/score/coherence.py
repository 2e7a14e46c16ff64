"""Whether several modalities share one space: do they cluster by meaning, and do they agree on who is near
whom?

Arrays in, numbers out; rows of any length are made unit-length here. Every measure comes back as a dict with
`value` and its `chance` level: what rows that know nothing of each other get. Ties (closer than
`metrics.TIE`) are broken by lot in expectation, so a space in which everything coincides gets chance and not
full marks: a naive neighbour list would answer the same first k rows in both modalities and call it
agreement.

*Paired* measures want row i of `a` and row i of `b` to be one sample; where there is one text a class, give
class means (`class_means`) on both sides. Memory is O(N²) for `mutual_knn`, `cknna` and `cka`, so these use
at most `limit` rows, drawn by seed. It does not load, train or plot.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from spaner.align.score.metrics import TIE, blocks, unit
from spaner.errors import DatasetError

LIMIT = 1024
"""Rows of a measure that compares all pairs (the number of Huh et al. 2024)."""


def clusters(
    sides: Sequence[tuple[Float[np.ndarray, "N E"], Int[np.ndarray, " N"]]], *, seed: int = 0
) -> dict[str, float]:
    """k-means over the pooled rows of all modalities, one cluster a class, against the class labels.

    Args:
        sides: (rows, labels) of each modality; better of similar size, since every row counts the same.

    Returns:
        `v_measure` (harmonic mean of homogeneity and completeness; `nmi` with the arithmetic mean is the same
        number under its other name), `ari`; `modality`: V-measure against the modality instead, 0 where
        clusters do not know it; `chance_v_measure` and `chance_ari` with labels shuffled by seed.

    Raises:
        DatasetError: NaN or infinity, or fewer than two modalities or classes.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, v_measure_score

    labels = np.concatenate([labels for _, labels in sides]) if sides else np.array([], int)
    classes = len(np.unique(labels))
    if len(sides) < 2 or classes < 2:
        raise DatasetError(
            f"clustering of the pooled modalities: found {len(sides)} modalities and {classes} classes; "
            "expected two each or more; score a run with more modalities or a cache with more classes"
        )
    rows = np.concatenate([unit(rows, "rows") for rows, _ in sides])
    modality = np.repeat(np.arange(len(sides)), [len(labels) for _, labels in sides])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than classes: a result
        found = KMeans(classes, n_init=10, random_state=seed).fit_predict(rows)  # pyright: ignore[reportArgumentType]
    blind = np.random.default_rng(seed).permutation(labels)
    return {
        "v_measure": float(v_measure_score(labels, found)),
        "nmi": float(normalized_mutual_info_score(labels, found)),
        "ari": float(adjusted_rand_score(labels, found)),
        "modality": float(v_measure_score(modality, found)),
        "chance_v_measure": float(v_measure_score(blind, found)),
        "chance_ari": float(adjusted_rand_score(blind, found)),
    }


def gaps(a: Float[np.ndarray, "N E"], b: Float[np.ndarray, "N E"]) -> dict[str, float]:
    """The distance between two modalities, taken apart: their centroids, and what is left after centring.

    Returns:
        `paired`: mean distance of a row to its partner; `centroid`: distance of the two means; `centred`:
        mean distance of partners once each side's mean is subtracted; `chance`: the same over all N² pairs,
        partners or not; `value`: centred / chance. 1: after centring, partners are as far as strangers (also
        the answer where nothing is left); 0: centring alone would close the gap.

    Raises:
        DatasetError: NaN or infinity, fewer than two rows, or sides of different size.
    """
    x, y = _paired(a, b, 2)
    x, y = x.astype(np.float64), y.astype(np.float64)
    p, q = x - x.mean(axis=0), y - y.mean(axis=0)
    total = sum(np.sqrt(_squared_distances(p[block], q)).sum() for block in blocks(len(p), len(q)))
    centred, chance = _row_distances(p, q).mean(), total / len(p) ** 2
    return {
        "paired": float(_row_distances(x, y).mean()),
        "centroid": float(np.linalg.norm(x.mean(axis=0) - y.mean(axis=0))),
        "centred": float(centred),
        "chance": float(chance),
        "value": float(centred / chance) if chance > TIE else 1.0,
    }


def mutual_knn(
    a: Float[np.ndarray, "N D"],
    b: Float[np.ndarray, "N E"],
    k: int = 10,
    *,
    limit: int = LIMIT,
    seed: int = 0,
) -> dict[str, float]:
    """Share of the k nearest rows that both modalities agree on (Huh et al. 2024); chance k / (N - 1).

    Raises:
        DatasetError: NaN or infinity, fewer than k + 2 rows, or sides of different size.
    """
    x, y = _sampled(*_paired(a, b, k + 2), limit, seed)
    both = _nearest(x @ x.T, k) * _nearest(y @ y.T, k)
    return {"value": float(both.sum() / (k * len(x))), "chance": k / (len(x) - 1)}


def cka(
    a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "N E"], *, limit: int = LIMIT, seed: int = 0
) -> dict[str, float]:
    """Centred kernel alignment with linear kernels and the unbiased HSIC (Song et al. 2012, eq. 5).

    1: the same geometry up to rotation and scale. Chance 0 for any N and width, which the biased estimate
    does not have: with more dimensions than rows that one nears 1 for noise. 0 where a side has no spread.

    Raises:
        DatasetError: NaN or infinity, fewer than four rows, or sides of different size.
    """
    x, y = _sampled(*_paired(a, b, 4), limit, seed)
    x, y = x.astype(np.float64), y.astype(np.float64)
    return {"value": _aligned(x @ x.T, y @ y.T), "chance": 0.0}


def cknna(
    a: Float[np.ndarray, "N D"],
    b: Float[np.ndarray, "N E"],
    k: int = 10,
    *,
    limit: int = LIMIT,
    seed: int = 0,
) -> dict[str, float]:
    """CKA that looks only at pairs which are among the k nearest of a row in both (Huh et al. 2024, app. A).

    Between mutual k-NN, which forgets how near, and CKA, which lets far pairs decide. `chance` is the value
    with partners shuffled by seed.

    Raises:
        DatasetError: NaN or infinity, fewer than k + 2 rows, or sides of different size.
    """
    x, y = _sampled(*_paired(a, b, max(k + 2, 4)), limit, seed)
    x, y = x.astype(np.float64), y.astype(np.float64)
    blind = y[np.random.default_rng(seed).permutation(len(y))]
    return {
        "value": _neighbourhoods_aligned(x @ x.T, y @ y.T, k),
        "chance": _neighbourhoods_aligned(x @ x.T, blind @ blind.T, k),
    }


def rsa(a: Float[np.ndarray, "C D"], b: Float[np.ndarray, "C E"]) -> dict[str, float]:
    """Spearman correlation of two class-by-class cosine matrices: do sides agree on which classes are alike?

    One row per class (`class_means`). The widths may differ, so frozen encoders can be compared before
    anything is trained. Chance 0; 0 also where all classes are equally alike.

    Raises:
        DatasetError: NaN or infinity, fewer than three classes, or sides of different size.
    """
    from scipy.stats import spearmanr

    x, y = _paired(a, b, 3)
    upper = np.triu_indices(len(x), 1)
    p, q = (x @ x.T)[upper], (y @ y.T)[upper]
    if min(np.ptp(p), np.ptp(q)) < TIE:
        return {"value": 0.0, "chance": 0.0}
    return {"value": float(np.asarray(spearmanr(p, q))[0]), "chance": 0.0}


def linear_transfer(
    a: Float[np.ndarray, "N E"],
    a_labels: Int[np.ndarray, " N"],
    b: Float[np.ndarray, "M E"],
    b_labels: Int[np.ndarray, " M"],
) -> dict[str, float]:
    """A logistic regression trained on one modality and tested on the other, in both directions.

    Returns:
        `a_to_b`, `b_to_a`: accuracy averaged over the classes of the tested side; `value` their mean;
        `chance` 1 / C.

    Raises:
        DatasetError: NaN or infinity, one class only, or a class that the other side lacks.
    """
    classes, others = np.unique(a_labels), np.unique(b_labels)
    if len(classes) < 2 or not np.array_equal(classes, others):
        odd = np.setxor1d(classes, others)
        raise DatasetError(
            f"linear transfer needs the same two classes or more on both sides; found {len(classes):,} and "
            f"{len(others):,}" + (f", class {odd[0]} on one side only" if len(odd) else "") + "; "
            "choose splits that hold the same classes"
        )
    x, y = unit(a, "rows"), unit(b, "rows")
    forth, back = _probed(x, a_labels, y, b_labels), _probed(y, b_labels, x, a_labels)
    return {"a_to_b": forth, "b_to_a": back, "value": (forth + back) / 2, "chance": 1 / len(classes)}


def class_means(
    rows: Float[np.ndarray, "N E"], labels: Int[np.ndarray, " N"], classes: int
) -> Float[np.ndarray, "C E"]:
    """The mean of the unit-length rows of each class, not normalised again.

    Raises:
        DatasetError: NaN or infinity, or a class without rows.
    """
    counts = np.bincount(labels, minlength=classes)
    if len(empty := np.flatnonzero(counts == 0)):
        raise DatasetError(
            f"{len(empty):,} of {classes:,} classes have no rows, first is class {empty[0]}; "
            "expected one row each at least; choose another split with --split"
        )
    sums = np.zeros((classes, rows.shape[1]))
    np.add.at(sums, labels, unit(rows, "rows"))
    return sums / counts[:, None]


def _probed(x: np.ndarray, x_labels: np.ndarray, y: np.ndarray, y_labels: np.ndarray) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score

    model = LogisticRegression(max_iter=1000).fit(x, x_labels)
    return float(balanced_accuracy_score(y_labels, model.predict(y)))


def _nearest(similar: Float[np.ndarray, "N N"], k: int) -> Float[np.ndarray, "N N"]:
    """Probability that column j is among the k nearest others of row i, ties broken by lot."""
    others = similar.copy()
    np.fill_diagonal(others, -np.inf)
    last = np.partition(others, -k, axis=1)[:, [-k]]
    above, tied = others > last + TIE, np.abs(others - last) <= TIE
    places = k - np.count_nonzero(above, axis=1, keepdims=True)
    return above + tied * (places / np.count_nonzero(tied, axis=1, keepdims=True))


def _neighbourhoods_aligned(p: np.ndarray, q: np.ndarray, k: int) -> float:
    """HSIC(p, q) / sqrt(HSIC(p, p) HSIC(q, q)), each over the pairs that are near in both of its kernels."""
    near_p, near_q = _nearest(p, k), _nearest(q, k)
    both, own_p, own_q = near_p * near_q, near_p**2, near_q**2
    scale = max(_hsic(own_p * p, own_p * p), 0) * max(_hsic(own_q * q, own_q * q), 0)
    return float(_hsic(both * p, both * q) / np.sqrt(scale)) if scale > TIE**4 else 0.0


def _aligned(p: np.ndarray, q: np.ndarray) -> float:
    scale = max(_hsic(p, p), 0) * max(_hsic(q, q), 0)
    return float(_hsic(p, q) / np.sqrt(scale)) if scale > TIE**4 else 0.0


def _hsic(p: Float[np.ndarray, "N N"], q: Float[np.ndarray, "N N"]) -> float:
    """The unbiased estimate; diagonals are left out. `cknna` hands in kernels that are not symmetric."""
    n = len(p)
    p, q = p - np.diag(np.diag(p)), q - np.diag(np.diag(q))
    mixed = p.sum(axis=0) @ q.sum(axis=1)
    total = (p * q.T).sum() + p.sum() * q.sum() / ((n - 1) * (n - 2)) - 2 * mixed / (n - 2)
    return float(total / (n * (n - 3)))


def _row_distances(x: np.ndarray, y: np.ndarray) -> Float[np.ndarray, " N"]:
    return np.linalg.norm(x - y, axis=1)


def _squared_distances(x: np.ndarray, y: np.ndarray) -> Float[np.ndarray, "N M"]:
    lengths = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)
    return np.maximum(lengths - 2 * x @ y.T, 0)


def _paired(a: np.ndarray, b: np.ndarray, fewest: int) -> tuple[np.ndarray, np.ndarray]:
    """Both sides at unit length, if they are rows of the same samples and there are enough of them."""
    if len(a) != len(b) or len(a) < fewest:
        raise DatasetError(
            f"{len(a):,} rows against {len(b):,}; this measure expects the same samples on both sides, "
            f"{fewest} or more; pair rows by id, or compare class means"
        )
    return unit(a, "rows"), unit(b, "rows")


def _sampled(x: np.ndarray, y: np.ndarray, limit: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= limit:
        return x, y
    rows = np.sort(np.random.default_rng(seed).choice(len(x), limit, replace=False))
    return x[rows], y[rows]
