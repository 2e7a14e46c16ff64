"""What it costs to let one modality after another join a trained space, up to eight.

    OMP_NUM_THREADS=1 python benchmarks/extend.py [--classes 100] [--modalities 8] [--epochs 5]

Two modalities, image and text, are trained on made-up features with CLIP's geometry (`synthetic`); then
stand-ins of other widths join, each a random projection of the image rows with noise: synthetic, to be
compared with no published number. Each joins in a process of its own, from the run folder that the last one
left. "peak" is that process's memory above what it held before training; "core" is a hash of the prompt and
of image's and text's parameters, which must never change.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from synthetic import make

from spaner import cache as caches
from spaner.align.score.evaluate import evaluate_pair
from spaner.align.train import run as checkpoint
from spaner.align.train.extend import extend
from spaner.align.train.fit import fit

WIDTHS = (64, 128, 256, 512, 768, 2048)
"""Of the third to the eighth modality: narrower than the prompt, as wide, and wider."""

NOISE = 0.3
"""Of a projected row, relative to its length."""


def stand_in(path: Path, modality: str, width: int, seed: int) -> None:
    """Tables train and test of a modality that never was: image rows, projected at random."""
    rng = np.random.default_rng(seed)
    with caches.open(path) as cache:
        images = {split: cache.table(f"image/{split}") for split in ("train", "test")}
        names, dim = list(cache.class_names), images["train"].dim
        projection = rng.standard_normal((dim, width), np.float32) / np.sqrt(dim)
        rows = {
            split: (table.read()[:, 0].astype(np.float32), table.labels) for split, table in images.items()
        }
        encoder = images["train"].manifest.encoder
    facts = {"name": f"projection-{seed}", "modality": modality, "dim": width, "logit_scale": None}
    spec = caches.EncoderSpec(**{**vars(encoder), **facts, "synthetic": True})
    with caches.create(path, "synthetic-imagenet", names) as cache:
        for split, (x, labels) in rows.items():
            y = x @ projection
            scale = NOISE * np.linalg.norm(y, axis=1, keepdims=True) / np.sqrt(width)
            y += scale * rng.standard_normal(y.shape, np.float32)
            cache.add(modality, split, y.astype(np.float16), labels, encoder=spec)


def core_sha256(model: Any) -> str:
    """Prompt, and everything of image and text."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name == "prompt" or name.split(".")[1] in ("image", "text"):
            digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def join(folder: Path, path: Path, modality: str, epochs: int) -> dict[str, Any]:
    """Let it join the run in the folder, which is replaced by the longer one."""
    run = checkpoint.load(folder)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    longer = extend(run, path, modality=modality, epochs=epochs, batch_size=32)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    longer.save(folder)
    hashes = longer.extensions[-1]["frozen_sha256"]
    found = evaluate_pair(longer, path, f"{modality}/test", "text/classname")
    return {
        "seconds": seconds,
        "peak_mb": peak / 1024,
        "core": core_sha256(longer.model),
        "frozen_kept": hashes["before"] == hashes["after"],
        "recall": found["recall@1"],
        "chance": found["chance"],
    }


def core(folder: Path, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Make the features of all modalities, and train image and text."""
    make(path, options.classes, options.shots, views=2, dim=512, test_rows=options.test_rows)
    for seed, width in enumerate(WIDTHS[: options.modalities - 2], start=3):
        stand_in(path, f"modality-{seed}", width, seed)
    run = fit(path, recipe="anchored", epochs=options.epochs)
    run.save(folder)
    return {"seconds": run.seconds, "core": core_sha256(run.model)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--test-rows", type=int, default=1_000)
    parser.add_argument("--modalities", type=int, default=8, choices=range(3, 9))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job is None:
        with TemporaryDirectory() as place:
            scale(Path(place), options)
        return
    folder, path = options.place / "run", options.place / "cache"
    train = options.job == "core"
    print(
        json.dumps(core(folder, path, options) if train else join(folder, path, options.job, options.epochs))
    )


def scale(place: Path, options: argparse.Namespace) -> None:
    """Train the two, then let the others join one by one, and print a line for each."""
    rows = options.classes * options.shots
    print(f"{options.classes} classes, {rows:,} training rows a modality, {options.epochs} epochs; synthetic")
    two = in_a_process("core", place)
    print(f"image and text, width 512: {two['seconds']:6.1f} s   core {two['core'][:12]}")
    for seed, width in enumerate(WIDTHS[: options.modalities - 2], start=3):
        found = in_a_process(f"modality-{seed}", place)
        kept = "unchanged" if found["core"] == two["core"] and found["frozen_kept"] else "CHANGED"
        print(
            f"modality-{seed}, width {width:5,}: "
            f"   {found['seconds']:6.1f} s   core {found['core'][:12]} {kept}   peak {found['peak_mb']:4.0f} "
            f"MB   to class names {100 * found['recall']:5.1f} % (chance {100 * found['chance']:.1f})"
        )
        if kept == "CHANGED":
            sys.exit("the core moved")


def in_a_process(job: str, place: Path) -> dict[str, Any]:
    """Its peak of memory is its own: this process, whose peak it inherits, stays small."""
    command = [sys.executable, __file__, *sys.argv[1:], "--place", str(place), "--job", job]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


if __name__ == "__main__":
    main()
