"""Seconds to fit each few-shot method, and to score with it, on made-up vectors.

    OMP_NUM_THREADS=2 python benchmarks/methods.py                  100 classes, a few seconds each
    OMP_NUM_THREADS=2 python benchmarks/methods.py --full           ImageNet-16: 16,000 rows, 1,000 classes
    OMP_NUM_THREADS=2 python benchmarks/methods.py --full --methods gda,rla

Every method runs with its published settings. The vectors have CLIP's geometry (`synthetic.py`) and say
nothing of images; the accuracy is printed to show that something was learned. "cpu" are the processor seconds
of the fit, which other programs hardly change; "tune" is the time of the method's whole grid on validation
rows where that needs no refit. `--iterations` and `--epochs` shorten training: the time of a whole run is
then that many times longer.
"""

import argparse
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from synthetic import Space
from torch import Tensor

from spaner.align.methods import method as registry
from spaner.align.methods.method import Tunable
from spaner.align.methods.task import Draw, Query, Samples, Task, Texts, Tools
from spaner.align.train.config import TrainConfig
from spaner.settings import grids

SKIPPED = ("spaner", "linear_probe")
"""Measured by `train.py`; and scikit-learn's, whose time is that of its solver."""


def unit(raw: np.ndarray) -> tuple[Tensor, Tensor]:
    """Unit vectors and their lengths."""
    rows = torch.from_numpy(raw)
    return torch.nn.functional.normalize(rows, dim=-1), rows.norm(dim=-1)


def made_up(classes: int, shots: int, views: int, test: int) -> tuple[Task, Samples]:
    """A task of the given size, and test rows."""
    space, every = Space(classes, 512, 0), np.arange(classes)
    filled, name = space.texts(21)

    def samples(labels: np.ndarray, views: int) -> Samples:
        x, norms = unit(space.images(labels, views))
        return Samples(x, torch.from_numpy(labels), Draw(None, None, len(labels), 0, ""), norms)

    train, held = samples(np.repeat(every, shots), views), samples(np.repeat(every, 4), 1)
    texts = {
        "mined": Texts(*unit(filled)),
        "vanilla": Texts(*unit(filled[:, :1])),
        "classname": Texts(*unit(name)),
    }
    facts: dict[str, Any] = {"texts": texts, "queries": {"text": "vanilla", "semantic": "classname"}}
    facts |= {
        "templates": "mined",
        "text": texts["mined"].x,
        "logit_scale": 100.0,
        "encoders": {},
        "tables": {},
    }
    facts |= {"dataset": "synthetic", "class_names": tuple(map(str, every)), "modality": "image"}
    facts |= {"x": train.x, "labels": train.labels, "norms": train.norms, "draw": train.draw}
    return Task(**facts, validation=held), samples(np.resize(every, test), 1)


def accuracy(head: Any, rows: Samples, query: Query) -> float:
    """Share of rows whose own class scores best, in blocks."""
    with torch.no_grad():
        right = [
            (head.scores(x, query).argmax(1) == labels).sum()
            for x, labels in zip(rows.x[:, 0].split(2000), rows.labels.split(2000), strict=True)
        ]
    return float(torch.stack(right).sum()) / len(rows.labels)


def measured(name: str, task: Task, test: Samples, changes: dict[str, Any]) -> str:
    """A row of the table."""
    config = TrainConfig(method=name)
    flat = config.to_json()
    flat |= {key: value for key, value in changes.items() if value and key in flat}
    started, worked = time.perf_counter(), time.process_time()
    head = registry.method(name).fit(task, SimpleNamespace(**flat), Tools())
    fitted, work = time.perf_counter(), time.process_time() - worked
    tuned = _tune(head, task) if isinstance(head, Tunable) else 0.0
    scored = time.perf_counter()
    found = accuracy(head, test, task.query())
    took = time.perf_counter() - scored
    return f"{name:14} {fitted - started:8.1f} {work:8.1f} {tuned:8.1f} {took:8.1f} {100 * found:10.1f}"


def _tune(head: Any, task: Task) -> float:
    held = task.validation
    assert held is not None, "made above"
    grid = {name: values for name, values in grids(head.Settings).items() if name in head.tuned}
    started = time.perf_counter()
    with torch.no_grad():
        for _, scores in head.tune(held.x[:, 0], task.query(), grid):
            scores.argmax(1)
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="1,000 classes instead of 100")
    parser.add_argument("--methods", default="", help="names, separated by commas; default: all")
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument(
        "--iterations", type=int, default=0, help="of methods that count them; 0: as published"
    )
    parser.add_argument("--epochs", type=int, default=0, help="of methods that count them; 0: as published")
    options = parser.parse_args()
    classes = 1_000 if options.full else 100
    task, test = made_up(classes, 16, options.views, 10 * classes)
    names = (
        options.methods.split(",") if options.methods else [n for n in registry.METHODS if n not in SKIPPED]
    )
    print(f"{len(task.labels):,} rows, {classes:,} classes, {options.views} views, D 512; seconds")
    print(f"{'method':14} {'fit':>8} {'cpu':>8} {'tune':>8} {'score':>8} {'accuracy %':>10}")
    for name in names:
        changes = {"iterations": options.iterations, "epochs": options.epochs}
        print(measured(name, task, test, changes), flush=True)


if __name__ == "__main__":
    main()
