"""A sweep over prompt lengths at ImageNet-16's size: one worker, several, and the loop one would write first.

    OMP_NUM_THREADS=2 python benchmarks/sweep.py --shots 16 --epochs 30 --ways workers     the real thing
    OMP_NUM_THREADS=2 python benchmarks/sweep.py                     all ways, scaled down, about a minute

Each way runs in a process of its own, evaluation included, on the synthetic cache. Scaled down, a cell takes
fewer steps of the same size (1,000 classes, 21 templates, width 512, batch 256, all test rows); the
projection multiplies the seconds of a step by the steps of the full run and adds evaluation as measured. The
plain loop is `nn.MultiheadAttention` on concatenated tokens, a `DataLoader`, and the same evaluation, on all
cores. Start-up is timed apart, with a sweep over a tiny cache: workers start and import torch once.

Other programs on the machine stretch the clock, so processor time is counted too, and the projection is for
a machine that has nothing else to do: seconds by the clock are shrunk to processor seconds per busy core.
Memory is proportional set size (shared pages are divided among those who map them), sampled.
"""

import argparse
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch
from joblib.externals.loky import get_reusable_executor
from synthetic import make
from train import BATCH, CLASSES, VIEWS, plain_model, plain_steps

from spaner import cache as caches
from spaner.align.methods.loop import batch_bounds
from spaner.align.score.evaluate import evaluate
from spaner.align.train.config import TrainConfig
from spaner.align.train.fit import finished
from spaner.align.train.select import Receipt
from spaner.align.train.sweep import sweep
from spaner.align.train.task import task
from spaner.device import device_of

WAYS = ("plain", "worker", "workers", "stack")
FULL_STEPS = 30 * len(batch_bounds(CLASSES * 16 * VIEWS, BATCH))


@dataclass
class Memory:
    """Peak megabytes of a process and everything it started."""

    total: float = 0.0
    largest: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)

    def watch(self, root: int) -> None:
        while not self.stop.wait(0.3):
            sizes = [megabytes(pid) for pid in family(root)]
            self.total, self.largest = max(self.total, sum(sizes)), max(self.largest, *sizes, 0.0)


def family(root: int) -> list[int]:
    """Process ids of `root` and its descendants; Linux."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def processor_seconds(root: int) -> float:
    """Used so far by `root` and its living descendants."""
    ticks = 0
    for pid in family(root):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def megabytes(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


Cells = list[tuple[float, int]]
"""Seconds of training and steps of each cell."""


def swept(
    cache: Path, grid: dict[str, list[int]], base: dict[str, Any], workers: int = 1, stack: int = 1
) -> Cells:
    with tempfile.TemporaryDirectory() as out:
        results = sweep(cache, grid, base, out, workers=workers, stack=stack)
    steps = len(batch_bounds(len(caches.open(cache).table("image/train").labels) * VIEWS, BATCH))
    return [(r["facts"]["seconds"], base["epochs"] * steps) for r in results]


def plain(cache: Path, grid: dict[str, list[int]], base: dict[str, Any]) -> Cells:
    """Cell after cell, as a script would."""
    cells = []
    for length in grid["prompt_length"]:
        config = TrainConfig(prompt_length=length, **base)
        data = task(caches.open(cache), config)
        model, started = plain_model(data, length), time.perf_counter()
        steps = config.epochs * -(-data.labels.shape[0] * data.x.shape[1] // BATCH)
        for _, _ in zip(range(steps), plain_steps(data, model), strict=False):
            pass
        seconds = time.perf_counter() - started
        evaluate(finished(config, model, data, Receipt("none"), seconds), cache)
        cells.append((seconds, steps))
    return cells


@dataclass
class Way:
    """What one way took: seconds until its workers were ready, of the sweep, and of processors; its cells."""

    start: float
    wall: float
    processor: float
    cells: Cells
    memory: Memory = field(default_factory=Memory)


def in_a_process(run: Callable[..., Cells], *args: Any, **how: int) -> Way:
    """Run one way in a fresh process and watch its memory."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    worker = context.Process(target=_report, args=(queue, run, args, how))
    memory = Memory()
    worker.start()
    assert worker.pid is not None
    watcher = threading.Thread(target=memory.watch, args=(worker.pid,))
    watcher.start()
    try:
        start, wall, processor, cells = queue.get(timeout=7200)
    finally:
        memory.stop.set()
        watcher.join()
        worker.join()
    return Way(start, wall, processor, cells, memory)


