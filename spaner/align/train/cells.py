"""Running the cells of a sweep: side by side in processes on a CPU, as one tensor program on a GPU.

A worker loads a task once and keeps it for the cells that share its rows; every cell writes its own result
file at once when it is done, so nothing that was finished is lost. On a CPU each cell computes on one thread,
so its numbers do not depend on how many run at once. A worker whose parent has gone, however it went, goes
too.
"""

import dataclasses
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import joblib
import torch

from spaner import cache as caches
from spaner.align.methods.task import Task
from spaner.align.score.evaluate import asking, evaluate, matches, zero_shot
from spaner.align.score.metrics import summary
from spaner.align.score.tables import tested_table
from spaner.align.train.base_to_new import Towers, base_to_new
from spaner.align.train.config import TrainConfig
from spaner.align.train.fit import fit
from spaner.align.train.run import Run
from spaner.align.train.stack import fit_stack, shape
from spaner.align.train.task import scale_of, task
from spaner.cache import files
from spaner.device import cores, device_of, scoring_device
from spaner.errors import Mismatch, RunError, SpanerError

#: Cells trained as one on a GPU, unless the caller says otherwise.
STACK = 8

#: Settings that decide which rows and templates are loaded.
SELECTION = ("shots", "draw_seed", "templates", "held")

WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class Cell:
    """One configuration of a sweep, the settings that vary in it, its result file, caches of shifted data on
    which it is tested too, and whether half of the classes train and are asked about the others besides."""

    config: TrainConfig
    varied: dict[str, Any]
    file: Path
    shift: tuple[Path, ...] = ()
    halves: bool = False

    @property
    def key(self) -> str:
        """A hash of everything that decides its numbers."""
        return self.file.stem


def run_cells(
    cache: caches.Cache,
    cells: Sequence[Cell],
    workers: int | None = None,
    stack: int | None = None,
    towers: Towers | None = None,
) -> Iterator[int]:
    """Run the cells, yielding how many were finished, whenever some were. `towers` builds what a method needs
    beside the cache, in each process anew.

    Raises:
        RunError: a worker process died; finished cells are kept.
    """
    if not cells:
        return
    on_cpu = all(device_of(cell.config.device).type == "cpu" for cell in cells)
    work = list(stacks(cells, stack or (1 if on_cpu else STACK)))
    workers = min(workers or (cores() if on_cpu else 1), len(work))
    frozen = frozen_result(cache, cells[0].config.device)
    path, parent = cache.path.absolute(), os.getpid()
    pool = joblib.Parallel(workers, return_as="generator_unordered")
    watched = parent if workers > 1 else None
    try:
        told = (frozen, watched, towers)
        for done in pool(joblib.delayed(run_stack)(path, each, *told) for each in work):
            yield done or 0
    except BrokenProcessPool:
        raise RunError(
            f"a worker process of the sweep died (out of memory?) with {workers} at work; "
            f"finished cells are kept in {cells[0].file.parent}; run the same command again with --workers 1"
        ) from None


