"""An approximate index beside the exact rows, for when reading them all takes too long: usearch's HNSW graph.

Chosen over faiss-cpu and hnswlib by `benchmarks/search.py` (the table is in docs/use.md). It holds a float16
copy of the rows and is mapped from disk. Its answers are candidates, scored again from the exact rows.
"""

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float16, Int

from spaner.errors import CacheError
from spaner.search.exact import nearest_of_many

PROBES = 100
"""Rows that ask for their neighbours when recall is measured."""

BATCH = 100_000


def check_installed() -> None:
    """Raise CacheError, with the line that installs it, where usearch is absent."""
    if find_spec("usearch") is None:
        raise CacheError(
            '--approximate: usearch is not installed; expected the extra; type `pip install "spaner[search]"`'
            ", or leave --approximate out: exact search needs nothing"
        )


def build(vectors: Float16[np.ndarray, "N E"], file: Path) -> float:
    """Write the graph; returns its Recall@10 against exact search, of rows asking for their neighbours."""
    check_installed()
    graph = _graph(vectors.shape[1])
    for start in range(0, len(vectors), BATCH):
        block = np.ascontiguousarray(vectors[start : start + BATCH])
        graph.add(np.arange(start, start + len(block)), block)
    graph.save(str(file))
    return recall(graph, vectors)


def recall(graph: Any, vectors: Float16[np.ndarray, "N E"], k: int = 10) -> float:
    """Share of the exact k nearest that the graph finds, over `PROBES` rows spread evenly."""
    k = min(k, len(vectors))
    rows = np.unique(np.linspace(0, len(vectors) - 1, min(PROBES, len(vectors))).astype(int))
    asked = vectors[rows].astype(np.float32)
    exact = nearest_of_many(vectors, asked, k)
    found = graph.search(asked.astype(np.float16), k).keys.reshape(len(rows), -1)
    hits = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(exact, found, strict=True)]
    return float(np.mean(hits)) / k


def opened(file: Path, width: int) -> Any:
    """The graph, mapped from its file.

    Raises:
        CacheError: usearch is absent, or the file is damaged.
    """
    check_installed()
    graph = _graph(width)
    try:
        graph.view(str(file))
    except Exception as error:  # whatever usearch makes of damaged bytes
        raise CacheError(f"{file}: {error}; expected a usearch graph; build the index again") from None
    return graph


def candidates(graph: Any, query: Float[np.ndarray, " E"], count: int) -> Int[np.ndarray, " n"]:
    """Rows that are probably the nearest."""
    return np.asarray(graph.search(query.astype(np.float16), count).keys, np.int64)


def _graph(width: int) -> Any:
    index = importlib.import_module("usearch.index")
    return index.Index(
        ndim=width, metric="ip", dtype="f16", connectivity=16, expansion_add=128, expansion_search=128
    )
