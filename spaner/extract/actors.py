"""Parts on a Ray cluster: actors that hold an encoder fill one part after another; the driver hands them out.

The parts are those of `parts`: an actor fills one under its lock, and its chunks are in the cache before they
count. So an actor or node that dies costs the chunk in flight, and its part goes to the next that is free.
The driver needs neither data nor encoder nor GPU: planning too is an actor's work, and so is sealing, which
the driver sees to.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from spaner.cluster import Cluster, Lost, Slot, check_seen, joined
from spaner.errors import Busy, RunError
from spaner.extract import parts
from spaner.extract.config import ExtractConfig
from spaner.extract.datasets import images
from spaner.extract.fleet import Lives, Tally
from spaner.extract.shared import SharedPlan, plan_path
from spaner.extract.summary import Summary
from spaner.progress import Progress

SHARES = 4
"""Parts for each actor, so that who dies or is slow leaves little behind."""
LOOK_SECONDS = 0.5
PATIENCE = 90.0
"""How long a part may still be held by a process that has died, or is about to: longer than a claim lives."""
START_SECONDS = 600.0
"""How long the cluster may have no room for a single actor."""


def lead(config: ExtractConfig, progress: Progress) -> Summary:
    """Fill the cache with actors on the cluster `config.on`: `config.processes`, or one for each GPU or node.

    Raises:
        RecipeError: there is no such cluster. SpanerError: what an actor raised. RunError: a part whose actor
            dies again and again, or no room for an actor.
    """
    assert config.on is not None, "the cluster has a name"
    with joined(config.on) as cluster:
        count, slot = cluster.workers(config.processes, config.device)
        crew = Crew(cluster, config, slot, count)
        try:
            config, found = crew.planned(SHARES * count)
            before, started = parts.sizes(found), time.perf_counter()
            tally = Tally(before, progress)
            crew.fill(found, range(min(found.parts, parts.chunks(found))), tally)
            if parts.unsealed(found):  # who sealed died, or found others at work
                crew.fill(found, [0], tally)
        finally:
            crew.stop()
        # the driver looks now and then: what took less is not known
        took = {name: each for name, each in tally.seconds(started).items() if each > LOOK_SECONDS}
        return parts.summed(found, before, took)


class Hand:
    """What an actor keeps: the worker of a cache, with its encoders, and how far it has come."""

    def __init__(self, config: ExtractConfig) -> None:
        self.config = config
        self.worker: parts.Worker | None = None
        self.done: dict[str, int] = {}

    def ready(self) -> None:
        """It is there."""

    def plan(self, count: int) -> tuple[ExtractConfig, SharedPlan]:
        """The plan of the cache, made if need be."""
        with images.quiet():
            return patiently(lambda: parts.placed(self.config, count))

    def fill(self, cache: Path, share: tuple[int, int]) -> dict[str, int]:
        """Fill a part of the planned cache, see `parts.Worker.fill`; how far that is."""
        if not plan_path(cache).exists():  # all is sealed, or this node sees neither
            check_seen(cache)
        if self.worker is None:
            config = dataclasses.replace(self.config, cache=cache, overwrite=False)
            self.worker = parts.Worker(config, self._tell)
        worker, self.done = self.worker, {}
        with images.quiet():
            patiently(lambda: worker.fill(share))
        return self.told()

    def _tell(self, done: int, total: int, what: str) -> None:
        self.done[what] = done

    def told(self) -> dict[str, int]:
        """Table -> rows of the part in hand that are done."""
        return dict(self.done)


def patiently(call: Callable[[], Any]) -> Any:
    """Try again while another process has not let go yet."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except Busy:
            if time.monotonic() > deadline:
                raise
            time.sleep(LOOK_SECONDS)


