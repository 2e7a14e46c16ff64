"""One training step at ImageNet-16 scale: the loop of `spaner.fit` against what a user would otherwise write.

    OMP_NUM_THREADS=2 python benchmarks/train.py
    OMP_NUM_THREADS=1 python benchmarks/train.py --clock cpu      where other programs run

Both sides train both aligners with both losses and AdamW on the same synthetic vectors (1,000 classes, 16
shots, 2 views, width 512, 21 templates): ours from memory by index with shared-prompt attention, the other
with `nn.MultiheadAttention` on concatenated tokens and a `DataLoader` over a `TensorDataset`. They run in
turns, so that other load meets both; times are those of the fastest step. The floor is what the matrix
products of a step need, at rates measured in the same minute.
"""

import argparse
import dataclasses
import resource
import time
from collections.abc import Iterator

import torch
from concatenated import ConcatenatedAligner
from torch.utils.data import DataLoader, TensorDataset

from spaner import cache as caches
from spaner.align.methods import loop
from spaner.align.methods.spaner import Spaner
from spaner.align.methods.step import update
from spaner.align.methods.task import Draw, Task
from spaner.align.train.config import TrainConfig
from spaner.device import fast_products, keep_freed_memory, precision_of

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = time.perf_counter
CPU = torch.device("cpu")
CLASSES, SHOTS, VIEWS, TEMPLATES, DIM, BATCH = 1000, 16, 2, 21, 512, 256


def synthetic_task() -> Task:
    """Random unit vectors in the shape of ImageNet-16: the time of a step does not depend on their values."""
    torch.manual_seed(0)
    spec = caches.EncoderSpec(
        "random", "random", "", "image", DIM, {}, "float32", logit_scale=100.0, synthetic=True
    )
    return Task(
        dataset="synthetic",
        class_names=tuple(map(str, range(CLASSES))),
        modality="image",
        x=torch.nn.functional.normalize(torch.randn(CLASSES * SHOTS, VIEWS, DIM), dim=2),
        labels=torch.arange(CLASSES).repeat_interleave(SHOTS),
        text=torch.nn.functional.normalize(torch.randn(CLASSES, TEMPLATES, DIM), dim=2),
        templates="mined",
        logit_scale=100.0,
        draw=Draw(SHOTS, 1, CLASSES * SHOTS, 0, ""),
        encoders={"image": spec, "text": dataclasses.replace(spec, modality="text")},
        tables={},
    )


def shared_steps(task: Task, length: int, precision: str) -> Iterator[None]:
    """Our loop, with a pause after every step."""
    model = Spaner.build(TrainConfig(prompt_length=length), task.facts())
    data, generator = loop.pairs_of(task), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01, fused=True)
    arithmetic = precision_of(precision, CPU)
    while True:
        order, texts = torch.randperm(len(data.x), generator=generator), data.partners(generator)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            batch = {"image": loop.gather(data.x, rows), "text": loop.gather(data.pool, texts[rows])}
            update(model.loss, optimizer, batch, data.labels[rows], arithmetic)
            yield


def plain_model(task: Task, length: int) -> Spaner:
    """The same model with `nn.MultiheadAttention` on concatenated tokens."""
    model = Spaner.build(TrainConfig(prompt_length=length), task.facts())
    for modality, width in task.widths.items():
        model.aligners[modality] = ConcatenatedAligner(width, width)
    return model


def plain_steps(task: Task, model: Spaner) -> Iterator[None]:
    """The same training as one would write it first."""
    views, templates = task.x.shape[1], task.text.shape[1]
    labels = task.labels.repeat_interleave(views)
    data = TensorDataset(task.x.flatten(0, 1), labels)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
    while True:
        for image, label in DataLoader(data, BATCH, shuffle=True):
            text = task.text[label, torch.randint(templates, label.shape)]
            terms = model.loss({"image": image, "text": text}, label)
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
            terms["loss"].item()
            yield


def milliseconds(steps: Iterator[None]) -> float:
    started = clock()
    next(steps)
    return (clock() - started) * 1e3


def floor(length: int, arithmetic: torch.dtype) -> float:
    """Milliseconds that the products of one step need, each kind timed alone at its own size and fastest.

    Per modality and row, in D x D products: 5 forward (queries, keys, values, U, Proj) and 7 backward (5 for
    weights, 1 for values, 1 for the input of Proj; x needs no gradient). A row of the prompt has no Proj and
    needs its gradient: 4 and 8. Token products: 6 of (P x H)(H x D) a sample, and 3 of (1 x P H)(P H x D).
    Per loss, in float32: 3 of (B x B)(B x D).
    """
    x, weight = torch.randn(BATCH, DIM, dtype=arithmetic), torch.randn(DIM, 3 * DIM, dtype=arithmetic)
    gates, u, tokens = (
        torch.randn(BATCH, length, 8, dtype=arithmetic),
        torch.randn(BATCH, 8, DIM, dtype=arithmetic),
        torch.empty(BATCH, length, DIM, dtype=arithmetic),
    )
    square, rows = torch.randn(BATCH, BATCH), torch.randn(BATCH, DIM)
    with fast_products(CPU):
        product = best(lambda: x @ weight) / (BATCH * 3)  # one row by one D x D matrix
        small = best(lambda: torch.bmm(gates, u, out=tokens))
        losses = 2 * 3 * best(lambda: square @ rows)
    pooled = 6 * small + 3 * product * BATCH * length * 8 / DIM
    return 2 * (12 * (BATCH + length) * product + pooled) + losses


def best(run, repeats: int = 15) -> float:
    times = []
    for _ in range(repeats):
        started = clock()
        run()
        times.append((clock() - started) * 1e3)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 4, 8, 32])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    global clock
    clock = CLOCKS[options.clock]
    keep_freed_memory(CPU)
    task = synthetic_task()
    print(f"synthetic vectors, {options.precision}, {torch.get_num_threads()} threads, {options.clock} clock")
    print("  P  plain ms  ours ms  ratio  floor ms  ours / floor  30 epochs")
    for length in options.lengths:
        ours = shared_steps(task, length, options.precision)
        plain = plain_steps(task, plain_model(task, length))
        times = [(milliseconds(ours), milliseconds(plain)) for _ in range(options.rounds + 1)][1:]
        a, b = (min(side) for side in zip(*times, strict=True))
        least, run = (
            floor(length, getattr(torch, options.precision)),
            a * 30 * CLASSES * SHOTS * VIEWS / BATCH / 1e3,
        )
        print(f"{length:>3} {b:>9.1f} {a:>8.1f} {b / a:>6.1f} {least:>9.1f} {a / least:>13.1f} {run:>8.0f} s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


if __name__ == "__main__":
    main()
