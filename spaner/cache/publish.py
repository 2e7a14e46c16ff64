"""Steps that change a cache as a whole, each under a short lock: making its root, publishing tables."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from spaner.cache import files, hdf5_store, install
from spaner.cache.hdf5_store import Hdf5Store
from spaner.cache.layout import Store
from spaner.cache.lock import Lock, lock_path
from spaner.cache.zarr_store import ZarrStore
from spaner.errors import Busy, CacheError


def root_lock(path: Path) -> Lock:
    """Waits for its turn to change the cache as a whole."""
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return Lock(lock_path(path, "root"), str(path), wait=True)


def table_lock(path: Path, table: str, *, worker: tuple[int, int] = (0, 1)) -> list[Lock]:
    """Locks that make this process the only writer of a table, or of its share of one.

    Raises:
        Busy: another live process writes it.
    """
    what = f"{table} of {path}"
    if worker[1] == 1:
        return [Lock(lock_path(path, table), what)]
    whole = Lock(lock_path(path, table), what, shared=True)
    try:
        name = f"{table}.{worker[0]}-of-{worker[1]}"
        return [Lock(lock_path(path, name), f"share {worker[0]} of {what}"), whole]
    except Busy:
        whole.release()
        raise


def ensure_root(store: ZarrStore, attributes: dict[str, Any]) -> None:
    """Make the folder a cache, if nothing is in it. The caller holds the root lock.

    Raises:
        CacheError: the folder holds something else.
    """
    if (store.path / "zarr.json").is_file():
        return
    if store.path.is_dir() and (strange := [file for file in store.path.iterdir() if file.name[0] != "."]):
        raise CacheError(
            f"{store.path} holds {strange[0].name} but is no cache; give an empty or new folder to --cache"
        )
    store.set_attributes("", attributes)


def publish(path: Path, parts: ZarrStore, attributes: dict[str, Any], is_mine: Callable[[str], bool]) -> None:
    """Move the sealed tables of the parts into the HDF5 file. The caller holds the root lock.

    Tables that another live process still holds stay; so do unfinished ones.
    """
    sealed = [
        table
        for table in parts.tables()
        if "seal" in parts.attributes(table) and (is_mine(table) or _is_free(path, table))
    ]
    if sealed:
        before = Hdf5Store(path) if path.exists() else None
        tables: dict[str, Store] = dict.fromkeys(before.tables(), before) if before else {}
        hdf5_store.write(path, attributes, (tables | dict.fromkeys(sealed, parts)).items())
        files.settle()
        if before:
            before.close()
    for table in sealed:
        install.discard(parts, table)
    if not parts.tables():
        with files.writing(parts.path):
            gone = files.partial(parts.path)
            files.remove(gone)
            if parts.path.exists():
                parts.path.rename(gone)  # at once: half a folder would be no cache
                files.remove(gone)


def _is_free(path: Path, table: str) -> bool:
    try:
        for lock in table_lock(path, table):
            lock.release()
    except Busy:
        return False
    return True
