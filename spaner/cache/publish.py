"""What changes a cache as a whole: its locks, and publishing finished tables into an HDF5 file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from spaner.cache import files, hdf5_store, install, mending, root
from spaner.cache.claim import Claim
from spaner.cache.hdf5_store import Hdf5Store
from spaner.cache.layout import Store
from spaner.cache.lock import Lock, hold, lock_path
from spaner.cache.root import Attributes
from spaner.cache.zarr_store import ZarrStore
from spaner.errors import Busy


def root_lock(path: Path) -> Lock | Claim:
    """Waits for its turn to change the cache as a whole."""
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return hold(lock_path(path, "root"), str(path), wait=True)


@contextmanager
def alone(path: Path, store: ZarrStore) -> Iterator[None]:
    """Nobody else changes the cache as a whole meanwhile, and what was known of it is asked for anew."""
    with root_lock(path):
        store.refresh()
        yield


def table_lock(path: Path, table: str, *, worker: tuple[int, int] = (0, 1)) -> list[Lock | Claim]:
    """Locks that make this process the only writer of a table, or of its share of one.

    Raises:
        Busy: another live process writes it.
    """
    what = f"{table} of {path}"
    if worker[1] == 1:
        return [hold(lock_path(path, table), what)]
    whole = hold(lock_path(path, table), what, shared=True)
    try:
        name = f"{table}.{worker[0]}-of-{worker[1]}"
        return [hold(lock_path(path, name), f"share {worker[0]} of {what}"), whole]
    except Busy:
        whole.release()
        raise


def publish(
    path: Path, parts: ZarrStore, origin: Attributes, is_mine: Callable[[str], bool], *, again: bool = False
) -> None:
    """Move the sealed tables of the parts into the HDF5 file. The caller holds the root lock.

    Tables that another live process still holds stay; so do unfinished ones, and those that are damaged.

    Args:
        origin: attributes of the cache, whatever tables they list.
        again: write the file even if no table joins it.
    """
    files.clear(path.parent, chosen={path.name, parts.path.name}.__contains__)
    sealed = [
        table
        for table in parts.tables()
        if not mending.is_lost(parts, table)
        and "seal" in parts.attributes(table)
        and (is_mine(table) or _is_free(path, table))
    ]
    if sealed or (again and path.exists()):
        before = Hdf5Store(path) if path.exists() else None
        kept = [table for table in before.tables() if not mending.is_lost(before, table)] if before else []
        tables: dict[str, Store] = dict.fromkeys(kept, before) if before else {}
        tables |= dict.fromkeys(sealed, parts)
        hdf5_store.write(path, root_of(origin, tables), tables.items())
        if before:
            before.close()
    for table in sealed:
        install.discard(parts, table)
    if parts.path.exists() and not parts.tables():
        with files.writing(parts.path):
            gone = files.temporary(parts.path, "old")
            parts.path.rename(gone)  # at once: half a folder would be no cache
            files.remove(gone)


def root_of(origin: Attributes, tables: dict[str, Store]) -> Attributes:
    """Attributes of a cache of these tables, of the same dataset as `origin`."""
    listed = dict(sorted(root.identities(tables).items()))
    return root.attributes(origin["schema"], origin["dataset"], origin["class_names"], listed)


def _is_free(path: Path, table: str) -> bool:
    try:
        for lock in table_lock(path, table):
            lock.release()
    except Busy:
        return False
    return True
