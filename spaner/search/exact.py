"""Exact nearest neighbours at the speed of memory: float16 rows are read once, in blocks, and never copied.
Every core takes a block at a time; one product over all rows would wait for the slowest of them.

A product in float16 rounds a cosine to three digits, which would shuffle near neighbours. So it only
proposes: every row whose rounded score lies within the rounding's bound of the best k is scored again in
float32, and the answer is that of a float32 product over all rows. Nothing here knows a run or a file.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int
from torch import Tensor

from spaner.device import cores

BLOCK = 1 << 13
"""Rows multiplied at once, by one thread: small enough that none waits long for the others at the end."""

FEW = 8
"""Blocks for which a pool of threads is not worth its start."""

GATHERED = 1 << 14
"""Rows made float32 at once."""

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
    scores = _rough(vectors, query, spans)
    if keep is not None:
        scores[~np.concatenate([keep[start:stop] for start, stop in spans] or [keep[:0]])] = -np.inf
    k = min(k, int(np.count_nonzero(scores > -np.inf)))
    if not k:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    edge = float(torch.from_numpy(scores).topk(k, sorted=False).values.min()) - ROUNDING
    rows = _rows(np.flatnonzero(scores >= edge), spans)
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
    for start in range(0, len(vectors), GATHERED):
        block = _tensor(vectors[start : start + GATHERED]).float()
        scores = torch.cat([best, asked @ block.T], dim=1)
        numbers = torch.arange(start, start + len(block)).expand(len(queries), -1)
        best, place = scores.topk(k, dim=1)
        rows = torch.cat([rows, numbers], dim=1).gather(1, place)
    return rows.numpy()


def _rough(
    vectors: np.ndarray, query: np.ndarray, spans: Sequence[tuple[int, int]]
) -> Float[np.ndarray, " n"]:
    """The float16 product of the spans' rows, in their order, each block on one thread."""
    asked = torch.from_numpy(np.asarray(query, np.float32)).half()
    tensor = _tensor(vectors)
    scores = np.empty(sum(stop - start for start, stop in spans), np.float32)
    work, place = [], 0
    for first, last in spans:
        for start in range(first, last, BLOCK):
            stop = min(start + BLOCK, last)
            work.append((start, stop, place))
            place += stop - start

    def multiply(block: tuple[int, int, int]) -> None:
        start, stop, at = block
        scores[at : at + stop - start] = torch.mv(tensor[start:stop], asked).numpy()

    if len(work) < FEW:
        for block in work:
            multiply(block)
        return scores
    before = torch.get_num_threads()
    with ThreadPoolExecutor(cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(multiply, work))
    torch.set_num_threads(before)
    return scores


def _rows(places: Int[np.ndarray, " n"], spans: Sequence[tuple[int, int]]) -> Int[np.ndarray, " n"]:
    """Row numbers of places in the spans laid end to end."""
    starts = np.array([start for start, _ in spans])
    ends = np.cumsum([stop - start for start, stop in spans])
    of = np.searchsorted(ends, places, side="right")
    return places - np.concatenate([[0], ends[:-1]])[of] + starts[of]


def _exactly(vectors: np.ndarray, query: np.ndarray, rows: np.ndarray) -> Float[np.ndarray, " n"]:
    parts = [rows[start : start + GATHERED] for start in range(0, len(rows), GATHERED)]
    asked = np.asarray(query, np.float32)
    return np.concatenate([vectors[part].astype(np.float32) @ asked for part in parts])


def _tensor(rows: np.ndarray) -> Tensor:
    """The rows as a tensor over the same memory; nothing writes to it."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(rows)
