"""Parts as processes of this machine: a driver starts them, adds up their progress, and replaces who dies.

A worker is this file run as a program. It reads one JSON line (settings and share) and prints JSON lines; it
ends when its standard input does, so that no worker outlives a driver, however that ends.
"""

import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch

from spaner import errors
from spaner.device import cores
from spaner.errors import RecipeError, RunError, SpanerError
from spaner.extract import parts
from spaner.extract.config import ExtractConfig
from spaner.extract.summary import Summary
from spaner.progress import Progress

COMMAND = [sys.executable, "-m", "spaner.extract.fleet"]
TRIES = 3
"""How often a worker may die in a row without having come further than a worker of its part ever did."""


def lead(config: ExtractConfig, progress: Progress) -> Summary:
    """Fill the cache with `config.processes` workers, or one for each of `config.devices`.

    Raises:
        RecipeError: a device that this machine lacks, before anything is written. SpanerError: what a worker
            raised. RunError: a worker that dies again and again.
    """
    check_devices(config.devices or ())
    count = config.processes or len(config.devices or ())
    config, found = parts.placed(config, count)
    before, started = parts.sizes(found), time.perf_counter()
    tally = Tally(before, progress)
    fleet = Fleet(config, count, tally)
    try:
        fleet.run()
        if parts.unsealed(found):  # who sealed last died where nobody was left to take over
            fleet.again(0)
            fleet.run()
    finally:
        fleet.stop()
    return parts.summed(found, before, tally.seconds(started))


def check_devices(names: Sequence[str]) -> None:
    """Counted, not tried: the driver computes nothing, and each try would take memory of a GPU.

    Raises:
        RecipeError: a GPU that is not there.
    """
    there = torch.cuda.device_count()
    for name in names:
        number = name.partition(":")[2] or "0"
        if name.startswith("cuda") and not (number.isdecimal() and int(number) < there):
            gpus = ", ".join(["cpu", *(f"cuda:{i}" for i in range(there))])
            raise RecipeError(
                f"--devices {','.join(names)}: this machine has no {name}; expected some of {gpus}; "
                "type `--processes 2` for processes that share a CPU"
            )


class Tally:
    """Adds what the workers tell to one bar for each table."""

    def __init__(self, before: dict[str, tuple[int, int]], show: Progress) -> None:
        self.before, self.show = before, show
        self.told: dict[str, dict[int, int]] = {name: {} for name in before}
        self.last: dict[str, float] = {}

    def take(self, worker: int, done: int, what: str) -> None:
        """A worker has finished so many rows of its share of a table."""
        self.told[what][worker] = done
        self.last[what] = time.perf_counter()
        total, earlier = self.before[what]
        self.show(min(total, max(sum(self.told[what].values()), earlier)), total, what)

    def seconds(self, started: float) -> dict[str, float]:
        """Table -> seconds from the start, or the end of the table before, to its last row."""
        found, since = {}, started
        for name, at in sorted(self.last.items(), key=lambda item: item[1]):
            found[name], since = at - since, at
        return found


class Lives:
    """Who died how often without having come further than a worker of its part ever did."""

    def __init__(self) -> None:
        self.failed: Counter[int] = Counter()
        self.furthest: dict[tuple[int, str], int] = {}  # part, table -> rows; a chunk in flight counts

    def moved(self, part: int, done: int, what: str) -> None:
        """A batch is finished; one that an earlier worker had finished too is no progress."""
        if done > self.furthest.get((part, what), -1):
            self.furthest[part, what] = done
            self.failed[part] = 0

    def died(self, part: int, who: str, how: str, alone: str = "") -> None:
        """Another death; `alone` is the line that runs the part by itself.

        Raises:
            RunError: it was one too many.
        """
        self.failed[part] += 1
        if self.failed[part] >= TRIES:
            look = f", or `{alone}` to look at this part alone" if alone else ""
            raise RunError(
                f"{who} died {TRIES} times in a row ({how}); finished chunks are kept; run the same command "
                f"again, with fewer --processes if memory ran out{look}"
            )


class Fleet:
    """The workers of one driver."""

    def __init__(self, config: ExtractConfig, count: int, tally: Tally) -> None:
        self.config, self.count, self.tally = config, count, tally
        self.events: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        self.workers: dict[int, subprocess.Popen[str]] = {}
        self.lives = Lives()
        self.errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - lives as long as the fleet
        for number in range(count):
            self.again(number)

    def again(self, number: int) -> None:
        """Start a worker."""
        process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=self._environment(),
        )
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has died already: its listener will say so
            process.stdin.write(json.dumps(self._order(number), default=str) + "\n")
            process.stdin.flush()
        self.workers[number] = process
        threading.Thread(target=self._listen, args=(number, process), daemon=True).start()

    def _environment(self) -> dict[str, str]:
        """Processors are shared out, unless the user has said how many threads there are to be."""
        each = max(1, cores() // self.count)
        return {"OMP_NUM_THREADS": str(each)} | dict(os.environ)

    def _order(self, number: int) -> dict[str, Any]:
        devices = self.config.devices
        workers = self.config.workers or max(1, cores() // (2 * self.count))
        config = dataclasses.replace(
            self.config,
            device=devices[number % len(devices)] if devices else self.config.device,
            processes=None,
            devices=None,
            part=f"{number + 1}/{self.count}",
            workers=workers,
        )
        return dataclasses.asdict(config)

    def _listen(self, number: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                try:
                    self.events.put((number, json.loads(line)))
                except ValueError:  # half a line of a process that was killed
                    break
        self.events.put((number, None))

    def run(self) -> None:
        """Until every worker has ended well."""
        while self.workers:
            number, told = self.events.get()
            if told is None:
                self._ended(number)
            elif "error" in told:
                raise getattr(errors, told["kind"], SpanerError)(told["error"])
            elif "done" in told:
                self._moved(number, told["done"], told["what"])

    def _moved(self, number: int, done: int, what: str) -> None:
        self.lives.moved(number, done, what)
        self.tally.take(number, done, what)

    def _ended(self, number: int) -> None:
        status = _end(self.workers.pop(number))
        if status == 0:
            return
        how = f"signal {-status}" if status < 0 else f"status {status}"
        self.lives.died(number, f"worker {number + 1} of {self.count}", f"{how}: {self._last_words()}")
        self.again(number)

    def _last_words(self) -> str:
        self.errors.seek(0)
        lines = [line for line in self.errors.read().splitlines() if line.strip()]
        return lines[-1].strip()[:200] if lines else "it said nothing"

    def stop(self) -> None:
        """End who is still at work."""
        for process in self.workers.values():
            process.kill()
            _end(process)
        self.errors.close()


def _end(process: "subprocess.Popen[str]") -> int:
    with suppress(BrokenPipeError):
        if process.stdin is not None:
            process.stdin.close()
    return process.wait()


def main() -> None:
    """A worker: fill the part that the first line of standard input names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver gets it too, and ends this process
    told = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_driver, daemon=True).start()
    from spaner.extract.extract import configured

    values = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
    try:
        parts.run(configured(None, values), _tell)
    except SpanerError as error:
        _say({"error": str(error), "kind": type(error).__name__})


def _tell(done: int, total: int, what: str) -> None:
    _say({"done": done, "what": what})


def _say(told: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


def _end_with_driver() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
