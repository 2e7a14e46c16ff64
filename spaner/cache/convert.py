"""A finished cache in the other format, without loss, or as plain files for other tools."""

import csv
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from spaner.cache import files, hdf5_store, install, root
from spaner.cache.cache import Cache
from spaner.cache.cache import open as open_cache
from spaner.cache.layout import Store
from spaner.cache.publish import root_lock, root_of
from spaner.cache.table import Table
from spaner.cache.zarr_store import ZarrStore
from spaner.errors import CacheError, Corrupt


def convert(source: str | Path, target: str | Path) -> None:
    """Copy the sealed tables of a cache into a new one; a target ending in .h5 becomes HDF5, else Zarr.

    Raises:
        CacheError: the target exists, or the disk is full.
        Corrupt: the source is damaged; a copy would hide where.
    """
    target = Path(target)
    if target.exists():
        raise CacheError(f"{target} exists already; convert into a new name")
    with open_cache(source) as cache, root_lock(target):
        if problems := [each for each in cache.verify() if each.part != "unfinished"]:
            raise Corrupt(f"{cache.path} is damaged and was not converted: {problems[0].what}")
        tables = {name: cache.store(name) for name in cache.tables()}
        files.clear(target.parent, chosen=target.name.__eq__)
        origin = cache.store(cache.tables()[0]).attributes()
        if hdf5_store.is_hdf5(target):
            hdf5_store.write(target, root_of(origin, tables), tables.items())
        else:
            _write_zarr(target, origin, tables)


def _write_zarr(target: Path, origin: root.Attributes, tables: dict[str, Store]) -> None:
    growing = ZarrStore(files.temporary(target, "new"))
    with files.writing(target):
        try:
            root.ensure(growing, origin["dataset"], origin["class_names"], origin["schema"])
            for name, store in tables.items():
                install.copy(store, growing, name, attributes=store.attributes(name))
            growing.path.rename(target)
            files.settle([target])
        except BaseException:
            files.remove(growing.path)
            raise


def export(cache: Cache, folder: str | Path) -> list[Path]:
    """Write every table as features.npy (N, V, D) and rows.csv, or rows.parquet where pyarrow is installed.

    Returns:
        The files, in `<folder>/<modality>/<split>/`.
    """
    made = []
    for name in cache.tables():
        table, place = cache.table(name), Path(folder) / name
        with files.writing(place):
            place.mkdir(parents=True, exist_ok=True)
            made += [_features(table, place / "features.npy"), _rows(table, cache.class_names, place)]
    return made


def _features(table: Table, path: Path) -> Path:
    shape = (table.rows, len(table.views), table.dim)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=table.manifest.dtype, shape=shape)
    for rows, block in table.stream():
        out[rows] = block
    out.flush()
    return path


def _rows(table: Table, class_names: list[str], place: Path) -> Path:
    columns = {
        "id": table.ids.tolist(),
        "label": table.labels.tolist(),
        "class_name": [class_names[label] for label in table.labels],
        "ok": table.ok.tolist(),
    }
    if importlib.util.find_spec("pyarrow"):
        parquet: Any = importlib.import_module("pyarrow.parquet")
        table_of: Any = importlib.import_module("pyarrow").table
        parquet.write_table(table_of(columns), place / "rows.parquet")
        return place / "rows.parquet"
    with (place / "rows.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return place / "rows.csv"