def _report(queue: Queue, run: Callable[..., Cells], args: tuple, how: dict[str, int]) -> None:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny"
        make(tiny, classes=11, shots=3, dim=64, test_rows=101)
        workers = how.get("workers", 1)
        sweep(tiny, {"seed": [*range(2 * workers)]}, {"epochs": 1}, Path(folder) / "out", workers=workers)
    ready, used = time.perf_counter(), processor_seconds(os.getpid())
    cells = run(*args, **how)
    wall, processor = time.perf_counter() - ready, processor_seconds(os.getpid()) - used
    queue.put((ready - started, wall, processor, cells))
    get_reusable_executor().shutdown(wait=True)  # idle workers would keep this process for minutes


def show(name: str, workers: int, cores: int, way: Way) -> None:
    """One line of the table. What a cell took beyond its steps is evaluation, loading and waiting."""
    idle = min(way.processor / (way.wall * cores), 1.0)  # by how much an idle machine would be faster
    steps = sum(steps for _, steps in way.cells)
    training = idle * sum(seconds for seconds, _ in way.cells)
    rest = max(idle * way.wall * workers - training, 0.0)
    full = way.start + (idle * sum(s / n for s, n in way.cells) * FULL_STEPS + rest) / workers
    seconds = f"{way.start:.1f} s | {way.wall:.1f} s | {way.processor:.1f} s"
    each = f"{1e3 * training / steps:.0f} ms | {rest / len(way.cells):.1f} s"
    sizes = f"{way.memory.largest:,.0f} MB | {way.memory.total:,.0f} MB"
    print(f"| {name} | {seconds} | {each} | {sizes} | {full / 60:.1f} min |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--shots", type=int, default=2, help="16 is the full size; default 2")
    parser.add_argument("--epochs", type=int, default=1, help="30 is the full run; default 1")
    parser.add_argument("--test-rows", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--stack", type=int, default=4, help="seeds that are trained as one")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="what to compare; default all")
    options = parser.parse_args()
    device = device_of("auto").type
    base = {"epochs": options.epochs, "batch_size": BATCH, "device": "cpu"}
    lengths, seeds = {"prompt_length": options.lengths}, {"seed": list(range(1, options.stack + 1))}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        make(cache, shots=options.shots, test_rows=options.test_rows)
        print(
            f"P = {options.lengths}; {CLASSES} classes x {options.shots} shots x {VIEWS} views, "
            f"{options.epochs} epochs, {options.test_rows:,} test rows; "
            f"{torch.get_num_threads()} threads for the plain loop, load {os.getloadavg()[0]:.1f}; "
            f"full run {FULL_STEPS:,} steps a cell\n"
        )
        print("| | start | sweep | processor | a step | rest of a cell | largest process | all | projected |")
        print("|---" * 9 + "|")
        many = options.workers
        if "plain" in options.ways:
            show("plain loop", 1, torch.get_num_threads(), in_a_process(plain, cache, lengths, base))
        if "worker" in options.ways:
            show("1 worker", 1, 1, in_a_process(swept, cache, lengths, base, workers=1))
        if "workers" in options.ways:
            show(f"{many} workers", many, many, in_a_process(swept, cache, lengths, base, workers=many))
        if "stack" in options.ways:
            for where in dict.fromkeys(["cpu", device]):
                for stack in (1, options.stack):
                    found = in_a_process(
                        swept, cache, seeds, base | {"device": where}, workers=1, stack=stack
                    )
                    show(f"{options.stack} seeds, P = 2, {where}, {stack} at once", 1, 1, found)


if __name__ == "__main__":
    main()
