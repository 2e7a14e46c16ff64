"""The cells of a sweep on the nodes of a Ray cluster, for what `cells` does on one machine.

A stack of cells is a task of one processor or one GPU. Cells write their result files themselves, so all
nodes must see the cache and the sweep's folder. A process that dies costs what it had in hand: a stack is
then run cell by cell, and a cell whose process dies again and again is recorded as failed.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spaner import cache as caches
from spaner.align.train import cells as local
from spaner.align.train.base_to_new import Towers
from spaner.align.train.cells import Cell
from spaner.cluster import TRIES, Cluster, Lost, Slot, check_seen, joined


def run_cells(
    cache: caches.Cache,
    cells: Sequence[Cell],
    on: str,
    workers: int | None = None,
    stack: int | None = None,
    towers: Towers | None = None,
) -> Iterator[int]:
    """Run the cells on a cluster, at most `workers` tasks at once, yielding how many were finished whenever
    some were. The numbers are those of one machine of the same kind.

    Raises:
        RecipeError: there is no such cluster. Mismatch: a node has another version. RunError: a node does not
            see the sweep's folder.
    """
    if not cells:
        return
    with joined(on) as cluster:
        slots = {cell.config.device: cluster.slot(cell.config.device) for cell in cells}
        gpus = any(slot.gpus for slot in slots.values())
        work = list(local.stacks(cells, stack or (local.STACK if gpus else 1)))
        told = (cache.path.absolute(), local.frozen_result(cache, "cpu"), towers)
        yield from _Queue(cluster, slots, told, workers or len(cells)).run(work)


class _Queue:
    """Stacks that wait, and those at work."""

    def __init__(self, cluster: Cluster, slots: dict[str, Slot], told: tuple[Any, ...], most: int) -> None:
        self.cluster, self.slots, self.told, self.most = cluster, slots, told, most
        self.todo: deque[list[Cell]] = deque()
        self.running: dict[Any, list[Cell]] = {}
        self.deaths: Counter[Path] = Counter()

    def run(self, work: Sequence[list[Cell]]) -> Iterator[int]:
        self.todo.extend(work)
        while self.todo or self.running:
            while self.todo and len(self.running) < self.most:
                self._start(self.todo.popleft())
            for reference in self.cluster.done(list(self.running)):
                if finished := self._ended(reference, self.running.pop(reference)):
                    yield finished

    def _start(self, cells: list[Cell]) -> None:
        slot = self.slots[cells[0].config.device]
        self.running[self.cluster.start(slot, _run, cells, *self.told)] = cells

    def _ended(self, reference: Any, cells: list[Cell]) -> int:
        """How many cells this finished; those of a process that died go back, each on its own."""
        try:
            return self.cluster.value(reference)
        except Lost as lost:
            if len(cells) > 1:
                self.todo.extend([cell] for cell in cells)
                return 0
            file = cells[0].file
            self.deaths[file] += 1
            if self.deaths[file] < TRIES:
                self.todo.append(cells)
                return 0
            reason = f"its process on the cluster died {TRIES} times ({lost})"
            local.write(cells[0], {"status": "failed", "reason": reason})
            return 1


def _run(cells: list[Cell], cache: Path, frozen: dict[str, Any] | None, towers: Towers | None) -> int:
    """On a node."""
    check_seen(cache, cells[0].file.parent)
    return local.run_stack(cache, cells, frozen, towers=towers)
