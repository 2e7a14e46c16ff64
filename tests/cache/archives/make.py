"""Made the caches in this folder, which must stay readable: never run it again for a released schema.

Usage: python make.py spaner-cache-2, which writes spaner-cache-2/ and spaner-cache-2.h5. Those of the first
schema were made by the program of that time; spaner-cache-1-unfinished was killed before its second chunk.
"""

import sys
from pathlib import Path

import numpy as np

from spaner import cache

ROWS, DIM = 7, 3
STAT = np.arange(3 * ROWS).reshape(ROWS, 3) + 1_700_000_000_000_000_000


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
                rows = writer.rows(chunk)
                reasons = {1: "not an image"} if chunk else None
                writer.write(chunk, features[rows], reasons=reasons, stat=STAT[rows])
            writer.seal({"purity": 0.25})


if __name__ == "__main__":
    for suffix in ("", ".h5"):
        make(Path(__file__).parent / (sys.argv[1] + suffix))
