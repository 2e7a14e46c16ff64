"""Sound that joined: Tables 3, 5 and 6 and Figure 5 of the paper, by the protocol of Lin et al. (CVPR 2023).

A core is trained on images and text; for each fold s and K shots the first K clips of every class in listing
order let audio join (`extend`), and the other four folds are the test. Numbers are means over the five
splits. A cache without folds but with audio/train and audio/test (the embedded `digits`) is drawn from with
five seeds instead.

    audio -> semantic      every test clip looks for its class among the raw class names (Table 3)
    semantic -> audio      one query per class name looks for a clip of it (Table 5)
    image -> audio         every test image looks for a clip of its class (Table 5), and the other way

Table 5's reading is ours: the paper's values fit these numbers of queries exactly, and do not say so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from spaner import cache as caches
from spaner.align.paper.image_text import quantiles
from spaner.align.paper.reproduce import (
    Reproduction,
    Setup,
    cores,
    extract_command,
    rows_beside,
    table_of,
)
from spaner.align.report import published
from spaner.align.report.charts import cosine_drawing
from spaner.align.report.drawing import write
from spaner.align.report.table import OURS, Cell, Column, ReportTable, Row
from spaner.align.score import matching, metrics
from spaner.align.score.evaluate import asking, class_vectors, embedded, tested_table
from spaner.align.score.intervals import Number
from spaner.align.score.retrieval import retrieval
from spaner.align.train import run as checkpoint
from spaner.align.train.config import ExtendConfig
from spaner.align.train.extend import extend
from spaner.align.train.run import Run
from spaner.errors import CacheError
from spaner.progress import Progress

SHOTS = (1, 2, 4)
FOLDS = 5
BATCH_SIZES = {"imagenet-esc-27": 32}
"""Pairs per step; 16 for ESC-19 and others."""

EXAMPLES = 5
PAPER_COSINES = {"audio_image": 0.55, "audio_semantic": 0.48}
"""At 4 shots, read off Figure 5: "about"."""


@dataclass(frozen=True)
class AudioSplit:
    """Which table lets audio join, which test, and how the shots are chosen."""

    name: str
    train: str
    tests: tuple[str, ...]
    select: Literal["first", "draw"]
    draw_seed: int = 1


@dataclass(frozen=True)
class Heard:
    """Audio test rows in the shared space, and everything measured on them.

    `numbers` holds accuracies, recalls and mean cosines; `queries` and `targets` how many there were.
    """

    x: Float[np.ndarray, "N E"]
    labels: Int[np.ndarray, " N"]
    ids: list[str]
    numbers: dict[str, float]
    counts: dict[str, int]
    cosines: dict[str, Float[np.ndarray, " M"]] = field(repr=False)


def other_folds(fold: int, present: Sequence[str]) -> list[str]:
    """Names of the folds that test where the split `fold` (1 to 5) trains, as Lin et al. (CVPR 2023) do.

    Args:
        present: splits that exist; others than "fold1" … "fold5" are ignored.

    Raises:
        CacheError: a fold is missing, or `fold` is none.
    """
    names = [f"fold{i}" for i in range(1, FOLDS + 1)]
    if f"fold{fold}" not in names:
        raise CacheError(f"fold {fold}: there is none; expected 1 to {FOLDS}; type one of them")
    missing = [name for name in names if name not in present]
    if missing:
        raise CacheError(
            f"{', '.join(missing)} missing, found {', '.join(present) or 'none'}; "
            "the protocol tests on the four folds that do not train; "
            f"type `spaner extract --modality audio --splits {missing[0]}`"
        )
    return [name for name in names if name != f"fold{fold}"]


def splits_of(cache: caches.Cache) -> list[AudioSplit]:
    """The five folds of the protocol; five seeded draws where audio has a train and a test table instead.

    Raises:
        CacheError: neither is there, or a fold is missing.
    """
    present = [name.split("/")[1] for name in cache.tables() if name.startswith("audio/")]
    if any(name.startswith("fold") for name in present):
        return [
            AudioSplit(f"fold {s}", f"fold{s}", tuple(other_folds(s, present)), "first")
            for s in range(1, FOLDS + 1)
        ]
    if {"train", "test"} <= set(present):
        return [AudioSplit(f"draw seed {s}", "train", ("test",), "draw", s) for s in range(1, FOLDS + 1)]
    command = extract_command(cache.dataset, cache.path, "audio")
    raise CacheError(
        f"{cache.path} has no sound to join: "
        f"found {', '.join(f'audio/{name}' for name in present) or 'no audio'}, "
        f"expected audio/fold1 … fold{FOLDS}, or audio/train and audio/test; type `{command}`"
    )


def joined(run: Run, cache: caches.Cache, split: AudioSplit, shots: int, setup: Setup) -> Run:
    """The run with audio in it, trained on one split."""
    shorter: dict[str, Any] = {"epochs": setup.epochs} if setup.epochs else {}
    config = ExtendConfig(
        split=split.train,
        shots=shots,
        select=split.select,
        draw_seed=split.draw_seed,
        batch_size=BATCH_SIZES.get(cache.dataset, 16),
        **shorter,
    )
    return extend(run, cache, config)


def heard(run: Run, cache: caches.Cache, tests: Sequence[str]) -> Heard:
    """Embed the audio test tables and measure every direction."""
    parts = [embedded(run, cache, f"audio/{name}") for name in tests]
    tables = [cache.table(f"audio/{name}") for name in tests]
    x, labels = np.concatenate([rows for rows, _ in parts]), np.concatenate([each for _, each in parts])
    ids = [f"{table.name}/{name}" for table in tables for name in table.ids[table.ok]]
    texts = {kind: class_vectors(run, cache, name) for kind, name in asking(cache).items()}
    images, image_labels = embedded(run, cache, tested_table(cache, None))
    classes = np.arange(len(cache.class_names))
    found = {kind: matching.match(x, texts[kind], labels, cache.class_names) for kind in texts}
    ways = {
        "semantic_to_audio": retrieval(texts["semantic"], x, classes, labels),
        "image_to_audio": retrieval(images, x, image_labels, labels),
        "audio_to_image": retrieval(x, images, labels, image_labels),
    }
    cosines = {
        "audio_image": pair_cosines(x, images, labels, image_labels),
        "audio_semantic": found["semantic"].positive,
    }
    numbers = {kind: float(each.credit.mean()) for kind, each in found.items()}
    numbers |= {name: float(way["recall@1"]) for name, way in ways.items()}
    numbers |= {f"{name}_map": float(way["mAP"]) for name, way in ways.items()}
    numbers |= {f"{name}_cosine": float(each.mean(dtype=np.float64)) for name, each in cosines.items()}
    numbers["margin"] = metrics.margin(found["semantic"])
    counts = {name: int(way["queries"]) for name, way in ways.items()} | {"clips": len(x)}
    return Heard(x, labels, ids, numbers, counts, cosines)


def pair_cosines(
    a: Float[np.ndarray, "N E"],
    b: Float[np.ndarray, "M E"],
    a_labels: Int[np.ndarray, " N"],
    b_labels: Int[np.ndarray, " M"],
) -> Float[np.ndarray, " L"]:
    """Cosines of all pairs of unit rows of one class, class after class."""
    shared = np.intersect1d(a_labels, b_labels)
    return np.concatenate([(a[a_labels == c] @ b[b_labels == c].T).ravel() for c in shared])


def top(
    found: Heard, classes: Float[np.ndarray, "C E"], names: Sequence[str], count: int = 5
) -> list[dict[str, Any]]:
    """For every test clip its id, class, whether the first answer is right, and the best `count` names."""
    scores = found.x @ classes.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return [
        {
            "id": found.ids[row],
            "class": names[label],
            "right": names[order[row, 0]] == names[label],
            "top": [{"name": names[c], "cosine": float(scores[row, c])} for c in order[row]],
        }
        for row, label in enumerate(found.labels.tolist())
    ]


# --- the paper's tables ---


def audio_to_text(setup: Setup, cache: caches.Cache, progress: Progress) -> Reproduction:
    """Table 3: audio -> semantic accuracy at 1, 2 and 4 shots."""
    title = "Table 3: audio → semantic accuracy (%)"
    return _table(title, _columns(("semantic", "text"), "percent"), setup, cache, progress)


def retrieval_into_audio(setup: Setup, cache: caches.Cache, progress: Progress) -> Reproduction:
    """Table 5: recall@1 of class names and of images looking for sounds, and of sounds looking for images."""
    ways = ("semantic_to_audio", "image_to_audio", "audio_to_image")
    title = "Table 5: retrieval between sound and the others, recall@1 (%)"
    return _table(title, _columns(ways, "percent"), setup, cache, progress)


def _columns(keys: Sequence[str], unit: str) -> list[Column]:
    return [Column(key, key.replace("_", " "), unit) for key in keys]


def cosine_curves(setup: Setup, cache: caches.Cache, progress: Progress) -> Reproduction:
    """Figure 5: cosines of sounds to images and to the class name of their class, at 4 shots."""
    columns = _columns(("audio_image_cosine", "audio_semantic_cosine", "margin"), "cosine")
    title = "Figure 5: cosine of sounds to their class (curves in the figure, means here)"
    cells = _cells(setup, cache, progress, SHOTS[-1:])
    made = _collected(title, columns, setup, cache, cells)
    curves: dict[str, dict[str, np.ndarray]] = {}
    for (name, _), found in cells.items():
        for pair, panel in (("audio_image", "Audio and image"), ("audio_semantic", "Audio and class name")):
            curves.setdefault(panel, {})[name] = np.concatenate(
                [each.cosines[pair] for each in found.values()]
            )
    made.figures = write(cosine_drawing(setup.artifact, curves), setup.out)
    made.facts["quantiles"] = {p: {n: quantiles(v) for n, v in each.items()} for p, each in curves.items()}
    return made


def examples(setup: Setup, cache: caches.Cache, progress: Progress) -> Reproduction:
    """Table 6: five right and five wrong answers with their top 5, of the first split at 4 shots."""
    name, run, folder = _core_runs(setup, cache, progress)[0]
    split = splits_of(cache)[0]
    longer = joined(run, cache, split, SHOTS[-1], setup)
    longer.cache = cache.path
    found = heard(longer, cache, split.tests)
    answers = top(found, class_vectors(longer, cache, asking(cache)["semantic"]), cache.class_names)
    chosen = _drawn(answers, right=True) + _drawn(answers, right=False)
    title = f"Table 6: sounds and the five class names nearest to them ({split.name}, {SHOTS[-1]} shots)"
    numbers: dict[str, Cell] = {"semantic": Number(found.numbers["semantic"])}
    rows = rows_beside(setup, f"{name}, {SHOTS[-1]} shots", [numbers], "", {}, [])
    return Reproduction(
        tables=[table_of(setup, title, _columns(("semantic",), "percent"), rows), _listing(chosen)],
        why_not=why_not(setup, cache, found.counts["clips"]),
        facts={"examples": chosen},
        runs=[folder, longer.save(setup.out / "runs" / f"{folder.name}+audio")],
    )


def _listing(answers: Sequence[Mapping[str, Any]]) -> ReportTable:
    columns = _columns(("class", "answer", "nearest class names"), "words")
    rows = [
        Row(
            answer["id"],
            OURS,
            {
                "class": answer["class"],
                "answer": "right" if answer["right"] else "wrong",
                "nearest class names": ", ".join(f"{e['name']} {e['cosine']:.2f}" for e in answer["top"]),
            },
        )
        for answer in answers
    ]
    return ReportTable("examples", "Sounds and what they found", columns, [("", rows)], first="clip")


def _drawn(answers: Sequence[Mapping[str, Any]], *, right: bool) -> list[Mapping[str, Any]]:
    """Seeded, so that nobody picks the pretty ones; fewer where there are fewer."""
    chosen = [answer for answer in answers if answer["right"] is right]
    order = np.random.default_rng(0).permutation(len(chosen))[:EXAMPLES]
    return [chosen[i] for i in sorted(order.tolist())]


Cells = dict[tuple[str, int], dict[str, Heard]]
"""(system, shots) -> split -> what was measured."""


def _table(
    title: str, columns: list[Column], setup: Setup, cache: caches.Cache, progress: Progress
) -> Reproduction:
    return _collected(title, columns, setup, cache, _cells(setup, cache, progress, SHOTS))


def _core_runs(setup: Setup, cache: caches.Cache, progress: Progress) -> list[tuple[str, Run, Path]]:
    """Systems that audio joins: the given run, or one per recipe trained on the cache's own images."""
    splits_of(cache)  # refuse a cache without sound before training
    if setup.run is not None:
        return [(f"SPANER, {setup.run.name}", checkpoint.load(setup.run), setup.run)]
    trained = cores(setup, cache, progress, setup.seeds[:1])
    return [(f"SPANER, {recipe}", runs[0][1], runs[0][0]) for recipe, runs in trained.items()]


