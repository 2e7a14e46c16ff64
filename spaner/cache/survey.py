"""What lies in a folder of caches: which tables are finished, and what to type for those that are not.

Of an address too what it lets us do.
"""

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from spaner.cache import cache as caches
from spaner.cache import hdf5_store
from spaner.cache.address import Address
from spaner.cache.opening import parts_of
from spaner.errors import CacheError, SpanerError, Unsealed


@dataclass(frozen=True)
class Found:
    """One cache of a folder.

    Attributes:
        tables: sealed tables -> rows.
        unsealed: tables that are not finished.
        verified: every byte was read and is as it was sealed; None where nobody looked.
        problems: one line each, with what to type.
    """

    path: Path
    dataset: str = ""
    tables: dict[str, int] = field(default_factory=dict)
    unsealed: list[str] = field(default_factory=list)
    verified: bool | None = None
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reach:
    """What an address lets us do.

    Attributes:
        readable, writable: objects there can be listed; one could be put and deleted.
        conditional: an object is put only if there is none, as claims need it; None where nobody could try.
        problems: one line for each that is not so.
    """

    readable: bool = False
    writable: bool = False
    conditional: bool | None = None
    problems: list[str] = field(default_factory=list)


def reach(folder: Address) -> Reach:
    """Try it: list, put a small object twice, delete it."""
    problems, conditional = [], None
    try:
        folder.is_dir()
    except CacheError as error:
        return Reach(problems=[str(error)])
    trial = folder / f".doctor.{secrets.token_hex(8)}"
    try:
        trial.create(b"written by spaner doctor")
        try:
            trial.create(b"written by spaner doctor, again")
            conditional = False
            problems.append(
                f"{folder}: the store puts an object over one that is there although asked not to, so that "
                "claims keep no two writers apart; see to it that each part runs once, or use a store that "
                "honours If-None-Match"
            )
        except FileExistsError:
            conditional = True
        trial.unlink()
    except CacheError as error:
        return Reach(readable=True, conditional=conditional, problems=[*problems, str(error)])
    return Reach(readable=True, writable=True, conditional=conditional, problems=problems)


def survey(folder: Path, *, verify: bool = False) -> list[Found]:
    """Every cache in the folder, by name. A damaged one is a finding, not an error.

    Args:
        verify: read every byte and check it, which takes as long as reading the files.
    """
    if not folder.is_dir():
        return []
    names = {path.with_name(path.name.removesuffix(".parts")) for path in folder.iterdir()}
    return [_look(path, verify=verify) for path in sorted(names) if _is_cache(path)]


def _is_cache(path: Path) -> bool:
    """Whether it looks like one; an HDF5 cache may still be all in its parts."""
    places = (path, parts_of(path))
    return (hdf5_store.is_hdf5(path) and path.is_file()) or any((p / "zarr.json").is_file() for p in places)


def _look(path: Path, *, verify: bool) -> Found:
    try:
        with caches.open(path) as cache:
            problems = [cache.progress(name) for name in cache.unsealed()]
            tables = {}
            for name in cache.tables():
                try:
                    tables[name] = cache.table(name).rows
                except CacheError as error:
                    problems.append(f"{error}; type `spaner cache repair {path}`")
            damaged = [each for each in cache.verify() if each.part != "unfinished"] if verify else []
            if damaged:
                what = f"{len(damaged)} damaged parts, first {damaged[0].table}: {damaged[0].what}"
                problems.append(f"{path} has {what}; type `spaner cache repair {path}`")
            sound = not damaged if verify else None
            return Found(path, cache.dataset, tables, cache.unsealed(), sound, problems)
    except Unsealed as error:
        return Found(path, unsealed=["all"], problems=[str(error)])
    except SpanerError as error:
        return Found(path, verified=False if verify else None, problems=[str(error)])
