"""From a path to its stores: which format it is, and what to say when it is not a cache."""

from pathlib import Path

from spaner.cache import root
from spaner.cache.address import Address, place
from spaner.cache.hdf5_store import HEADER, Hdf5Store, is_hdf5
from spaner.cache.layout import Store
from spaner.cache.manifest import SCHEMA, SCHEMAS
from spaner.cache.zarr_store import ZarrStore
from spaner.errors import CacheError, Corrupt


def parts_of(path: Path) -> Path:
    """Where the tables of an HDF5 cache lie until they are published.

    Raises:
        CacheError: it is a file at an address: HDF5 is read in place, and replaced as a whole.
    """
    if isinstance(path, Address) and is_hdf5(path):
        raise CacheError(
            f"{path} is an .h5 file at an address ({path.scheme}:); expected a folder, or a file of this "
            f"machine: for a file, fetch it first; to send one, type `spaner cache copy {path.name} "
            f"{path.with_suffix('')}`"
        )
    return path.with_name(path.name + ".parts")


def stores_at(path: Path) -> list[Store]:
    """The stores that make up the cache at `path`, the first one with a table being the one that counts.

    Raises:
        CacheError: nothing is there, or it is not a cache of this schema.
        Corrupt: it is one, but damaged.
    """
    parts = parts_of(path)
    if isinstance(path, Address):
        return [_zarr(path)] if path.is_dir() else _nothing(path)
    stores: list[Store] = [_zarr(parts)] if (parts / "zarr.json").is_file() else []
    if path.is_dir():
        stores.append(_zarr(path))
    elif path.is_file():
        stores.append(_hdf5(path))
    return stores or _nothing(path)


def _nothing(path: Path) -> list[Store]:
    raise CacheError(f"no cache at {path}; make one with `spaner extract --cache {path}`")


def whose(path: Path) -> tuple[str, list[str]]:
    """Dataset and class names of a cache whose own metadata may be damaged, or whose tables unfinished.

    Raises:
        CacheError: nothing there, or no cache.
        Corrupt: nothing that is left says so.
    """
    path = place(path)
    store = ZarrStore(path if path.is_dir() else parts_of(path))
    found = root.recalled(store) if store.path.is_dir() else None
    if found is None:
        found = stores_at(path)[-1].attributes()
    return found["dataset"], found["class_names"]


def _zarr(path: Path) -> ZarrStore:
    store = ZarrStore(path, snapshot=True)
    if not (path / "zarr.json").is_file() and not store.tables():
        raise CacheError(f"{path} is a folder without zarr.json, not a spaner cache; check --cache")
    try:
        _check(store, path)
    except Corrupt as error:
        raise Corrupt(
            f"{error}; type `spaner cache repair {path}`, or run the same `spaner extract` again: both make "
            "it anew from the tables"
        ) from None
    return store


def _hdf5(path: Path) -> Hdf5Store:
    with path.open("rb") as stream:
        first = stream.read(HEADER).split(b"\n")[0].decode("utf-8", "replace")
    _check_schema(first, path)
    store = Hdf5Store(path)
    _check(store, path)
    return store


def _check(store: Store, path: Path) -> None:
    attributes = store.attributes()
    _check_schema(attributes.get("schema"), path)
    if not root.is_sound(attributes):
        hdf5 = "; copy it again, or delete it and run the same `spaner extract` again, which starts anew"
        raise Corrupt(
            f"the metadata of {path} differ from their digest: a bit has flipped or they were edited"
            + hdf5 * path.is_file()
        )


def _check_schema(found: object, path: Path) -> None:
    if found in SCHEMAS:
        return
    if isinstance(found, str) and found.startswith("spaner-cache/"):
        raise CacheError(
            f"{path} has schema {found[:40]}, this spaner reads {SCHEMA}; read it with the spaner that "
            "made it (a newer one: `pip install -U spaner`)"
        )
    raise CacheError(f"{path} is not a spaner cache: no schema {SCHEMA} in it; check --cache")
