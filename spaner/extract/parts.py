"""Many processes fill one cache: part r of W is the chunks r, r + W, … of every table.

Parts may come and go in any order and on any host. Whoever finds all parts of a table written checks the
whole and seals it, then fills the small tables that copy from it. A part that dies loses the chunk in flight;
the same line runs it again. The bits are those of one process: a chunk's bits depend on that chunk alone.
"""

import dataclasses
import shlex

import numpy as np

from spaner.cache.address import place
from spaner.cache.cache import Cache
from spaner.cache.claim import Claim
from spaner.cache.lock import Lock
from spaner.cache.manifest import Manifest
from spaner.errors import Busy, CacheError, RecipeError, Unsealed
from spaner.extract import shared
from spaner.extract.config import ExtractConfig
from spaner.extract.datasets import images
from spaner.extract.extraction import Extraction
from spaner.extract.plan import destination, listed
from spaner.extract.shared import SharedPlan
from spaner.extract.summary import Summary, TableSummary
from spaner.progress import Progress


def wanted(config: ExtractConfig) -> bool:
    """Whether the work is to be shared out."""
    return any(value is not None for value in (config.part, config.processes, config.devices, config.on))


def run(config: ExtractConfig, progress: Progress) -> Summary:
    """Fill a cache in parts: this process one of them, or as the driver of all.

    Raises:
        RecipeError: options that contradict each other, or a part that cannot be.
        Busy, Mismatch: see `shared.joined`. RunError: a worker that dies again and again.
    """
    _check(config)
    if config.part is not None:
        share = parsed(config.part)
        with images.quiet():
            return Worker(config, progress).fill(share)
    if config.on is not None:
        from spaner.extract import actors

        return actors.lead(config, progress)
    from spaner.extract import fleet

    return fleet.lead(config, progress)


def _check(config: ExtractConfig) -> None:
    if config.part is not None:
        parsed(config.part)
        for name in ("processes", "devices", "on"):
            if getattr(config, name) is not None:
                raise RecipeError(f"--part and --{name} were given; expected one of them; leave --{name} out")
        if config.cache is None:
            raise RecipeError(f"--part {config.part} without --cache; parts meet there; add `--cache PATH`")
        if config.overwrite:
            raise RecipeError(
                f"--part {config.part} with --overwrite: every part would begin anew; remove {config.cache} "
                "once, and leave --overwrite out"
            )
    if config.processes is not None and config.processes < 1:
        raise RecipeError(f"--processes {config.processes}: expected at least 1; type `--processes 2`")
    if config.on is not None and config.devices is not None:
        raise RecipeError(
            "--on and --devices were given; expected one of them; leave --devices out: each actor takes a GPU"
        )
    if config.devices is not None and not config.devices:
        raise RecipeError("--devices: expected at least one; type for example `--devices cuda:0,cuda:1`")


def parsed(text: str) -> tuple[int, int]:
    """`3/64` as (2, 64).

    Raises:
        RecipeError: anything else.
    """
    first, slash, second = text.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise RecipeError(f"--part {text}: expected I/N with I from 1 to N; type for example `--part 1/4`")
    return int(first) - 1, int(second)


class Worker:
    """A process that fills parts, one after another, and keeps its encoders for the next."""

    def __init__(self, config: ExtractConfig, progress: Progress) -> None:
        self.config = config
        self.progress = progress
        self._held: Lock | Claim | None = None
        self._kept: dict[str, Extraction] = {}

    def fill(self, share: tuple[int, int]) -> Summary:
        """Fill share (r, W), seal what is complete, and say what is still missing."""
        with shared.joined(self.config, share) as (found, self._held):
            done = [summary for each in found.modalities for summary in self._modality(found, each, share)]
            complete = not unsealed(found)
            notes = [*found.notes, *([] if complete else self._missing(found, share[0]))]
            if complete:
                shared.ended(found)
        left_out = found.dataset.left_out
        return Summary(found.path, done, complete=complete, left_out=left_out, notes=notes)

    def _modality(self, found: SharedPlan, modality: str, share: tuple[int, int]) -> list[TableSummary]:
        with found.open() as cache:
            done = [self._table(found, cache, name, share) for name in found.shared(modality)]
        with found.open() as cache:
            if all(cache.has(name) for name in found.shared(modality)):
                for name in found.rest(modality):
                    try:
                        done.append(self._table(found, cache, name, (0, 1)))
                    except Busy:  # another part is at it
                        break
        return done

    def _table(self, found: SharedPlan, cache: Cache, name: str, share: tuple[int, int]) -> TableSummary:
        modality = name.split("/")[0]
        if modality not in self._kept:
            self._kept[modality] = Extraction(self.config, found.dataset, modality, self._tell)
        with cache.join(name, worker=share) as writer:
            return self._kept[modality].part(cache, found.table(cache, name, self.config), writer)

    def _tell(self, done: int, total: int, what: str) -> None:
        """Pass progress on, unless another process has taken the part over."""
        if self._held is not None and self._held.lost:
            raise CacheError(
                f"{what}: this process was silent for too long and another took its part over; its chunks "
                "are kept; run the same command again"
            )
        self.progress(done, total, what)

    def _missing(self, found: SharedPlan, own: int) -> list[str]:
        """Parts that nobody works on, with the line that runs each."""
        with found.open() as cache:
            left = {part: left_of(cache, found, part) for part in range(found.parts)}
        idle = [part for part in range(found.parts) if part != own and left[part]]
        with shared.planning(found.path):
            idle = [part for part in idle if not shared.is_held(found.path, part, found.parts)]
        return [
            f"part {part + 1} of {found.parts} has {left[part]:,} chunks left and nobody works on it; type "
            f"`{line(self.config, part, found.parts)}`"
            for part in idle
        ]


