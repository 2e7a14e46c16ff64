"""A cache as large as ImageNet's training set: time to open it, and its stream beside a memory-mapped array.

    python benchmarks/store.py [--rows 1281167] [--dim 512] [--format zarr|h5]

Made-up rows of one table are written, then read chunk by chunk into one reused buffer: by `stream` of a
table that was just opened, which checks every chunk against its checksum, by `stream` once more, which has
nothing left to check, and by `np.load(mmap_mode="r")` from an .npy file with the same bytes. All read in
turns and from the operating system's memory, so what is compared is the work of reading, not the disk. Wall
time, best round.
"""

import argparse
import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import spaner.cache as caches
from spaner.cache.manifest import EncoderSpec, Manifest


def write(path: Path, rows: int, dim: int) -> float:
    """Fill and seal image/train with random rows; seconds."""
    ids = [f"train/n{row // 1300:08d}/n{row // 1300:08d}_{row % 1300}.JPEG" for row in range(rows)]
    labels = np.arange(rows, dtype=np.int32) // 1300
    spec = EncoderSpec("made up", "none", "", "image", dim, {}, "float32", synthetic=True)
    manifest = Manifest(
        "synthetic",
        "image",
        "train",
        rows,
        ("centre",),
        dim,
        "float16",
        caches.default_chunk_rows(1, dim, "float16"),
        spec,
        0,
        caches.ids_sha256(ids),
    )
    block = np.random.default_rng(0).standard_normal((manifest.chunk, 1, dim)).astype(np.float16)
    started = time.perf_counter()
    names = [f"class {label}" for label in range(labels[-1] + 1)]
    with caches.create(path, "synthetic", names) as cache, cache.begin(manifest, ids, labels, None) as writer:
        for chunk in writer.pending:
            span = writer.rows(chunk)
            writer.write(chunk, block[: span.stop - span.start])
        writer.seal(None)
    return time.perf_counter() - started


def export(table: caches.Table, path: Path) -> None:
    """The same rows as one .npy file."""
    shape = (table.rows, len(table.views), table.dim)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    for rows, block in table.stream():
        array[rows] = block
    array.flush()


def open_and_look(path: Path) -> None:
    """What every command does first: open, find the table, read its manifest."""
    with caches.open(path) as cache:
        assert cache.table("image/train").manifest.rows


def copied(blocks: Iterable[np.ndarray], buffer: np.ndarray) -> int:
    """Copy every block into the buffer; bytes."""
    total = 0
    for block in blocks:
        np.copyto(buffer[: len(block)], block)
        total += block.nbytes
    return total


def streamed(table: caches.Table, buffer: np.ndarray) -> int:
    """All rows through the cache."""
    return copied((block for _, block in table.stream()), buffer)


def twice(path: Path, buffer: np.ndarray) -> tuple[float, float]:
    """Seconds of a first pass, which checks every chunk, and of a second."""
    with caches.open(path) as cache:
        table = cache.table("image/train")
        return best(lambda: streamed(table, buffer), 1), best(lambda: streamed(table, buffer), 1)


def mapped(path: Path, buffer: np.ndarray) -> int:
    """All rows through a memory-mapped .npy file."""
    array, step = np.load(path, mmap_mode="r"), len(buffer)
    return copied((array[start : start + step] for start in range(0, len(array), step)), buffer)


def best(work: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest round."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    """Write, open, read in turns, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_281_167)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--format", choices=["zarr", "h5"], default="zarr")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        path = Path(folder) / ("cache.h5" if options.format == "h5" else "cache")
        plain = Path(folder) / "rows.npy"
        seconds = write(path, options.rows, options.dim)
        with caches.open(path) as cache:
            table = cache.table("image/train")
            export(table, plain)
            buffer = np.empty((table.manifest.chunk, 1, options.dim), np.float16)
        first, opening = (
            best(lambda: open_and_look(path), 1),
            best(lambda: open_and_look(path), options.rounds),
        )
        sides = [(*twice(path, buffer), best(lambda: mapped(plain, buffer), 1))
                 for _ in range(options.rounds)]  # fmt: skip
        checked, ours, base = (min(side) for side in zip(*sides, strict=True))
        size = mapped(plain, buffer)
    print(f"{options.rows:,} rows of {options.dim} float16, {options.format}: {size / 1e6:.0f} MB")
    print(f"write and seal      {seconds:8.1f} s    {size / seconds / 1e6:8.0f} MB/s")
    print(f"open                {first * 1e3:8.1f} ms first, {opening * 1e3:.1f} ms best (goal: under 50)")
    print(f"stream, checking    {checked * 1e3:8.1f} ms   {size / checked / 1e9:8.2f} GB/s")
    print(f"stream, again       {ours * 1e3:8.1f} ms   {size / ours / 1e9:8.2f} GB/s")
    print(f"np.load, mapped     {base * 1e3:8.1f} ms   {size / base / 1e9:8.2f} GB/s")
    print(f"stream / mapped     {base / ours:8.2f}      (goal: at least 0.80)")
    print(f"peak memory         {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:8.0f} MB")


if __name__ == "__main__":
    main()
