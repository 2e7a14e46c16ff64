"""One step of joint training with two to eight modalities: how much more than two do eight cost?

    OMP_NUM_THREADS=1 python benchmarks/modalities.py                      both sizes, process clock
    OMP_NUM_THREADS=2 python benchmarks/modalities.py --clock wall

All pairs of modalities are compared, so the losses' products grow as M (M - 1) / 2 while the aligners' grow
as M: 28 pairs stand against one. Two sizes: the embedded digits (batch 32, width 64), where a step is
calls, not arithmetic, and CLIP's (batch 256, width 512), where it is arithmetic. Sizes run in turns and the
fastest step counts, so other load meets all alike. The floor is what the matrix products of a step need,
timed alone at their own size in the same minute; its ratio is counted, not timed: multiplications of a step
with M modalities over those with two. Nothing that computes this loss exactly multiplies less. `one by one`
is the same step with every aligner and every pair computed apart.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from spaner.align.methods import losses, spaner
from spaner.align.methods.spaner import Spaner
from spaner.align.methods.step import update
from spaner.device import fast_products, keep_freed_memory, precision_of

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CPU = torch.device("cpu")
SIZES = {"digits": (32, 64), "CLIP": (256, 512)}
COUNTS = (2, 3, 4, 6, 8)
PROMPT = 2


def steps(count: int, batch: int, dim: int) -> Iterator[None]:
    """Steps of a model of `count` modalities on random unit vectors, with a pause after each."""
    torch.manual_seed(0)
    names = ["image", "text", *(f"view {i}" for i in range(count - 2))]
    model = Spaner(dict.fromkeys(names, dim), logit_scale=100.0, prompt_length=PROMPT)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01, fused=True)
    x = {name: torch.nn.functional.normalize(torch.randn(batch, dim), dim=1) for name in names}
    labels, precision = torch.arange(batch), precision_of("float32", CPU)
    while True:
        update(model.loss, optimizer, x, labels, precision)
        yield


@contextmanager
def apart() -> Iterator[None]:
    """Every aligner and every pair on its own: what there was before they were joined."""
    kept = spaner.TOGETHER, losses.pairs_in_blocks
    spaner.TOGETHER, losses.pairs_in_blocks = 0, one_by_one
    try:
        yield
    finally:
        spaner.TOGETHER, losses.pairs_in_blocks = kept


def one_by_one(vectors: Any, logit_scale: Any, present: Any) -> torch.Tensor:
    assert present is None  # no row is missing here
    pairs = losses.modality_pairs(len(vectors))
    return torch.stack([losses.contrastive(vectors[i], vectors[j], logit_scale) for i, j in pairs]).mean()


def floor(count: int, batch: int, dim: int, clock: Any) -> float:
    """Milliseconds that the products of one step need; `benchmarks/train.py` counts them for two modalities:
    12 D x D products a row of an aligner, and three of (B x B)(B x D) a pair and loss."""
    x, weight = torch.randn(batch, dim), torch.randn(dim, 3 * dim)
    square, rows = torch.randn(batch, batch), torch.randn(batch, dim)
    with fast_products(CPU):
        product = best(lambda: x @ weight, clock) / (batch * 3)
        pair = 2 * 3 * best(lambda: square @ rows, clock)
    return count * 12 * (batch + PROMPT) * product + len(losses.modality_pairs(count)) * pair


def multiplications(count: int, batch: int, dim: int) -> int:
    """What `floor` times, as a number."""
    pairs = len(losses.modality_pairs(count))
    return count * 12 * (batch + PROMPT) * dim**2 + pairs * 2 * 3 * batch**2 * dim


def best(run: Any, clock: Any, repeats: int = 25) -> float:
    times = []
    for _ in range(repeats):
        started = clock()
        run()
        times.append((clock() - started) * 1e3)
    return min(times)


def fastest(batch: int, dim: int, rounds: int, clock: Any) -> dict[int, float]:
    """Milliseconds of the fastest step for every number of modalities, in turns."""
    running = {count: steps(count, batch, dim) for count in COUNTS}
    times: dict[int, list[float]] = {count: [] for count in COUNTS}
    for _ in range(rounds + 2):
        for count, each in running.items():
            started = clock()
            next(each)
            times[count].append((clock() - started) * 1e3)
    return {count: min(found[2:]) for count, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    options = parser.parse_args()
    clock = CLOCKS[options.clock]
    keep_freed_memory(CPU)
    print(f"random vectors, float32, {torch.get_num_threads()} threads, {options.clock} clock")
    print("size    modalities  pairs      ms  ratio  one by one ms  ratio  floor ms  ratio")
    for name in options.sizes:
        batch, dim = SIZES[name]
        ours = fastest(batch, dim, options.rounds, clock)
        with apart():
            plain = fastest(batch, dim, options.rounds, clock)
        least = {count: floor(count, batch, dim, clock) for count in COUNTS}
        two = multiplications(2, batch, dim)
        for n in COUNTS:
            print(
                f"{name:<8}{n:>10}{n * (n - 1) // 2:>7}{ours[n]:>8.2f}{ours[n] / ours[2]:>7.2f}"
                f"{plain[n]:>15.2f}{plain[n] / plain[2]:>7.2f}{least[n]:>10.2f}"
                f"{multiplications(n, batch, dim) / two:>7.2f}"
            )


if __name__ == "__main__":
    main()