def _cells(setup: Setup, cache: caches.Cache, progress: Progress, shots: Sequence[int]) -> Cells:
    """Let audio join every system at every number of shots on every split, and measure."""
    systems, splits = _core_runs(setup, cache, progress), splits_of(cache)
    jobs = [(s, count, split) for s in systems for count in shots for split in splits]
    cells: Cells = {}
    for done, ((name, run, _), count, split) in enumerate(jobs, 1):
        longer = joined(run, cache, split, count, setup)
        cells.setdefault((name, count), {})[split.name] = heard(longer, cache, split.tests)
        progress(done, len(jobs), "audio joins")
    return cells


def _collected(
    title: str, columns: list[Column], setup: Setup, cache: caches.Cache, cells: Cells
) -> Reproduction:
    first = next(iter(next(iter(cells.values())).values()))
    splits = next(iter(cells.values()))
    counts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in first.counts.items())
    why = why_not(setup, cache, first.counts["clips"])
    rows = [
        row
        for (name, shots), found in cells.items()
        for row in _rows(setup, name, shots, found, columns, why)
    ]
    return Reproduction(
        tables=[table_of(setup, title, columns, rows)],
        why_not=why,
        notes=[
            f"mean ± standard deviation over {len(splits)} splits ({', '.join(splits)})",
            f"queries per split: {counts}; chance {100 / len(cache.class_names):.1f} %",
            "prompt, aligners and projections of image and text: the same hash before and after every split",
        ],
        facts={
            "cells": [
                {"system": name, "shots": shots, "split": split, **found.numbers, "queries": found.counts}
                for (name, shots), each in cells.items()
                for split, found in each.items()
            ]
        },
        runs=[setup.run] if setup.run else [setup.out / "runs" / f"paper-seed-{setup.seeds[0]}"],
    )