def left_of(cache: Cache, found: SharedPlan, part: int) -> int:
    """Chunks of the shared tables that this part has still to write."""
    names = [name for modality in found.modalities for name in found.shared(modality)]
    return sum(_left(cache, name, part, found.parts) for name in names if name in cache.unsealed())


def _left(cache: Cache, name: str, part: int, parts: int) -> int:
    done = np.asarray(cache.store(name).read(name, "done"))
    return int((done[part::parts] == 0).sum())


def line(config: ExtractConfig, part: int, parts: int) -> str:
    """The command that runs one part."""
    config = dataclasses.replace(config, part=f"{part + 1}/{parts}", processes=None, devices=None, on=None)
    words = ["spaner", "extract"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default:
            continue
        flag = "--" + field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return shlex.join(words)


def placed(config: ExtractConfig, parts: int) -> tuple[ExtractConfig, SharedPlan]:
    """The plan, made if need be, and the settings with the cache that it belongs to."""
    dataset = None
    if config.cache is None:
        dataset = listed(config)
        config = dataclasses.replace(config, cache=destination(config, dataset))
    with shared.planning(place(str(config.cache))):
        found = shared.prepared(config, parts, dataset)
    return dataclasses.replace(config, cache=found.path, overwrite=False), found


def summed(found: SharedPlan, before: dict[str, tuple[int, int]], seconds: dict[str, float]) -> Summary:
    """What a driver's workers did, from the sealed tables.

    Raises:
        Unsealed: a table is not sealed although all workers have ended.
    """
    done = []
    with found.open() as cache:
        for name in found.names:
            if not cache.has(name):
                raise Unsealed(cache.progress(name))
            table = cache.table(name)
            new, took = table.rows - before[name][1], seconds.get(name, 0.0)
            size = table.rows * len(table.views) * table.dim * np.dtype(table.manifest.dtype).itemsize
            done.append(
                TableSummary(
                    name,
                    table.rows,
                    table.rows - new,
                    size,
                    table.failures(),
                    new / took if new and took else None,
                    table.measured.get("purity", {}).get("max_relative"),
                    table.measured.get("agreement", {}).get("min_cosine"),
                )
            )
    shared.ended(found)
    return Summary(found.path, done, left_out=found.dataset.left_out, notes=found.notes)


def sizes(found: SharedPlan) -> dict[str, tuple[int, int]]:
    """Table -> rows, and those of them that are written so far."""
    rows: dict[str, tuple[int, int]] = {}
    with found.open() as cache:
        for name in found.names:
            store = cache.store(name)
            manifest = Manifest.from_json(store.attributes(name)["manifest"])
            done = np.flatnonzero(np.asarray(store.read(name, "done"))).tolist()
            spans = [manifest.rows_of(chunk) for chunk in done]
            rows[name] = manifest.rows, sum(span.stop - span.start for span in spans)
    return rows


def chunks(found: SharedPlan) -> int:
    """Of the longest shared table: a part behind them is empty."""
    with found.open() as cache:
        names = [name for modality in found.modalities for name in found.shared(modality)]
        return max(len(np.asarray(cache.store(name).read(name, "done"))) for name in names)


def unsealed(found: SharedPlan) -> list[str]:
    """Tables that are not sealed."""
    with found.open() as cache:
        return [name for name in found.names if not cache.has(name)]
