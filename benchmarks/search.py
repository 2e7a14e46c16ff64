"""Exact search against the speed of memory, and approximate libraries against exact search.

    python benchmarks/search.py                       1,000,000 rows x 512 float16, 1 GB
    python benchmarks/search.py --rows 100000         a quick look
    uv run --with faiss-cpu --with usearch python benchmarks/search.py --graph-rows 50000

"memory" is one pass over the same bytes that does nothing but find the largest 32-bit number. Exact search is
`spaner.search.exact.nearest`; "float32" converts the rows and multiplies, as one would write it first.
Libraries that are not installed are left out. The vectors are made up: 1,000 clusters, as classes make them;
recall depends on them and is printed for `spaner index --approximate`'s own rows when it builds. The best of
`--repeats` is reported.
"""

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spaner.search.exact import nearest, nearest_of_many


def vectors(rows: int, width: int) -> np.ndarray:
    """Unit rows around 1,000 centres, float16."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1000, width), np.float32)
    out = np.empty((rows, width), np.float16)
    for start in range(0, rows, 8192):
        count = min(8192, rows - start)
        x = centres[rng.integers(0, 1000, count)] + rng.standard_normal((count, width), np.float32)
        out[start : start + count] = x / np.linalg.norm(x, axis=1, keepdims=True)
    return out


def best(work: Callable[[], Any], repeats: int) -> float:
    """Seconds."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def exact(v: np.ndarray, repeats: int) -> None:
    query = v[7].astype(np.float32)
    bits = torch.from_numpy(v.view(np.int32))
    gigabytes = v.nbytes / 1e9
    memory = best(lambda: bits.max(), repeats)
    ours = best(lambda: nearest(v, query, 10), repeats)
    plain = best(lambda: np.argsort(-(v.astype(np.float32) @ query))[:10], 1)
    print(f"{len(v):,} rows x {v.shape[1]} float16, {gigabytes:.2f} GB, {torch.get_num_threads()} threads")
    print(f"{'':24}{'ms':>9}{'GB/s':>8}{'of memory':>11}")
    for name, seconds in (("memory, one pass", memory), ("exact search", ours), ("float32, argsort", plain)):
        print(f"{name:24}{1e3 * seconds:9.1f}{gigabytes / seconds:8.2f}{memory / seconds:11.2f}")


Search = Callable[[np.ndarray], np.ndarray]


def usearch(v: np.ndarray, file: Path) -> Callable[[], Search]:
    from spaner.search import approximate

    graph = approximate._graph(v.shape[1])
    graph.add(np.arange(len(v)), v)
    graph.save(str(file))

    def opened() -> Search:
        mapped = approximate.opened(file, v.shape[1])
        return lambda q: mapped.search(q.astype(np.float16), 10).keys

    return opened


def faiss(v: np.ndarray, file: Path) -> Callable[[], Search]:
    library: Any = import_module("faiss")
    index = library.IndexHNSWSQ(v.shape[1], library.ScalarQuantizer.QT_fp16, 16, library.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = index.hnsw.efSearch = 128
    x = v.astype(np.float32)
    index.train(x[:1000])
    index.add(x)
    library.write_index(index, str(file))

    def opened() -> Search:
        read = library.read_index(str(file))
        read.hnsw.efSearch = 128
        return lambda q: read.search(q, 10)[1]

    return opened


def hnswlib(v: np.ndarray, file: Path) -> Callable[[], Search]:
    library: Any = import_module("hnswlib")
    index = library.Index("ip", v.shape[1])
    index.init_index(len(v), ef_construction=128, M=16)
    index.add_items(v.astype(np.float32))
    index.save_index(str(file))

    def opened() -> Search:
        read = library.Index("ip", v.shape[1])
        read.load_index(str(file))
        read.set_ef(128)
        return lambda q: read.knn_query(q, 10)[0]

    return opened


def graphs(v: np.ndarray, repeats: int) -> None:
    """Build time, size, recall and time per query of every library that is installed."""
    rng = np.random.default_rng(1)
    asked = v[rng.integers(0, len(v), 200)].astype(np.float32)
    asked += 0.5 * np.linalg.norm(asked, axis=1, keepdims=True) * rng.standard_normal(asked.shape) / 20
    asked = (asked / np.linalg.norm(asked, axis=1, keepdims=True)).astype(np.float32)
    truth = nearest_of_many(v, asked, 10)
    alone = best(lambda: [nearest(v, q, 10) for q in asked[:20]], repeats) / 20
    print(f"\n{len(v):,} rows; exact search {1e3 * alone:.2f} ms a query")
    print(f"{'':10}{'build s':>9}{'MB':>7}{'open ms':>9}{'recall@10':>11}{'ms/query':>10}{'times exact':>13}")
    for name, build in (("usearch", usearch), ("faiss", faiss), ("hnswlib", hnswlib)):
        if importlib.util.find_spec(name) is None:
            print(f"{name:10} not installed")
            continue
        with tempfile.TemporaryDirectory() as folder:
            file, began = Path(folder) / "graph", time.perf_counter()
            opened = build(v, file)
            built = time.perf_counter() - began
            opening, search = best(opened, repeats), opened()
            found = np.concatenate([np.asarray(search(q[None])).reshape(1, -1) for q in asked])
            hits = [len({*a.tolist()} & {*b.tolist()}) for a, b in zip(truth, found, strict=True)]
            each = best(lambda s=search: [s(q[None]) for q in asked], repeats) / len(asked)
            size, recall = file.stat().st_size / 1e6, np.mean(hits) / 10
        line = f"{name:10}{built:9.1f}{size:7.0f}{1e3 * opening:9.2f}{recall:11.3f}"
        print(f"{line}{1e3 * each:10.2f}{alone / each:13.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--graph-rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    v = vectors(options.rows, options.width)
    exact(v, options.repeats)
    graphs(v[: options.graph_rows].copy(), options.repeats)


if __name__ == "__main__":
    main()
