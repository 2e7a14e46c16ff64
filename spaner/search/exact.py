"""Exact nearest neighbours at the speed of memory: float16 rows are read once, in blocks, and never copied.

A product in float16 rounds a cosine to three digits, which would shuffle near neighbours. So it only
proposes: every row whose rounded score lies within the rounding's bound of the best k is scored again in
float32, and the answer is that of a float32 product over all rows. Nothing here knows a run or a file.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int
from torch import Tensor

BLOCK = 1 << 17
"""Rows multiplied at once."""

ROUNDING = 2e-3
"""How far a cosine in float16 may lie from the float32 one: two roundings of 2^-11, and as much again."""


def nearest(
    vectors: Float16[np.ndarray, "N E"],
    query: Float[np.ndarray, " E"],
    k: int,
    spans: Sequence[tuple[int, int]] | None = None,
    keep: Bool[np.ndarray, " N"] | None = None,
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """The k rows with the largest cosine, best first (ties: the lower row), and their cosines in float32.

    Args:
        vectors: unit rows, in memory or mapped.
        query: unit length.
        spans: (start, stop) of the rows to look at; default all. Others are not read.
        keep: rows that count; default all.
    """
    spans = [(0, len(vectors))] if spans is None else list(spans)
    rows, scores = _rough(vectors, query, spans)
    if keep is not None:
        kept = keep[rows]
        rows, scores = rows[kept], scores[kept]
    k = min(k, len(rows))
    if not k:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    edge = np.partition(scores, len(scores) - k)[len(scores) - k] - ROUNDING
    rows = rows[scores >= edge]
    exact = _exactly(vectors, query, rows)
    order = np.lexsort((rows, -exact))[:k]
    return rows[order], exact[order]


def nearest_of_many(
    vectors: Float16[np.ndarray, "N E"], queries: Float[np.ndarray, "Q E"], k: int
) -> Int[np.ndarray, "Q k"]:
    """The same rows for many queries at once: each block is made float32 once for all of them."""
    asked = torch.from_numpy(np.ascontiguousarray(queries, np.float32))
    best = torch.full((len(queries), k), -torch.inf)
    rows = torch.zeros((len(queries), k), dtype=torch.int64)
    for start in range(0, len(vectors), BLOCK // 8):
        block = _tensor(vectors[start : start + BLOCK // 8]).float()
        scores = torch.cat([best, asked @ block.T], dim=1)
        numbers = torch.arange(start, start + len(block)).expand(len(queries), -1)
        best, place = scores.topk(k, dim=1)
        rows = torch.cat([rows, numbers], dim=1).gather(1, place)
    return rows.numpy()


def _rough(
    vectors: np.ndarray, query: np.ndarray, spans: Iterable[tuple[int, int]]
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    asked = torch.from_numpy(np.asarray(query, np.float32)).half()
    rows, scores = [], []
    for first, last in spans:
        for start in range(first, last, BLOCK):
            block = _tensor(vectors[start : min(start + BLOCK, last)])
            scores.append(torch.mv(block, asked).float().numpy())
            rows.append(np.arange(start, start + len(block)))
    if not rows:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    return np.concatenate(rows), np.concatenate(scores)


def _exactly(vectors: np.ndarray, query: np.ndarray, rows: np.ndarray) -> Float[np.ndarray, " n"]:
    parts = [rows[start : start + BLOCK // 8] for start in range(0, len(rows), BLOCK // 8)]
    asked = np.asarray(query, np.float32)
    return np.concatenate([vectors[part].astype(np.float32) @ asked for part in parts])


def _tensor(block: np.ndarray) -> Tensor:
    """A block as a tensor over the same memory; nothing writes to it."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(block)
