"""Agreement of modalities against naive loops, at chance, at its best, and in a collapsed space."""

import itertools
import math

import numpy as np
import pytest

from spaner.align.score.coherence import (
    cka,
    cknna,
    class_means,
    clusters,
    gaps,
    linear_transfer,
    mutual_knn,
    rsa,
)
from spaner.errors import DatasetError

N, D, E, K = 37, 5, 7, 4


def paired() -> tuple[np.ndarray, np.ndarray]:
    """Two views of the same rows, of different width, with noise of their own."""
    rng = np.random.default_rng(0)
    common = rng.standard_normal((N, D))
    return common, common @ rng.standard_normal((D, E)) + rng.standard_normal((N, E))


def strangers(n: int = 499) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.standard_normal((n, D)), rng.standard_normal((n, E))


def collapsed(n: int = N) -> np.ndarray:
    """One point, with the noise of float32."""
    return np.tile([0.6, 0.8, 0.1], (n, 1)) + 1e-8 * np.random.default_rng(2).standard_normal((n, 3))


def cosine(p: np.ndarray, q: np.ndarray) -> float:
    dot = sum(float(a) * float(b) for a, b in zip(p, q, strict=True))
    return dot / math.sqrt(sum(float(a) ** 2 for a in p) * sum(float(b) ** 2 for b in q))


def neighbours(x: np.ndarray) -> list[set[int]]:
    others = [[j for j in range(len(x)) if j != i] for i in range(len(x))]
    return [set(sorted(js, key=lambda j, i=i: -cosine(x[i], x[j]))[:K]) for i, js in enumerate(others)]


def loop_hsic(p: list[list[float]], q: list[list[float]]) -> float:
    """Song et al. 2012: over all different i, j (, l (, m)): p_ij q_ij + p_ij q_lm - 2 p_ij q_jl."""
    n = range(len(p))
    two = [p[i][j] * q[j][i] for i, j in itertools.permutations(n, 2)]
    three = [p[i][j] * q[j][m] for i, j, m in itertools.permutations(n, 3)]
    four = [p[i][j] * q[m][o] for i, j, m, o in itertools.permutations(n, 4)]
    return sum(two) / len(two) + sum(four) / len(four) - 2 * sum(three) / len(three)


def kernel(x: np.ndarray, near: list[list[bool]] | None = None) -> list[list[float]]:
    n = range(len(x))
    return [[cosine(x[i], x[j]) if near is None or near[i][j] else 0.0 for j in n] for i in n]


def test_mutual_knn_equals_the_loop():
    a, b = paired()
    shared = [len(p & q) / K for p, q in zip(neighbours(a), neighbours(b), strict=True)]
    found = mutual_knn(a, b, K)
    assert found["value"] == pytest.approx(sum(shared) / N)
    assert found["chance"] == pytest.approx(K / (N - 1))
    assert mutual_knn(a, 3 * a, K)["value"] == pytest.approx(1)


def test_mutual_knn_of_strangers_and_of_a_collapsed_space_is_chance():
    found = mutual_knn(*strangers(), 10)
    assert found["value"] == pytest.approx(found["chance"], abs=0.01)
    assert mutual_knn(collapsed(), collapsed(), K)["value"] == pytest.approx(K / (N - 1))


def test_cka_equals_the_loop():
    a, b = (side[:11] for side in paired())
    p, q = kernel(a), kernel(b)
    expected = loop_hsic(p, q) / math.sqrt(loop_hsic(p, p) * loop_hsic(q, q))
    assert cka(a, b)["value"] == pytest.approx(expected, abs=1e-5)


def test_cka_is_one_for_a_rotation_and_zero_for_strangers_and_for_a_collapsed_space():
    a, b = paired()
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((D, D)))[0]
    assert cka(a, a @ rotation)["value"] == pytest.approx(1, abs=1e-5)
    wide = np.random.default_rng(0).standard_normal((2, 53, 4096))  # more dimensions than rows
    assert cka(*wide)["value"] == pytest.approx(cka(*wide)["chance"], abs=0.1)
    assert cka(collapsed(), collapsed())["value"] == 0
    assert cka(a, b, limit=23, seed=1) == cka(a, b, limit=23, seed=1) != cka(a, b)


