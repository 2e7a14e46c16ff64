"""Kills real processes with SIGKILL while they write a cache, continues, and compares every file.

    python killed.py FOLDER cache|cache.h5 every STRIDE   die at every STRIDE-th file operation, once each
    python killed.py FOLDER cache|cache.h5 random COUNT   die COUNT times at random, some in one cache
    … copy                                                copy a cache instead of making one
    … merge                                               merge three, two of which hold rows of one table

Children are forked, so that each costs milliseconds. To die at a file operation a child counts the
interpreter's own audit events; to die at a random time it is killed from outside, inside HDF5's writes too.
Prints how many were killed; exits with status 1 and the difference if a continued cache is not bit-identical,
or if half a copy or merge looks like a whole one.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np

from spaner import cache
from spaner.errors import SpanerError

ROWS, CHUNK, DIM = 31, 7, 13
OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "fcntl.flock"}


def work(path: Path) -> None:
    """What `spaner extract` does: make or continue two tables."""
    features = np.random.default_rng(3).normal(size=(ROWS, 2, DIM)).astype(np.float16)
    labels, ids = np.arange(ROWS) % 3, [f"train/{row}.jpg" for row in range(ROWS)]
    drawn = cache.few_shot(labels, 2, 1)
    manifest = cache.Manifest(
        dataset="pets",
        modality="image",
        split="train",
        rows=ROWS,
        views=("centre", "crop"),
        dim=DIM,
        dtype="float16",
        chunk_rows=CHUNK,
        encoder=cache.EncoderSpec("toy", "random", "", "image", DIM, {}, "float32", synthetic=True),
        seed=1,
        rows_sha256=cache.ids_sha256(ids),
        draws={"2-shot-seed-1": cache.drawn_sha256(ids, drawn)},
    )
    with cache.create(path, "pets", ["a", "b", "c"]) as made:
        with made.begin(manifest, ids, labels, {"2-shot-seed-1": drawn}) as writer:
            for chunk in writer.pending:
                writer.write(
                    chunk, features[writer.rows(chunk)], reasons={1: "broken"} if chunk == 2 else None
                )
            writer.seal({"purity": 0.0})
        made.add("text", "vanilla", features[:3, 0], labels[:3], encoder="toy")


def copied(path: Path) -> None:
    """What `spaner cache copy` does, from a cache of the other format."""
    source = path.parent.parent / ("source" if path.suffix else "source.h5")
    cache.copy(source, path)


def merged(path: Path) -> None:
    """What `spaner cache merge` does."""
    folder = path.parent.parent
    cache.merge([folder / "source", folder / "more.h5", folder / "rest"], path)


def apart(folder: Path) -> None:
    """Caches of other rows than `work` makes: a table of two halves."""
    features = np.random.default_rng(4).normal(size=(ROWS, DIM)).astype(np.float16)
    for name, rows in {"more.h5": slice(0, 10), "rest": slice(10, ROWS)}.items():
        with cache.create(folder / name, "pets", ["a", "b", "c"]) as made:
            labels, ids = np.arange(ROWS)[rows] % 3, [f"{row}.wav" for row in range(ROWS)[rows]]
            made.add("audio", "train", features[rows], labels, ids, encoder="toy", chunk_rows=CHUNK)


def refuse_half(path: Path, tables: int) -> None:
    """Exit if a copy or merge that was killed looks finished and is not."""
    try:
        with cache.open(path) as opened:
            if len(opened.tables()) == tables or opened.verify():
                return
    except SpanerError:
        return
    raise SystemExit(f"half of it looks finished: {path}")


WORK = {"make": work, "copy": copied, "merge": merged}
TABLES = {"copy": 2, "merge": 3}


def run(path: Path, what: str, die_at: int | None = None, after: float | None = None) -> bool:
    """Work in a forked child; True if it was killed."""
    child = os.fork()
    if not child:
        try:
            if die_at is not None:
                die_at_operation(die_at)
            WORK[what](path)
        except BaseException as error:
            print(f"child failed: {type(error).__name__}: {error}", flush=True)
            os._exit(3)
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a continued run failed")
    if what in TABLES:
        refuse_half(path, TABLES[what])
    return os.WIFSIGNALED(status)


def die_at_operation(number: int) -> None:
    seen = 0

    def count(event: str, _: tuple) -> None:
        nonlocal seen
        if event in OPERATIONS:
            seen += 1
            if seen > number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def compare(folder: Path, expected: dict[str, bytes], when: str) -> None:
    found = contents(folder)
    wrong = {name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)}
    if wrong:
        raise SystemExit(f"killed {when}: {sorted(wrong)} differ from an undisturbed run")


def main(folder: Path, name: str, mode: str, number: int, what: str = "make") -> int:
    whole, broken = folder / "whole", folder / "broken"
    whole.mkdir(parents=True)
    if what in TABLES:
        for source in ("source", "source.h5"):
            work(folder / source)
        apart(folder)
    started = time.perf_counter()
    run(whole / name, what)
    lasted = time.perf_counter() - started
    expected, killed = contents(whole), 0
    if mode == "every":
        operation = 0
        while True:
            broken.mkdir()
            if not run(broken / name, what, die_at=operation):
                return killed
            run(broken / name, what, die_at=operation // 2)  # and the continuation too, somewhere else
            run(broken / name, what)
            compare(broken, expected, f"at file operation {operation}")
            shutil.rmtree(broken)
            killed, operation = killed + 1, operation + number
    draw = random.Random(name)
    for attempt in range(number):
        broken.mkdir(exist_ok=True)
        killed += run(broken / name, what, after=draw.uniform(0, lasted * 1.2))
        if attempt % 4 == 3:
            run(broken / name, what)
            compare(broken, expected, f"{attempt % 4 + 1} times at random")
            shutil.rmtree(broken)
    return killed


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), *sys.argv[5:]))
