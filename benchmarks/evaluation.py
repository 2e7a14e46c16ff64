"""Time and memory of scoring a test table: blocks against one full score matrix.

    python benchmarks/evaluation.py                     50,000 rows x 1,000 classes x 512, as ImageNet's val
    python benchmarks/evaluation.py --rows 5000         a quick look

Each way runs in a process of its own and does the same work (`accuracy, tie-aware accuracy, positive cosine,
margin to the hardest negative, mean negative, centred cosine`) on the same made-up vectors; the best of
`--repeats` is reported. Processor time counts both cores and does not grow when other programs run. "peak" is
the largest memory of the process above what the vectors themselves take.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from spaner.align.score import calibration, geometry, intervals, matching, metrics, retrieval


def vectors(rows: int, classes: int, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Rows around their class vector; two classes have a namesake, as in ImageNet's list."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((classes, dim), np.float32)
    centres[-2:] = centres[:2]
    labels = rng.integers(0, classes, rows)
    x = rng.standard_normal((rows, dim), np.float32)
    for block in metrics.blocks(rows, dim):
        x[block] += 0.15 * centres[labels[block]]
    return x, centres, labels, [f"class {i}" for i in range(classes - 2)] + ["class 0", "class 1"]


def in_blocks(
    x: np.ndarray, classes: np.ndarray, labels: np.ndarray, names: list[str]
) -> dict[str, float | None]:
    return metrics.summary(matching.match(x, classes, labels, names))


def with_confidence(
    x: np.ndarray, classes: np.ndarray, labels: np.ndarray, names: list[str]
) -> dict[str, float | None]:
    found = matching.match(x, classes, labels, names, scale=100.0)
    return metrics.summary(found) | calibration.of_match(found)


def full_matrix(x: np.ndarray, classes: np.ndarray, labels: np.ndarray, names: list[str]) -> dict[str, Any]:
    """The same numbers as one would write them first, from the (N, C) matrix."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    classes = classes / np.linalg.norm(classes, axis=1, keepdims=True)
    scores = x @ classes.T
    own = np.arange(len(x)), labels
    group = np.unique(names, return_inverse=True)[1]
    same = group == group[labels][:, None]
    tied = scores >= scores.max(axis=1, keepdims=True) - metrics.TIE
    centred, targets = x - x.mean(axis=0), classes[labels] - classes[labels].mean(axis=0)
    return {
        "accuracy": float((tied[own] / tied.sum(axis=1)).mean()),
        "accuracy_tie_aware": float(((tied & same).sum(axis=1) / tied.sum(axis=1)).mean()),
        "positive_cosine": float(scores[own].mean()),
        "margin": float((scores[own] - np.where(same, -np.inf, scores).max(axis=1)).mean()),
        "negative_cosine": float(np.nanmean(np.where(same, np.nan, scores), axis=1).mean()),
        "centred_cosine": float((centred * targets).sum() / np.sqrt((centred**2).sum() * (targets**2).sum())),
    }


def both_directions(
    x: np.ndarray, classes: np.ndarray, labels: np.ndarray, names: list[str]
) -> dict[str, Any]:
    every = np.arange(len(names))
    there = retrieval.retrieval(x, classes, labels, every)
    back = retrieval.retrieval(classes, x, every, labels)
    return {"rows to classes": there["mAP"], "classes to rows": back["mAP"]}


def shape(x: np.ndarray, classes: np.ndarray, labels: np.ndarray, names: list[str]) -> dict[str, Any]:
    return {
        "gap": geometry.modality_gap(x, classes),
        "separability": geometry.separability(x, classes),
        "uniformity": geometry.uniformity(x),
        "hubness": retrieval.hubness(x, classes),
    }


def interval(x: np.ndarray, classes: np.ndarray, labels: np.ndarray, names: list[str]) -> dict[str, Any]:
    found = intervals.bootstrap(x[:, 0])
    return {"low": found.low, "high": found.high}


WAYS: dict[str, Callable[..., dict[str, Any]]] = {
    "in blocks": in_blocks,
    "in blocks, ECE and NLL too": with_confidence,
    "full matrix": full_matrix,
    "recall and mAP, both directions": both_directions,
    "gap, separability, uniformity, hubness": shape,
    "bootstrap, 2,000 resamples": interval,
}


def measure(way: str, sizes: tuple[int, int, int], repeats: int) -> dict:
    """Best time, memory above the vectors, and the numbers; run in a fresh process."""
    data = vectors(*sizes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, busy, found = [], [], {}
    for _ in range(repeats):
        start, worked = time.perf_counter(), time.process_time()
        found = WAYS[way](*data)
        seconds.append(time.perf_counter() - start)
        busy.append(time.process_time() - worked)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": min(seconds), "cpu": min(busy), "peak_mb": peak / 1024, "found": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = (options.rows, options.classes, options.dim)
    if options.way:
        print(json.dumps(measure(options.way, sizes, options.repeats)))
        return
    print(f"{options.rows:,} rows x {options.classes:,} classes x {options.dim}, best of {options.repeats}")
    results = {}
    for way in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        results[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        found = results[way]
        print(
            f"{way:40s} {found['seconds']:7.2f} s   {found['cpu']:7.2f} s of processor   peak "
            f"{found['peak_mb']:5.0f} MB"
        )
    ours, naive = results["in blocks"], results["full matrix"]
    worst = max(abs(ours["found"][key] - naive["found"][key]) for key in ours["found"])
    print(
        f"in blocks / full matrix: {ours['seconds'] / naive['seconds']:.2f} of the time, "
        f"{ours['cpu'] / naive['cpu']:.2f} of the processor time, "
        f"{ours['peak_mb'] / naive['peak_mb']:.2f} of the memory, largest difference {worst:.1e}"
    )


if __name__ == "__main__":
    main()