def _rows(
    setup: Setup,
    name: str,
    shots: int,
    found: Mapping[str, Heard],
    columns: Sequence[Column],
    why: Sequence[str],
) -> list[Row]:
    """Mean over the splits, and the published row at these shots for the paper's recipe."""
    ours: list[dict[str, Cell]] = [
        {column.key: Number(each.numbers[column.key]) for column in columns} for each in found.values()
    ]
    at = f"{shots} shot{'s' * (shots > 1)}"
    known: dict[str, float] = {}
    if not name.endswith("anchored"):
        known = dict(published.values(benchmark(setup), f"SPANER, {at}"))
        known |= {f"{k}_cosine": v for k, v in PAPER_COSINES.items()} if shots == 4 else {}
    return rows_beside(setup, f"{name}, {at}", ours, f"SPANER, {at}", known, why)


def benchmark(setup: Setup) -> str:
    """The published benchmark to stand beside: the data set's own, else ImageNet-ESC-19."""
    return setup.dataset if setup.dataset in published.paper()["benchmarks"] else "imagenet-esc-19"


def why_not(setup: Setup, cache: caches.Cache, clips: int) -> list[str]:
    """Why audio numbers of this cache cannot stand beside the paper's."""
    audio = next(cache.table(name) for name in cache.tables() if name.startswith("audio/"))
    image = cache.table("image/train").manifest.encoder
    paper = published.benchmark(benchmark(setup))
    reasons = published.reasons(
        paper, dataset=cache.dataset, encoder=audio.manifest.encoder, shots=None, draw=None, rows=clips
    )
    core = published.benchmark("imagenet")
    if (image.name, image.weights) != (core["encoder"], core["weights"]):
        reasons.append(f"another image encoder ({image.name} {image.weights})")
    return reasons + ([f"{setup.epochs} epochs, not the recipe's"] if setup.epochs else [])
