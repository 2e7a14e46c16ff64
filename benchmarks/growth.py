"""How cost grows: measured exponents of time in rows, classes, prompt length P and width D.

Each quantity is doubled a few times, the others stay; the exponent is the slope of log time over log size.
Vectors are made up; time does not depend on their values. Processor time, best of three, one thread with
OMP_NUM_THREADS=1.
"""

import resource
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from spaner.align.methods.spaner import Spaner
from spaner.align.score import matching
from spaner.device import fast_products, keep_freed_memory

BATCH = 256


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Processor seconds of one call, best of several, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def step(dim: int, length: int) -> Callable[[], object]:
    """Forward and backward of a training step: two modalities, both losses."""
    model = Spaner({"image": dim, "text": dim}, logit_scale=100.0, prompt_length=length)
    generator = torch.Generator().manual_seed(0)
    batch = {name: torch.randn(BATCH, dim, generator=generator) for name in ("image", "text")}
    labels = torch.arange(BATCH)

    def run() -> None:
        with fast_products(labels.device):
            model.loss(batch, labels)["loss"].backward()

    return run


def scoring(rows: int, classes: int) -> Callable[[], object]:
    """Every row against every class, 512 wide."""
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((n, 512), dtype=np.float32) for n in (rows, classes))
    labels = rng.integers(0, classes, rows)
    return lambda: matching.match(x, y, labels)


def line(name: str, sizes: Sequence[int], work: Callable[[int], Callable[[], object]]) -> None:
    """Measure one quantity and print its times and exponent."""
    times = [seconds(work(size)) for size in sizes]
    exponent = np.polyfit(np.log(sizes), np.log(times), 1)[0]
    shown = " ".join(f"{size:,}: {1e3 * t:.1f} ms" for size, t in zip(sizes, times, strict=True))
    print(f"| {name} | {exponent:.2f} | {shown} |", flush=True)


def main() -> None:
    torch.manual_seed(0)
    keep_freed_memory(torch.device("cpu"))
    print("| cost of | exponent | measured |\n|---|---|---|")
    line("a training step in P (D = 512)", (1, 2, 4, 8, 16, 32), lambda p: step(512, p))
    line("a training step in D (P = 2)", (256, 512, 1024), lambda d: step(d, 2))
    line("scoring in rows (1,000 classes)", (6_250, 12_500, 25_000, 50_000), lambda n: scoring(n, 1_000))
    line("scoring in classes (12,500 rows)", (250, 500, 1_000, 2_000), lambda c: scoring(12_500, c))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory of the process: {peak:,.0f} MB; {torch.get_num_threads()} thread(s)")


if __name__ == "__main__":
    main()
