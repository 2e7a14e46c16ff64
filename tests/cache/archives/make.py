"""Made the caches in this folder, which must stay readable: never run it again for a released schema.

Usage: python make.py spaner-cache-1, which writes spaner-cache-1/ and spaner-cache-1.h5.
"""

import sys
from pathlib import Path

import numpy as np

from spaner import cache

ROWS, DIM = 7, 3


def make(path: Path) -> None:
    features = (np.arange(ROWS * 2 * DIM).reshape(ROWS, 2, DIM) / 8).astype(np.float16)
    labels, ids = np.array([1, 0, 1, 1, 0, 1, 0]), [f"train/{row}-é.jpg" for row in range(ROWS)]
    drawn = cache.few_shot(labels, 2, 1)
    manifest = cache.Manifest(
        dataset="archive",
        modality="image",
        split="train",
        rows=ROWS,
        views=("centre", "random crop"),
        dim=DIM,
        dtype="float16",
        chunk_rows=5,
        encoder=cache.EncoderSpec(
            "toy", "random", "", "image", DIM, {"size": 11}, "float32", logit_scale=100.0
        ),
        seed=1,
        rows_sha256=cache.ids_sha256(ids),
        options={"crop": True},
        draws={"2-shot-seed-1": cache.drawn_sha256(ids, drawn)},
    )
    with cache.create(path, "archive", ["cat", "dog"]) as made:  # noqa: SIM117, the writer ends first
        with made.begin(manifest, ids, labels, {"2-shot-seed-1": drawn}) as writer:
            for chunk in writer.pending:
                writer.write(
                    chunk, features[writer.rows(chunk)], reasons={1: "not an image"} if chunk else None
                )
            writer.seal({"purity": 0.25})


if __name__ == "__main__":
    for suffix in ("", ".h5"):
        make(Path(__file__).parent / (sys.argv[1] + suffix))