def stacks(cells: Sequence[Cell], most: int) -> Iterator[list[Cell]]:
    """Cells that are trained as one, at most `most` each; those with the same training rows in sequence."""
    groups: dict[tuple[str, str | None], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((_selection(cell.config), shape(cell.config)), []).append(cell)
    for (_, alike), members in sorted(groups.items(), key=lambda item: item[0][0]):
        size = 1 if alike is None else most
        yield from (members[start : start + size] for start in range(0, len(members), size))


def _selection(config: TrainConfig) -> str:
    return json.dumps([*(getattr(config, name) for name in SELECTION), getattr(config, "texts", None)])


def frozen_result(cache: caches.Cache, device: str) -> dict[str, Any] | None:
    """The frozen encoder's own result, the same for all cells; what prevents it is reported by every cell."""
    with _one_thread(), suppress(SpanerError):
        return zero_shot(cache, device=device)
    return None


def run_stack(
    cache: Path,
    cells: list[Cell],
    frozen: dict[str, Any] | None,
    parent: int | None = None,
    towers: Towers | None = None,
) -> int:
    """Train and score cells that are trained as one, on one thread; how many."""
    if parent is not None:
        _watch(parent)
    with _one_thread():
        alone = _left_by_stack(cache, cells, frozen) if len(cells) > 1 else cells
        for cell in alone:
            try:
                write(cell, _scored(_fit(cache, cell.config, towers), cache, frozen, cell, towers))
            except SpanerError as error:
                write(cell, {"status": "failed", "reason": str(error)})
    return len(cells)


def _left_by_stack(cache: Path, cells: list[Cell], frozen: dict[str, Any] | None) -> list[Cell]:
    """Train and score cells as one; those that have to be trained alone, all where no stack can be built."""
    try:
        runs = fit_stack(_task(cache, cells[0].config), [cell.config for cell in cells])
    except SpanerError:
        return cells
    for cell, run in zip(cells, runs, strict=True):
        if run is not None:
            write(cell, _scored(run, cache, frozen, cell))
    return [cell for cell, run in zip(cells, runs, strict=True) if run is None]


def _fit(cache: Path, config: TrainConfig, towers: Towers | None = None) -> Run:
    data = _task(cache, config)
    tools = towers(cache, config.method, config.device) if towers else {}
    return fit(dataclasses.replace(data, logit_scale=scale_of(config, data.encoders)), config, **tools)


_kept: dict[tuple[Path, str], Task] = {}
"""The task that this process loaded last: cells that share its rows come one after another."""


def _task(cache: Path, config: TrainConfig) -> Task:
    key = cache, _selection(config)
    if key not in _kept:
        _kept.clear()
        with caches.open(cache) as opened:
            _kept[key] = task(opened, config)
    return _kept[key]


def _scored(
    run: Run, cache: Path, frozen: dict[str, Any] | None, cell: Cell, towers: Towers | None = None
) -> dict[str, Any]:
    there = run.on(scoring_device(cell.config.device))
    found = {
        "status": "ok",
        "metrics": evaluate(there, cache, frozen=frozen, device=cell.config.device),
        "facts": run.facts(),
        "selection": run.selection,
        "parameters": sum(tensor.numel() for tensor in run.model.state().values()),
    }
    if cell.shift:
        found["shift"] = [_shifted(there, path) for path in cell.shift]
    if cell.halves:
        found["base_to_new"] = _halves(cache, cell.config, towers)
    return found


def _halves(cache: Path, config: TrainConfig, towers: Towers | None = None) -> dict[str, Any]:
    """The same settings fitted on the first half of the classes and asked about the second, or the reason why
    this method has no number."""
    try:
        return base_to_new(cache, config, towers)
    except SpanerError as refused:
        return {"text": None, "reason": str(refused)}


def _shifted(run: Run, path: Path) -> dict[str, Any]:
    """Text accuracy on another cache, or the reason why this method has none there."""
    with caches.open(path) as opened:
        told = {"dataset": opened.dataset}
        try:
            table = tested_table(opened, None)
            for needed in (table, *asking(opened).values()):
                run.check(opened.table(needed).manifest)
            return told | {"text": summary(matches(run, opened, table)["text"])["accuracy"]}
        except Mismatch as refused:
            return told | {"text": None, "reason": str(refused)}


def write(cell: Cell, result: dict[str, Any]) -> None:
    """The result of a cell, whole or not at all."""
    told = {"varied": cell.varied, "config": cell.config.to_json(), **result}
    files.write_result(cell.file, json.dumps(told, indent=2))


@lru_cache(maxsize=1)
def _watch(parent: int) -> None:
    """End this process when its parent has ended: nobody else would."""

    def look() -> None:
        while os.getppid() == started:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    started = os.getppid()
    if os.getpid() != parent:
        threading.Thread(target=look, daemon=True).start()


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
