"""Few-shot rows of a table as tensors: which were drawn, and their embeddings at unit length."""

import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spaner import cache as caches
from spaner.errors import CacheError, Corrupt


@dataclass(frozen=True)
class Draw:
    """Which training rows were used: enough to repeat the choice, and to prove it was the same.

    `sha256` is `cache.ids_sha256` of the drawn ids; `rows` of them were good and `failed` were dropped.
    `shots` is None where all rows were taken.
    """

    shots: int | None
    seed: int | None
    rows: int
    failed: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Samples:
    """The good rows of a draw: all views at unit length, and labels."""

    x: Float[Tensor, "N V D"]
    labels: Int[Tensor, " N"]
    draw: Draw


def drawn_samples(table: caches.Table, shots: int | None, draw_seed: int) -> Samples:
    """The asked draw of a table; without one, every row, or the largest stored draw of a partial table.

    Raises:
        CacheError: no such draw, or none of its rows is good. Corrupt: an embedding is not finite.
    """
    return samples_of(table, *_drawn_rows(table, shots, draw_seed))


def samples_of(
    table: caches.Table, rows: Int[np.ndarray, " K"], shots: int | None, seed: int | None
) -> Samples:
    """The good ones of the given rows; `shots` and `seed` say how they were chosen.

    Raises:
        CacheError: none of the rows is good. Corrupt: an embedding is not finite.
    """
    good = rows[table.ok[rows]]
    if not len(good):
        raise CacheError(
            f"{table.name} has no usable row: all {len(rows):,} asked for failed in extraction; "
            f"see `spaner cache info`"
        )
    draw = Draw(shots, seed, len(good), len(rows) - len(good), caches.drawn_sha256(table.ids, rows))
    labels = torch.from_numpy(table.labels[good].astype(np.int64))
    return Samples(unit_rows(table, good), labels, draw)


def _drawn_rows(
    table: caches.Table, shots: int | None, draw_seed: int
) -> tuple[np.ndarray, int | None, int | None]:
    """(rows, shots, seed): the asked draw; without one, every row, or the largest stored draw of a partial
    table."""
    if shots is None and not table.manifest.complete:
        stored = [
            m for m in (re.fullmatch(r"(\d+)-shot-seed-(\d+)", name) for name in table.manifest.draws) if m
        ]
        shots = max((int(m[1]) for m in stored if int(m[2]) == draw_seed), default=None)
        if shots is None:
            known = ", ".join(table.manifest.draws) or "none"
            raise CacheError(
                f"{table.name} holds parts of its data set and no draw with seed {draw_seed}; "
                f"stored draws: {known}; choose one with --shots and --draw-seed"
            )
    if shots is None:
        return np.arange(table.rows), None, None
    return table.draw(shots, draw_seed), shots, draw_seed


def unit_rows(table: caches.Table, rows: np.ndarray) -> Float[Tensor, "N V D"]:
    """All views of the rows at unit length; Corrupt, naming the first, where one is not finite or zero."""
    features = table.read(rows).astype(np.float32)
    norms = np.linalg.norm(features, axis=2, keepdims=True)
    bad = ~(np.isfinite(norms) & (norms > 0)).all(axis=(1, 2))
    if bad.any():
        first = str(table.ids[rows[bad.argmax()]])
        raise Corrupt(
            f"{table.name}: the embedding of {first!r} is not finite or is all zeros "
            f"({bad.sum():,} such rows); expected finite numbers; "
            f"see `spaner cache verify`, and extract the table again"
        )
    return torch.from_numpy(features / norms)