def test_cknna_equals_the_loop():
    a, b = (side[:13] for side in paired())
    near_a, near_b = neighbours(a), neighbours(b)
    n = range(13)

    def alike(x, y, near_x, near_y):
        """The estimate as printed; not symmetric here: j may be near i and i not near j."""
        near = [[j in near_x[i] and j in near_y[i] for j in n] for i in n]
        p, q = kernel(x, near), kernel(y, near)
        pairs = list(itertools.permutations(n, 2))
        trace = sum(p[i][j] * q[j][i] for i, j in pairs)
        product = sum(p[i][j] for i, j in pairs) * sum(q[i][j] for i, j in pairs)
        mixed = sum(p[i][j] * q[j][m] for i, j in pairs for m in n if m != j)
        return (trace + product / (12 * 11) - 2 * mixed / 11) / (13 * 10)

    own = math.sqrt(alike(a, a, near_a, near_a) * alike(b, b, near_b, near_b))
    assert cknna(a, b, K)["value"] == pytest.approx(alike(a, b, near_a, near_b) / own, abs=1e-5)


def test_cknna_at_its_ends():
    a, b = paired()
    assert cknna(a, 2 * a, K)["value"] == pytest.approx(1, abs=1e-5)
    assert cknna(a, b, K)["value"] > cknna(a, b, K)["chance"] + 0.1
    apart = cknna(*strangers())
    assert apart["value"] == pytest.approx(apart["chance"], abs=0.02)
    assert cknna(collapsed(), collapsed(), K)["value"] == pytest.approx(0, abs=1e-6)


def test_rsa_equals_the_loop():
    a, b = paired()
    pairs = list(itertools.combinations(range(N), 2))
    ranks = []
    for side in (a, b):
        values = [cosine(side[i], side[j]) for i, j in pairs]
        order = sorted(range(len(values)), key=values.__getitem__)
        ranks.append([order.index(i) for i in range(len(values))])
    (p, q), m = ranks, len(pairs)
    expected = 1 - 6 * sum((x - y) ** 2 for x, y in zip(p, q, strict=True)) / (m * (m**2 - 1))
    assert rsa(a, b)["value"] == pytest.approx(expected, abs=1e-4)


def test_rsa_at_its_ends():
    a, _ = paired()
    assert rsa(a, 5 * a)["value"] == pytest.approx(1)
    assert rsa(*strangers())["value"] == pytest.approx(0, abs=0.02)
    assert rsa(collapsed(), a)["value"] == 0
    assert rsa(collapsed(), collapsed())["value"] == 0


def test_gaps_equal_the_loop():
    a, _ = paired()
    b = a + 0.3 * np.random.default_rng(3).standard_normal(a.shape) + 1
    x, y = ([row / np.linalg.norm(row) for row in side] for side in (a, b))
    means = sum(x) / N, sum(y) / N
    p, q = [row - means[0] for row in x], [row - means[1] for row in y]
    found = gaps(a, b)
    assert found["paired"] == pytest.approx(sum(np.linalg.norm(s - t) for s, t in zip(x, y, strict=True)) / N)
    assert found["centroid"] == pytest.approx(np.linalg.norm(means[0] - means[1]))
    centred = sum(np.linalg.norm(s - t) for s, t in zip(p, q, strict=True)) / N
    blind = sum(np.linalg.norm(s - t) for s in p for t in q) / N**2
    assert found["centred"] == pytest.approx(centred)
    assert found["chance"] == pytest.approx(blind)
    assert found["value"] == pytest.approx(centred / blind)


def test_gaps_tell_a_shift_from_a_mess():
    rng = np.random.default_rng(4)
    sphere = np.concatenate([rng.standard_normal((N, D)), np.zeros((N, 1))], axis=1)
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    shifted = sphere + np.eye(D + 1)[D]  # orthogonal to all: every row keeps its length
    assert gaps(sphere, shifted)["centroid"] > 0.5
    assert gaps(sphere, shifted)["value"] < 0.5
    assert gaps(sphere, rng.permutation(sphere))["centroid"] == pytest.approx(0, abs=1e-6)
    assert gaps(sphere, rng.permutation(sphere))["value"] == pytest.approx(1, abs=0.15)
    assert gaps(collapsed(), collapsed())["value"] == 1