class Crew:
    """The actors of one driver: those that come up, those with nothing to do, those at work."""

    def __init__(self, cluster: Cluster, config: ExtractConfig, slot: Slot, count: int) -> None:
        self.cluster, self.slot = cluster, slot
        self.typed = config
        workers = config.workers or max(1, slot.cpus // 2)
        self.config = dataclasses.replace(config, on=None, processes=None, workers=workers)
        self.actors: list[Any] = []
        self.free: list[Any] = []
        self.asked: dict[Any, tuple[Any, int | None]] = {}  # answer to come -> actor, its part
        self.todo: deque[int] = deque()
        self.lives, self.count = Lives(), 0  # parts
        self.dying: float | None = None  # since when whoever comes up dies again
        self.heard = time.monotonic()
        for _ in range(count):
            self._engage()

    def _engage(self) -> None:
        actor = self.cluster.hold(self.slot, Hand, self.config)
        self.actors.append(actor)
        self.asked[self.cluster.ask(actor, "ready")] = actor, None

    def planned(self, count: int) -> tuple[ExtractConfig, SharedPlan]:
        """The plan, made by the first actor that is there."""
        while True:
            while not self.free:
                self._hear()
            actor = self.free.pop()
            try:
                config, found = self.cluster.value(self.cluster.ask(actor, "plan", count))
            except Lost as lost:
                self.lives.died(-1, "the actor that plans", str(lost))
                self._died(actor, None, lost)
                continue
            self.free.append(actor)
            check_seen(plan_path(found.path))
            return config, found

    def fill(self, found: SharedPlan, shares: Iterable[int], tally: Tally) -> None:
        """Until these parts are filled, or all tables sealed."""
        self.typed, self.count = dataclasses.replace(self.typed, cache=found.path), found.parts
        self.todo.extend(shares)
        while self.todo or self._at_work():
            while self.todo and self.free:
                actor, part = self.free.pop(), self.todo.popleft()
                answer = self.cluster.ask(actor, "fill", found.path, (part, found.parts))
                self.asked[answer] = actor, part
            self._listen(tally)
            ended = self._hear()
            for part, done in ended:
                self._tell(part, done, tally)
            if ended and not parts.unsealed(found):
                self.todo.clear()

    def _at_work(self) -> list[tuple[Any, int]]:
        return [(actor, part) for actor, part in self.asked.values() if part is not None]

    def _listen(self, tally: Tally) -> None:
        """How far those at work have come."""
        asked = {self.cluster.ask(actor, "told"): part for actor, part in self._at_work()}
        for answer in self.cluster.done(list(asked), LOOK_SECONDS):
            with suppress(Lost):  # the answer to `fill` says so too
                self._tell(asked[answer], self.cluster.value(answer), tally)

    def _tell(self, part: int, done: dict[str, int], tally: Tally) -> None:
        for what, rows in done.items():
            self.lives.moved(part, rows, what)
            tally.take(part, rows, what)

    def _hear(self) -> list[tuple[int, dict[str, int]]]:
        """Who is there, who has finished a part and how it ended, and who has died."""
        ended = []
        for answer in self.cluster.done(list(self.asked), LOOK_SECONDS):
            actor, part = self.asked.pop(answer)
            try:
                told = self.cluster.value(answer)
            except Lost as lost:
                self._died(actor, part, lost)
                continue
            self.free.append(actor)
            self.dying = None
            if part is not None:
                ended.append((part, told))
        self._check_room()
        return ended

    def _died(self, actor: Any, part: int | None, lost: Lost) -> None:
        """Its part goes to the next that is free; another actor comes up where there is room."""
        self.actors.remove(actor)
        if part is None:
            self._check_nodes(lost)
        else:
            alone = parts.line(self.typed, part, self.count)
            self.lives.died(part, f"the actor of part {part + 1} of {self.count}", str(lost), alone)
            self.todo.appendleft(part)
        self._engage()

    def _check_nodes(self, lost: Lost) -> None:
        """Ray goes on placing actors on a node that has died until it has missed it for a while."""
        now = time.monotonic()
        self.dying = now if self.dying is None else self.dying
        if now - self.dying > PATIENCE:
            raise RunError(
                f"--on {self.cluster.on}: actors have been dying for {PATIENCE:.0f} s before they were given "
                f"anything ({lost}); finished chunks are kept; look at `ray status`, then run this "
                "command again"
            )
        time.sleep(LOOK_SECONDS)

    def _check_room(self) -> None:
        if self.free or self._at_work():
            self.heard = time.monotonic()
        elif time.monotonic() - self.heard > START_SECONDS:
            raise RunError(
                f"--on {self.cluster.on}: no actor of {self.slot.cpus} processors and {self.slot.gpus} GPUs "
                f"could start for {START_SECONDS:.0f} s; finished chunks are kept; free some "
                "nodes, and run the same command again"
            )

    def stop(self) -> None:
        """End who is still there."""
        for actor in self.actors:
            self.cluster.end(actor)
