"""What parts cost at scale: joining a table, writing by several processes, resuming and sealing, memory.

    python benchmarks/scale.py join --rows 130000 1300000 13000000
    python benchmarks/scale.py write --writers 1 2 4
    python benchmarks/scale.py seal --rows 130000 1300000
    python benchmarks/scale.py extract --processes 1 2 4

Rows, ids and labels are made up. `join` lists and begins a table once, then joins it from a fresh process and
reads ids all over it. `write` fills a table with ready rows, so that it measures the store alone. `extract`
runs the embedded digits' cheap encoder over its scans through `--processes`.
"""

import argparse
import json
import multiprocessing
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from spaner import cache as caches
from spaner.cache.layout import ids_sha256
from spaner.cache.manifest import Manifest

DIM, VIEWS = 512, 1
PEAK = """
def peak():  # VmHWM is this process's own; ru_maxrss comes with what its parent once held
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
"""
JOIN = (
    PEAK
    + """
import json, sys, time
import numpy as np
from pathlib import Path
import torch
from spaner.cache import cache as caches
from spaner.extract.shared import StoredIds
base = peak()
began = time.perf_counter()
with caches.create(Path(sys.argv[1]), "made-up", ["a", "b"]) as cache:
    with cache.join("image/train", worker=(3, 64)) as writer:
        joined = time.perf_counter() - began
        ids = StoredIds(cache, "image/train", writer.manifest.rows)
        some = [ids[int(row)] for row in np.linspace(0, len(ids) - 1, 1000)]
        read = (time.perf_counter() - began - joined) / 1000
more = peak() - base
print(json.dumps([joined, read * 1e6, more / 1024, len(writer.pending)]))
"""
)

SEAL = (
    PEAK
    + """
import json, sys, time
from pathlib import Path
from spaner.cache import cache as caches
base = peak()
began = time.perf_counter()
with caches.create(Path(sys.argv[1]), "made-up", ["a", "b"]) as cache:
    with cache.join("image/train") as writer:
        resumed = time.perf_counter() - began
        assert not writer.pending
        began = time.perf_counter()
        writer.seal({})
        sealed = time.perf_counter() - began
more = peak() - base
print(json.dumps([resumed, sealed, more / 1024]))
"""
)


def spec() -> caches.EncoderSpec:
    return caches.EncoderSpec("made-up", "none", "", "image", DIM, {}, "float32", synthetic=True)


def begin(cache: caches.Cache, rows: int, chunk_rows: int = 4096):
    ids = [f"train/n{row // 1000:08d}/n{row // 1000:08d}_{row}.JPEG" for row in range(rows)]
    manifest = Manifest(
        "made-up", "image", "train", rows, ("center",), DIM, "float16", chunk_rows, spec(), 0, ids_sha256(ids)
    )
    return cache.begin(manifest, ids, np.arange(rows, dtype=np.int32) % 2)


def join(place: Path, sizes: list[int]) -> None:
    print("rows         listed and begun   its memory   joined    an id   more memory   chunks to do of 1/64")
    for rows in sizes:
        path = place / f"join{rows}"
        began = time.perf_counter()
        with caches.create(path, "made-up", ["a", "b"]) as cache:
            begin(cache, rows).close()
        made = time.perf_counter() - began
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        told = subprocess.run(
            [sys.executable, "-c", JOIN, str(path)], capture_output=True, text=True, check=True
        )
        joined, read, more, chunks = json.loads(told.stdout)
        print(
            f"{rows:>11,} {made:>15.1f} s {memory:>9,.0f} MB {joined:>7.2f} s {read:>5.0f} us {more:>10.1f} "
            f"MB {chunks:>6}",
            flush=True,
        )


def fill(path: Path, share: tuple[int, int]) -> None:
    rng = np.random.default_rng(share[0])
    with (
        caches.create(path, "made-up", ["a", "b"]) as cache,
        cache.join("image/train", worker=share) as writer,
    ):
        block = rng.normal(size=(4096, VIEWS, DIM)).astype(np.float16)
        for chunk in list(writer.pending):
            rows = writer.rows(chunk)
            writer.write(chunk, block[: rows.stop - rows.start])
        writer.seal({})


def write(place: Path, rows: int, writers: list[int]) -> None:
    print(f"{rows:,} ready rows of {DIM} float16\nwriters    rows/s    share of linear    MB/s")
    first = 0.0
    for count in writers:
        path = place / f"write{count}"
        with caches.create(path, "made-up", ["a", "b"]) as cache:
            begin(cache, rows).close()
        workers = [multiprocessing.Process(target=fill, args=(path, (r, count))) for r in range(count)]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        rate = rows / (time.perf_counter() - began)
        first = first or rate / count
        print(
            f"{count:>7} {rate:>9,.0f} {rate / first / count:>18.2f} {rate * DIM * 2 / 1e6:>7,.0f}",
            flush=True,
        )
        shutil.rmtree(path)


def seal(place: Path, sizes: list[int]) -> None:
    print("rows          write     resume all    seal     memory of a fresh process that does both")
    for rows in sizes:
        path = place / f"seal{rows}"
        block = np.random.default_rng(0).normal(size=(4096, VIEWS, DIM)).astype(np.float16)
        with caches.create(path, "made-up", ["a", "b"]) as cache, begin(cache, rows) as writer:
            began = time.perf_counter()
            for chunk in list(writer.pending):
                span = writer.rows(chunk)
                writer.write(chunk, block[: span.stop - span.start])
            written = time.perf_counter() - began
        told = subprocess.run(
            [sys.executable, "-c", SEAL, str(path)], capture_output=True, text=True, check=True
        )
        resumed, sealed, more = json.loads(told.stdout)
        print(
            f"{rows:>11,} {written:>7.1f} s {resumed:>9.2f} s {sealed:>8.2f} s {more:>10.1f} MB", flush=True
        )
        shutil.rmtree(path)


def extract(place: Path, processes: list[int]) -> None:
    from spaner.extract.extract import extract as encode

    print("processes    seconds of the whole command    rows/s of image/test    share of linear")
    first = 0.0
    for count in processes:
        began = time.perf_counter()
        settings = {"dataset": "digits", "modality": "image", "templates": ("vanilla",), "views": 8}
        summary = encode(**settings, chunk_rows=16, cache=place / f"e{count}", processes=count)
        seconds = time.perf_counter() - began
        rate = next(t.rows_per_second for t in summary.tables if t.name == "image/test") or 0.0
        first = first or rate / count
        print(f"{count:>9} {seconds:>25.1f} s {rate:>26,.0f} {rate / first / count:>18.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["join", "write", "seal", "extract"])
    parser.add_argument("--rows", type=int, nargs="+", default=[130_000, 1_300_000])
    parser.add_argument("--writers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--place", type=Path, help="folder to write in (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.place) as place:
        if options.what == "write":
            write(Path(place), options.rows[0], options.writers)
        elif options.what == "extract":
            extract(Path(place), options.processes)
        else:
            {"join": join, "seal": seal}[options.what](Path(place), options.rows)


if __name__ == "__main__":
    main()
