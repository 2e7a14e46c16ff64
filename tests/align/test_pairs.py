"""Many modalities against loops, at chance in a collapsed space, and with rows missing."""

import math

import numpy as np
import pytest

from spaner.align.score.pairs import aggregation, joint_scores, missing_curve, ordered_pairs
from spaner.align.score.retrieval import retrieval
from spaner.errors import DatasetError

N, C, E = 60, 5, 8
LABELS = np.arange(N) % C


def modalities(noise: float = 0.6) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    classes = np.eye(C, E)
    sides = {
        name: classes[LABELS] + noise * rng.standard_normal((N, E)) for name in ("image", "audio", "table")
    }
    return sides, classes


def normal(x: np.ndarray) -> np.ndarray:
    return x / math.sqrt(sum(float(v) ** 2 for v in x))


def test_joint_scores_equal_the_loop():
    sides, classes = modalities()
    rows = np.stack(list(sides.values()))
    present = np.random.default_rng(1).random((3, N)) > 0.4
    found, weighted = (
        joint_scores(rows, classes, present),
        joint_scores(rows, classes, present, temperature=0.1),
    )
    for n in range(N):
        z = [normal(rows[m, n]) for m in range(3) if present[m, n]]
        for c in range(C):
            if not z:
                assert found[n, c] == weighted[n, c] == 0
                continue
            assert found[n, c] == pytest.approx(float(normal(sum(z[1:], z[0])) @ classes[c]), abs=1e-5)
            w = [math.exp(float(x @ classes[c]) / 0.1) for x in z]
            centre = normal(sum((a * x for a, x in zip(w, z, strict=True)), np.zeros(E)))
            assert weighted[n, c] == pytest.approx(float(centre @ classes[c]), abs=1e-4)


def test_a_missing_row_weighs_nothing_however_cold_the_weights():
    rows = np.stack([-np.eye(2), np.eye(2)])
    present = np.array([[True, True], [False, True]])
    found = joint_scores(rows, np.eye(2), present, temperature=1e-3)
    assert found[0, 0] == pytest.approx(-1)  # the only row that is there points the other way
    assert found[1, 1] == pytest.approx(1)


def test_joint_scores_in_any_block_size(monkeypatch):
    sides, classes = modalities()
    rows = np.stack(list(sides.values()))
    whole = [joint_scores(rows, classes, temperature=t) for t in (None, 0.1)]
    monkeypatch.setattr("spaner.align.score.metrics.BLOCK", 40)
    for t, expected in zip((None, 0.1), whole, strict=True):
        assert joint_scores(rows, classes, temperature=t) == pytest.approx(expected, abs=1e-6)


def test_gain_is_joint_minus_the_best_single():
    sides, classes = modalities()
    found = aggregation(sides, classes, LABELS)
    for name, rows in sides.items():
        right = [
            int(np.argmax([normal(row) @ c for c in classes])) == k
            for row, k in zip(rows, LABELS, strict=True)
        ]
        assert found["single"][name] == pytest.approx(sum(right) / N)
    assert found["best"] == max(found["single"], key=lambda name: found["single"][name])
    assert found["gain"] == pytest.approx(found["joint"] - max(found["single"].values()))
    assert found["gain"] > 0.05  # three independent views know more than one
    assert found["chance"] == 1 / C


def test_weights_silence_a_modality_that_cannot_answer():
    sides, classes = modalities(0.3)
    noise = {f"noise{i}": np.random.default_rng(i).standard_normal((N, E)) for i in range(6)}
    plain = aggregation(sides | noise, classes, LABELS)
    weighted = aggregation(sides | noise, classes, LABELS, temperature=0.05)
    assert plain["gain"] < 0
    assert weighted["joint"] > plain["joint"]


def test_a_collapsed_space_gains_nothing():
    same = np.ones((N, E)) + 1e-8 * np.random.default_rng(0).standard_normal((N, E))
    for temperature in (None, 0.1):
        found = aggregation({"a": same, "b": same}, np.ones((C, E)), LABELS, temperature=temperature)
        assert (found["joint"], found["gain"]) == (pytest.approx(1 / C), pytest.approx(0))


def test_missing_rows_cost_what_they_cost():
    sides, classes = modalities(0.05)
    curve = missing_curve(sides, classes, LABELS, shares=(0, 0.3, 0.9, 1))
    assert [point["missing"] for point in curve] == [0, 0.3, 0.9, 1]
    assert curve[0]["joint"] == 1
    for point in curve:  # whatever is there is right; a sample with nothing is right by chance
        assert point["joint"] == pytest.approx(1 - point["empty"] * (1 - 1 / C))
    assert curve[2]["empty"] == pytest.approx(0.9**3, abs=0.15)
    assert curve[2]["gain"] > 0.1
    assert curve[3]["joint"] == pytest.approx(1 / C)
    assert curve == missing_curve(sides, classes, LABELS, shares=(0, 0.3, 0.9, 1))
    assert missing_curve(sides, classes, LABELS, shares=(0.9,))[0]["empty"] == curve[2]["empty"]
    assert curve[2] != missing_curve(sides, classes, LABELS, shares=(0.9,), seed=1)[0]


def test_ordered_pairs_tell_emergent_from_trained():
    sides, classes = modalities()
    every = {name: (rows, LABELS) for name, rows in sides.items()} | {"text": (classes, np.arange(C))}
    found = ordered_pairs(every, [("text", name) for name in sides])
    assert len(found["pairs"]) == 12
    kinds = {(pair["query"], pair["target"]): pair["emergent"] for pair in found["pairs"]}
    assert {pair for pair, emergent in kinds.items() if not emergent} == {
        pair for name in sides for pair in ((name, "text"), ("text", name))
    }
    one = next(p for p in found["pairs"] if (p["query"], p["target"]) == ("audio", "table"))
    expected = retrieval(sides["audio"], sides["table"], LABELS, LABELS)
    assert expected.items() <= one.items()
    recalls = [pair["recall@1"] for pair in found["pairs"] if pair["emergent"]]
    assert found["emergent"]["recall@1"] == pytest.approx(sum(recalls) / 6)
    assert ordered_pairs({k: every[k] for k in ("image", "text")}, [("image", "text")])["emergent"] is None


def test_ordered_pairs_of_a_collapsed_space_are_chance():
    same = {name: (np.ones((N, E)), LABELS) for name in "ab"}
    found = ordered_pairs(same, [])
    assert found["trained"] is None
    assert found["emergent"]["recall@1"] == pytest.approx(found["emergent"]["chance"]) == pytest.approx(1 / C)


def test_bad_input():
    sides, classes = modalities()
    with pytest.raises(DatasetError, match="pairs of modalities: found image; expected two modalities or"):
        ordered_pairs({"image": (sides["image"], LABELS)}, [])
    with pytest.raises(DatasetError, match=r"found image \(60, 8\), audio \(59, 8\); pair rows by id"):
        aggregation({"image": sides["image"], "audio": sides["audio"][1:]}, classes, LABELS)
    with pytest.raises(DatasetError, match=r"share of missing rows is 90; expected 0 to 1; for nine in ten"):
        missing_curve(sides, classes, LABELS, shares=(90,))
    with pytest.raises(DatasetError, match="label 9 in 1 test rows"):
        aggregation(sides, classes, np.where(np.arange(N) == 0, 9, LABELS))
