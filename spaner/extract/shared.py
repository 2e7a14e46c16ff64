"""The stored plan: what many processes need to know to fill one cache together, worked out once.

Whoever comes first lists the data set, begins every table in the cache (with its complete listing) and
writes the plan beside it, `.<cache>.plan.json`. Everybody else reads that: ids and labels stay in the
tables and are read row by row, so that joining costs the same whatever the number of rows. The plan goes when
all is sealed.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

import spaner
from spaner.cache import cache as caches
from spaner.cache import files
from spaner.cache.address import place
from spaner.cache.cache import Cache
from spaner.cache.claim import Claim
from spaner.cache.layout import unpack
from spaner.cache.lock import Lock, hold, lock_path
from spaner.cache.publish import root_lock
from spaner.errors import Busy, CacheError, Mismatch
from spaner.extract import texts
from spaner.extract.config import ExtractConfig
from spaner.extract.datasets.audio import audio_split
from spaner.extract.datasets.dataset import Dataset, SampleFolder, Split
from spaner.extract.datasets.images import image_split
from spaner.extract.extraction import load, notes_of
from spaner.extract.plan import TablePlan, destination, listed, plan

FREE = frozenset(
    {"data_root", "cache", "device", "workers", "overwrite", "dry_run", "processes", "devices", "part", "on"}
)
"""Settings that may differ from process to process: no row depends on them."""


class StoredIds(Sequence[str]):
    """The ids of a table in the cache, each read when it is asked for."""

    def __init__(self, cache: Cache, table: str, rows: int) -> None:
        self._store, self._table, self._rows = cache.store(table), table, rows

    def __len__(self) -> int:
        return self._rows

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            start, stop, step = row.indices(self._rows)
            return [self[i] for i in range(start, stop, step)]
        if not 0 <= row < self._rows:
            raise IndexError(row)
        return str(unpack(self._store.read(self._table, "ids", row, row + 1))[0])


@dataclass(frozen=True)
class SharedPlan:
    """A plan as it is stored.

    Attributes:
        path: the cache.
        parts: into how many every table is shared out.
        settings: of the extraction, those that a row may depend on.
        dataset: name, classes and encoders; its splits are in the tables.
        tables: modality, split, views, and where the files of its rows are, if ids are paths.
        notes, left_out: what the first process had to say.
    """

    path: Path
    parts: int
    settings: dict[str, Any]
    dataset: Dataset
    tables: list[dict[str, Any]]
    notes: list[str]

    def shared(self, modality: str) -> list[str]:
        """Names of the tables that are filled by all: those of text but for the first copy columns of it."""
        names = [name_of(table) for table in self.tables if table["modality"] == modality]
        return names[:1] if modality == "text" else names

    def rest(self, modality: str) -> list[str]:
        """Names of the tables that one process fills, once the shared ones are sealed."""
        names = [name_of(table) for table in self.tables if table["modality"] == modality]
        return names[1:] if modality == "text" else []

    @property
    def modalities(self) -> list[str]:
        """In the order of their tables."""
        return list(dict.fromkeys(table["modality"] for table in self.tables))

    def table(self, cache: Cache, name: str, config: ExtractConfig) -> TablePlan:
        """A table as the extraction fills it, its ids read from the cache."""
        told = next(table for table in self.tables if name_of(table) == name)
        views = tuple(told["views"])
        if told["modality"] == "text":
            source = texts.split(cache.class_names, views)
        else:
            rows = cache.store(name).attributes(name)["manifest"]["rows"]
            source = _source(StoredIds(cache, name, rows), told, config)
        return TablePlan(told["modality"], told["split"], source, views)

    @property
    def names(self) -> list[str]:
        """Of all tables."""
        return [name_of(table) for table in self.tables]

    def open(self) -> Cache:
        """The cache, to be filled."""
        return caches.create(self.path, self.dataset.name, self.dataset.class_names)


def name_of(table: dict[str, Any]) -> str:
    """modality/split of a stored table."""
    return f"{table['modality']}/{table['split']}"


def _source(ids: StoredIds, told: dict[str, Any], config: ExtractConfig) -> Split:
    where = told["files"]
    if where is None or not Path(where["root"]).is_dir():  # made in memory, or elsewhere on this host
        modality = told["modality"].partition("-block")[0]  # tokens are those of images
        whole = listed(config).splits[modality][told["split"]]
        return dataclasses.replace(whole, ids=ids)
    make = image_split if where["kind"] == "image" else audio_split
    return make(Path(where["root"]), ids, np.empty(0, np.int32))


def plan_path(cache: Path) -> Path:
    """The stored plan, a hidden neighbour of the cache."""
    return cache.with_name(f".{cache.name}.plan.json")


def planning(path: Path) -> Lock | Claim:
    """Waits for its turn to make or read the plan, to take a part, or to see who holds one."""
    root_lock(place(path)).release()  # makes the folder
    return hold(lock_path(path, "plan"), f"the plan of {path}", wait=True)


@contextmanager
def joined(config: ExtractConfig, share: tuple[int, int]) -> Iterator[tuple[SharedPlan, Lock | Claim]]:
    """Hold share (r, W) of the work on `config.cache`; the plan is made by whoever comes first.

    Raises:
        Busy: another process holds this share, or shares out by another number.
        Mismatch: the plan was made with other settings, or by another version.
    """
    assert config.cache is not None, "parts meet in a cache"
    path, (number, count) = place(config.cache), share
    with planning(path):
        found = prepared(config, count)
        held = hold(lock_path(path, f"part.{number}-of-{count}"), f"part {number + 1} of {count} of {path}")
    with held:
        yield found, held


def prepared(config: ExtractConfig, parts: int, dataset: Dataset | None = None) -> SharedPlan:
    """The plan that is there, or a new one. The caller holds the plan's lock.

    Raises:
        Busy, Mismatch: as for `joined`.
    """
    assert config.cache is not None, "parts meet in a cache"
    file = plan_path(place(config.cache))
    if config.overwrite or not file.is_file():
        return _planned(config, parts, dataset)
    told = _read(file)
    _check_same(file, told, config)
    if told["parts"] != parts:
        _check_idle(config.cache, told["parts"], parts)
        told["parts"] = parts
        _write(file, told)
    return _from_json(place(config.cache), told)


def _planned(config: ExtractConfig, parts: int, dataset: Dataset | None) -> SharedPlan:
    dataset = dataset or listed(config)
    tables, path = plan(config, dataset), destination(config, dataset)
    notes: list[str] = []
    with caches.create(path, dataset.name, dataset.class_names) as cache:
        for modality in dict.fromkeys(table.modality for table in tables):
            tower = load(config, dataset, modality)
            mine = [table for table in tables if table.modality == modality]
            notes += notes_of(dataset, mine, {modality: tower})
            for table in mine:
                manifest = table.manifest(dataset, tower.spec, config)
                ids, labels = table.source.ids, table.source.labels
                cache.begin(manifest, ids, labels, table.draws, overwrite=config.overwrite).close()
    told = {
        "spaner": spaner.__version__,
        "parts": parts,
        "settings": identity(config),
        "dataset": {"name": dataset.name, "encoders": dataset.encoders, "class_names": dataset.class_names},
        "left_out": dataset.left_out,
        "notes": notes,
        "tables": [_to_json(table) for table in tables],
    }
    _write(plan_path(path), told)
    return _from_json(path, told)


def _to_json(table: TablePlan) -> dict[str, Any]:
    where: SampleFolder | None = table.source.files
    found = {"root": str(where.root.absolute()), "kind": where.kind} if where else None
    return {"modality": table.modality, "split": table.split, "views": list(table.views), "files": found}


def _from_json(path: Path, told: dict[str, Any]) -> SharedPlan:
    names, encoders = told["dataset"]["class_names"], told["dataset"]["encoders"]
    left_out = {kind: (count, first) for kind, (count, first) in told["left_out"].items()}
    dataset = Dataset(told["dataset"]["name"], names, {}, encoders=encoders, left_out=left_out)
    return SharedPlan(path, told["parts"], told["settings"], dataset, told["tables"], told["notes"])


def _read(file: Path) -> dict[str, Any]:
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(told["parts"], int):
            raise TypeError("no number of parts")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CacheError(
            f"{file}: the plan of the parts is damaged ({error}); expected JSON; remove it, and type the "
            "same command again"
        ) from None
    return told


def _write(file: Path, told: dict[str, Any]) -> None:
    files.write(file, json.dumps(told, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def identity(config: ExtractConfig) -> dict[str, Any]:
    """The settings that a row may depend on, as plain values."""
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in FREE}
    return json.loads(json.dumps(fields, default=str))


def _check_same(file: Path, told: dict[str, Any], config: ExtractConfig) -> None:
    if told["spaner"] != spaner.__version__:
        raise Mismatch(
            f"{config.cache} was planned by spaner {told['spaner']}, this is {spaner.__version__}; use one "
            f"version in all parts, or remove {file} to plan anew"
        )
    mine = identity(config)
    differ = [name for name in mine if told["settings"].get(name) != mine[name]]
    if differ:
        name = differ[0]
        flag = "--" + name.replace("_", "-")
        raise Mismatch(
            f"{config.cache} is being filled with {flag} {told['settings'].get(name)}, asked for "
            f"{mine[name]}; give every part the same options, or remove {file} to plan anew"
        )


def _check_idle(path: Path, parts: int, asked: int) -> None:
    """Raise Busy if somebody works on one of so many parts."""
    for part in range(parts):
        if is_held(path, part, parts):
            raise Busy(
                f"{path} is being filled in {parts} parts, asked for {asked}; type `--part I/{parts}`, or "
                "wait until they have ended"
            )


def is_held(path: Path, part: int, parts: int) -> bool:
    """Whether a live process holds this part."""
    try:
        hold(lock_path(path, f"part.{part}-of-{parts}"), "").release()
    except Busy:
        return True
    return False


def ended(found: SharedPlan) -> None:
    """Remove the plan of a cache that is filled."""
    plan_path(found.path).unlink(missing_ok=True)
