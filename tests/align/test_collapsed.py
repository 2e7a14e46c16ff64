"""docs/measures.md on trial: every public measure is in it, and a collapsed space fools those it names.

One space, in which every embedding is the same point but for the noise of float32, goes through all of them.
"""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from spaner.align.score import (
    calibration,
    coherence,
    geometry,
    intervals,
    matching,
    metrics,
    pairs,
    retrieval,
)

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "measures.md").read_text(encoding="utf-8")
MODULES = ("metrics", "confusion", "intervals", "retrieval", "pairs", "geometry", "coherence", "calibration")

N, C, E = 120, 6, 16
LABELS = np.arange(N) % C


def points(n: int, seed: int) -> np.ndarray:
    noise = 1e-8 * np.random.default_rng(seed).standard_normal((n, E))
    return np.ones((n, E)) / 4 + noise


IMAGE, AUDIO, TEXT = points(N, 0), points(N, 1), points(C, 2)
FOUND = matching.match(IMAGE, TEXT, LABELS)
LOGITS = 100 * metrics.unit(IMAGE, "rows") @ metrics.unit(TEXT, "rows").T


def near(value: float, to: float) -> bool:
    return value == pytest.approx(to, abs=1e-3)


def test_these_are_fooled():
    scores = metrics.summary(FOUND)
    assert near(scores["positive_cosine"], 1)
    assert near(geometry.modality_gap(IMAGE, AUDIO), 0)
    assert near(geometry.separability(np.ones((N, E)), np.ones((N, E))), 0.5)
    assert near(calibration.ece(LOGITS, LABELS), 0)
    apart = coherence.gaps(IMAGE, AUDIO)
    assert near(apart["paired"], 0)
    assert near(apart["centroid"], 0)
    assert near(apart["centred"], 0)
    assert near(coherence.clusters([(IMAGE * 0 + 1, LABELS), (AUDIO * 0 + 1, LABELS)])["modality"], 0)
    sure = intervals.bootstrap(FOUND.credit)
    assert (sure.low, sure.high) == (pytest.approx(sure.value), pytest.approx(sure.value))


def test_these_get_chance():
    scores = metrics.summary(FOUND)
    assert near(scores["accuracy"], 1 / C)
    assert near(scores["accuracy_tie_aware"], 1 / C)
    between = retrieval.retrieval(IMAGE, AUDIO, LABELS, LABELS)
    assert near(between["recall@1"], 1 / C)
    assert between["mAP"] == pytest.approx(1 / C, abs=0.01)
    every = pairs.ordered_pairs({"image": (IMAGE, LABELS), "audio": (AUDIO, LABELS)}, [])
    assert near(every["emergent"]["recall@1"], every["emergent"]["chance"])
    curve = pairs.missing_curve({"image": IMAGE, "audio": AUDIO}, TEXT, LABELS)
    assert all(near(point["joint"], 1 / C) and near(point["gain"], 0) for point in curve)
    agreed = coherence.mutual_knn(IMAGE, AUDIO)
    assert near(agreed["value"], agreed["chance"])
    groups = coherence.clusters([(IMAGE * 0 + 1, LABELS), (AUDIO * 0 + 1, LABELS)])
    assert near(groups["v_measure"], 0)
    assert near(groups["ari"], 0)
    moved = coherence.linear_transfer(np.ones((N, E)), LABELS, np.ones((N, E)), LABELS)
    assert near(moved["value"], moved["chance"])
    assert near(calibration.nll(LOGITS, LABELS), np.log(C))


def test_these_see_it():
    scores = metrics.summary(FOUND)
    assert near(scores["negative_cosine"], scores["positive_cosine"])
    assert near(scores["margin"], 0)
    assert near(scores["centred_cosine"], 0)
    assert near(geometry.uniformity(IMAGE), 0)
    assert retrieval.hubness(IMAGE, AUDIO) > 2
    assert coherence.gaps(np.ones((N, E)), np.ones((N, E)))["value"] == 1
    assert near(coherence.cka(IMAGE, AUDIO)["value"], 0)
    assert near(coherence.cknna(IMAGE, AUDIO)["value"], 0)
    means = (coherence.class_means(side, LABELS, C) for side in (IMAGE, AUDIO))
    assert near(coherence.rsa(*means)["value"], 0)
    heat = calibration.temperature(LOGITS, LABELS)
    assert near(calibration.nll(LOGITS, LABELS, heat), np.log(C))


NAMES_IN_PROSE = {
    "match": "accuracy",
    "summary": "accuracy",
    "margin": "margin",
    "centred_cosine": "centred cosine",
    "per_class_accuracy": "per-class accuracy",
    "ceiling": "ceiling",
    "chance": "chance level",
    "confusion_matrix": "confusion matrix",
    "most_confused_classes": "most confused",
    "most_confused_pairs": "most confused",
    "bootstrap": "bootstrap interval",
    "paired_difference": "paired difference",
    "retrieval": "recall@k",
    "ordered_pairs": "ordered pairs",
    "joint_scores": "joint scores",
    "aggregation": "aggregation gain",
    "missing_curve": "missing-row curve",
    "modality_gap": "modality gap",
    "plane": "t-SNE plane",
    "clusters": "V-measure",
    "mutual_knn": "mutual k-NN",
    "linear_transfer": "linear transfer",
    "calibration": "ECE and NLL after it",
}
NO_MEASURES = {
    "unit",
    "blocks",
    "name_groups",
    "check_labels",
    "check_every_class",
    "match_scores",
    "of_match",
}


@pytest.mark.parametrize("module", MODULES)
def test_every_public_measure_is_in_the_document(module: str):
    tree = ast.parse((ROOT / "spaner" / "align" / "score" / f"{module}.py").read_text(encoding="utf-8"))
    public = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} - NO_MEASURES
    for name in sorted(name for name in public if not name.startswith("_")):
        word = NAMES_IN_PROSE.get(name, name)
        assert re.search(re.escape(word), DOCUMENT, re.IGNORECASE), f"{name} is nowhere in docs/measures.md"
