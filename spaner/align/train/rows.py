"""Few-shot rows of a table as tensors: which were drawn, and their embeddings at unit length."""

import re

import numpy as np
import torch
from jaxtyping import Int

from spaner import cache as caches
from spaner.align.methods.task import Draw, Samples
from spaner.align.score.tables import unit_rows
from spaner.errors import CacheError


def drawn_samples(table: caches.Table, shots: int | None, draw_seed: int) -> Samples:
    """The asked draw of a table; without one, every row, or the largest stored draw of a partial table.

    Raises:
        CacheError: no such draw, or none of its rows is good. Corrupt: an embedding is not finite.
    """
    return samples_of(table, *_drawn_rows(table, shots, draw_seed))


def good_rows(table: caches.Table, shots: int | None, draw_seed: int) -> Int[np.ndarray, " N"]:
    """The rows that `drawn_samples` reads, in its order."""
    rows = _drawn_rows(table, shots, draw_seed)[0]
    return rows[table.ok[rows]]


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
    x, norms = unit_rows(table, good)
    return Samples(x, labels, draw, norms)


def validation_samples(
    cache: caches.Cache, modality: str, support: Samples, tested: str, held: str = "four"
) -> Samples | None:
    """Rows to choose settings on: at most four per class, or with `held` "equal" as many as were drawn; none
    of them a training row, never the tested table.

    The first that the cache has of: the draw's own rows in `<modality>/val`; the draw `…-val` of the training
    table; a draw from the training rows that were left over. None where every row trains.
    """
    shots, seed = support.draw.shots, support.draw.seed
    if shots is None or seed is None:
        return None
    train, name = cache.table(f"{modality}/train"), f"{shots}-shot-seed-{seed}"
    few = shots if held == "equal" else min(shots, caches.VAL_SHOTS)
    if f"{modality}/val" != tested and cache.has(f"{modality}/val"):
        return _from_val(cache.table(f"{modality}/val"), name, few, shots, seed)
    if f"{name}-val" in train.manifest.draws and few <= caches.VAL_SHOTS:
        return _good_samples(train, train.stored_draw(f"{name}-val"), few, seed)
    if not train.manifest.complete:
        return None
    left = np.setdiff1d(np.arange(train.rows), train.draw(shots, seed))
    rows = left[caches.few_shot(train.labels[left], few, seed)] if len(left) else left
    return _good_samples(train, rows, few, seed)


def _from_val(val: caches.Table, name: str, few: int, shots: int, seed: int) -> Samples | None:
    """The stored rows of a draw in a table of its own, as many a class as asked for, else drawn there."""
    if few > caches.VAL_SHOTS and f"{name}-equal" in val.manifest.draws:
        return _good_samples(val, val.stored_draw(f"{name}-equal"), few, seed)
    return _good_samples(val, val.draw(shots if name in val.manifest.draws else few, seed), few, seed)


def _good_samples(table: caches.Table, rows: Int[np.ndarray, " K"], shots: int, seed: int) -> Samples | None:
    return samples_of(table, rows, shots, seed) if table.ok[rows].any() else None


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
