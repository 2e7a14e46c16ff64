"""What a cache in an object store costs: requests, bytes and seconds, each answer delayed as a network would.

    python benchmarks/objects.py --rows 50000 --delay 0.03

The server is moto's, in this process, so that seconds are upper bounds; requests and bytes are those of any
S3. 512 numbers a row in float16, ids of 35 bytes, chunks of 4 MiB.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

import spaner.cache as caches

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.s3_server import S3Server, serving


def make(path: Path, rows: int) -> None:
    """A cache of one table of made-up rows."""
    features = np.random.default_rng(0).normal(size=(rows, 512)).astype(np.float16)
    labels, names = np.arange(rows) % 100, [f"class {label}" for label in range(100)]
    ids = [f"train/n{row % 100:08d}/n{row % 100:08d}_{row}.JPEG" for row in range(rows)]
    with caches.create(path, "made-up", names) as cache:
        cache.add("image", "train", features, labels, ids, encoder="toy")


def told(server: S3Server, what: str, work: Callable[[], object]) -> None:
    """Do it, and print what it asked of the server."""
    server.forget()
    started = time.perf_counter()
    work()
    seconds, kinds = time.perf_counter() - started, Counter(method for method, _ in server.requests)
    each = ", ".join(f"{count} {method}" for method, count in sorted(kinds.items()))
    requests = f"{len(server.requests):4} requests ({each})"
    print(f"{what:26}{seconds:6.1f} s {server.sent / 1e6:8.2f} MB fetched  {requests}", flush=True)


def measure(server: S3Server, folder: Path) -> None:
    """Copy there, read in several ways, verify, copy on and back."""
    made, there, other = folder / "cache", f"{server.bucket}/one/cache", f"{server.bucket}/two/cache"

    def table() -> caches.Table:
        return caches.open(there).table("image/train")

    def listing() -> list[object]:
        opened = table()
        return [opened.labels, opened.ids]

    told(server, "copy there", lambda: caches.copy(made, there))
    told(server, "open", table)
    told(server, "open, one row", lambda: table().read(np.array([17])))
    told(server, "open, 4 chunks of rows", lambda: table().read(np.arange(16) * 1000))
    told(server, "open, labels and ids", listing)
    told(server, "open, stream all rows", lambda: sum(len(block) for _, block in table().stream()))
    told(server, "verify", lambda: caches.open(there).verify())
    told(server, "copy to another bucket", lambda: caches.copy(there, other))
    told(server, "the same once more", lambda: caches.copy(there, other))
    told(server, "copy back", lambda: caches.copy(there, folder / "back"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--delay", type=float, default=0.03, help="seconds before every answer")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving() as server:
        make(Path(folder) / "cache", given.rows)
        server.make_bucket("benchmark")
        server.delay = given.delay
        measure(server, Path(folder))


if __name__ == "__main__":
    main()
