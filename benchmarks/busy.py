"""A training step while other programs keep cores busy: one thread, all threads, and threads that follow.

    python benchmarks/busy.py --busy 1
    python benchmarks/busy.py --busy 1 --aligner     forward and backward of one aligner alone, P = 8

The competing processes multiply in Python, so that they wait for nothing. Each way is measured in turns, by
the clock; the goal is that following is never slower than one thread. The bits of the weights are compared.
"""

import argparse
import hashlib
import multiprocessing
import time

import torch
from train import BATCH, CPU, synthetic_task

from spaner.align.methods import loop
from spaner.align.methods.spaner import Spaner
from spaner.align.methods.step import update
from spaner.align.train.config import TrainConfig
from spaner.device import ThreadCount, keep_freed_memory, precision_of


def compete() -> None:
    number = 1
    while True:
        number = number * 3 % 1_000_003


class Training:
    """Steps of one model; what a way of choosing threads is measured on."""

    def __init__(self, length: int, precision: str) -> None:
        self.task = synthetic_task()
        self.model = Spaner.build(TrainConfig(prompt_length=length), self.task.facts())
        self.data = loop.pairs_of(self.task)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3, weight_decay=0.01, fused=True)
        self.arithmetic = precision_of(precision, CPU)
        self.generator = torch.Generator().manual_seed(1)

    def step(self) -> None:
        rows = torch.randint(len(self.data.x), (BATCH,), generator=self.generator)
        texts = self.data.start[self.data.labels[rows]]
        batch = {"image": loop.gather(self.data.x, rows), "text": loop.gather(self.data.pool, texts)}
        update(self.model.loss, self.optimizer, batch, self.data.labels[rows], self.arithmetic)

    def aligner(self) -> None:
        x = self.data.x[:BATCH]
        f, z = self.model.aligners["image"](x, self.model.prompt)
        torch.autograd.grad(f.square().sum() + z.square().sum(), [self.model.prompt])

    def bits(self) -> str:
        digest = hashlib.sha256()
        for tensor in self.model.state().values():
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()[:12]


def mean_ms(training: Training, way: str, threads: int, steps: int, *, aligner: bool) -> float:
    torch.set_num_threads(1 if way == "one" else threads)
    crew = ThreadCount(threads if way == "follow" else 1)
    work = training.aligner if aligner else training.step
    began = time.perf_counter()
    for _ in range(steps):
        crew.look()
        work()
    return (time.perf_counter() - began) / steps * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--busy", type=int, default=1, help="competing processes")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt-length", type=int, default=8)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--aligner", action="store_true")
    options = parser.parse_args()
    keep_freed_memory(CPU)
    threads = torch.get_num_threads()
    others = [multiprocessing.Process(target=compete, daemon=True) for _ in range(options.busy)]
    for other in others:
        other.start()
    ways = {way: Training(options.prompt_length, options.precision) for way in ("one", "all", "follow")}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way, training in ways.items():
            times[way].append(mean_ms(training, way, threads, options.steps, aligner=options.aligner))
    what = "aligner" if options.aligner else "step"
    print(
        f"{what}, P = {options.prompt_length}, {options.precision}, {options.busy} others, {threads} threads"
    )
    for way, each in times.items():
        print(f"{way:<7} {min(each):>8.1f} ms fastest round, {max(each):>8.1f} slowest")
    print("same bits: " + ("yes" if len({training.bits() for training in ways.values()}) == 1 else "no"))


if __name__ == "__main__":
    main()