def entropy(*labels: np.ndarray) -> float:
    shares = np.unique(np.stack(labels), axis=1, return_counts=True)[1] / len(labels[0])
    return -sum(share * math.log(share) for share in shares)


def test_clusters_by_class_by_modality_and_by_nothing():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 20)
    centres = 4 * np.eye(8)
    by_class = [(centres[labels] + 0.1 * rng.standard_normal((100, 8)), labels) for _ in range(2)]
    found = clusters(by_class)
    assert found["v_measure"] == found["nmi"] == found["ari"] == pytest.approx(1)
    assert found["modality"] == pytest.approx(0, abs=1e-6)
    assert found["chance_v_measure"] < 0.1
    assert abs(found["chance_ari"]) < 0.05
    apart = [(rng.standard_normal((100, 8)) + 40 * np.eye(8)[side], labels) for side in (0, 1)]
    two = clusters([(rows, labels > 2) for rows, labels in apart])
    assert two["modality"] == pytest.approx(1)
    assert two["v_measure"] == pytest.approx(0, abs=0.02)


def test_v_measure_is_the_formula():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    sides = [(np.eye(6)[labels] + 0.5 * rng.standard_normal((60, 6)), labels) for _ in range(2)]
    from sklearn.cluster import KMeans

    rows = np.concatenate([x / np.linalg.norm(x, axis=1, keepdims=True) for x, _ in sides]).astype(np.float32)
    means = KMeans(3, n_init=10, random_state=0)  # pyright: ignore[reportArgumentType]
    guess, truth = means.fit_predict(rows), np.tile(labels, 2)
    mutual = entropy(guess) + entropy(truth) - entropy(guess, truth)
    homogeneity, completeness = mutual / entropy(truth), mutual / entropy(guess)
    expected = 2 * homogeneity * completeness / (homogeneity + completeness)
    assert clusters(sides)["v_measure"] == pytest.approx(expected, abs=1e-6)
    assert 0.1 < expected < 0.9


def test_clusters_of_a_collapsed_space_are_chance():
    labels = np.arange(N) % 5
    found = clusters([(np.ones((N, 3)), labels)] * 2)
    assert found["v_measure"] == pytest.approx(0, abs=1e-6)
    assert found["ari"] == pytest.approx(0, abs=1e-6)


def test_linear_transfer():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    rows = 3 * np.eye(E)[labels] + rng.standard_normal((200, E))
    found = linear_transfer(rows[:150], labels[:150], rows[150:], labels[150:])
    assert min(found["a_to_b"], found["b_to_a"]) > 0.8
    assert found["value"] == pytest.approx((found["a_to_b"] + found["b_to_a"]) / 2)
    moved = linear_transfer(rows[:150], labels[:150], np.roll(rows[150:], 1, axis=1), labels[150:])
    assert moved["value"] < found["chance"] + 0.1  # every class where another was
    same = np.ones((80, 3))
    assert linear_transfer(same, labels[:80], same, labels[80:160])["value"] == found["chance"] == 0.25


def test_class_means_equal_the_loop():
    a, _ = paired()
    labels = np.arange(N) % 3
    expected = [np.mean([row / np.linalg.norm(row) for row in a[labels == c]], axis=0) for c in range(3)]
    assert class_means(a, labels, 3) == pytest.approx(np.array(expected), abs=1e-6)


def test_bad_input():
    a, b = paired()
    labels = np.arange(N) % 3
    with pytest.raises(DatasetError, match="37 rows against 36; this measure expects the same samples on bo"):
        mutual_knn(a, b[1:])
    with pytest.raises(DatasetError, match=r"11 rows against 11; this .* both sides, 12 or more; pair"):
        cknna(a[:11], b[:11])
    with pytest.raises(DatasetError, match="found 1 modalities and 3 classes; expected two each or more"):
        clusters([(a, labels)])
    with pytest.raises(DatasetError, match="found 2 and 3, class 2 on one side only; choose splits that"):
        linear_transfer(a, labels % 2, a, labels)
    with pytest.raises(DatasetError, match="1 of 4 classes have no rows, first is class 3; expected one row"):
        class_means(a, labels, 4)
    with pytest.raises(DatasetError, match="rows hold NaN or infinity: 1 of 37, first at row 0"):
        cka(np.where(np.arange(N)[:, None] == 0, np.nan, a), b)
