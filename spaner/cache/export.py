"""A finished cache as plain files for other tools: NumPy arrays, and the listing as CSV or Parquet."""

import csv
import importlib
import importlib.util
from pathlib import Path
from typing import Any

from spaner.cache import files
from spaner.cache.cache import Cache
from spaner.cache.table import Table


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
    out = files.open_array(path, table.manifest.dtype, shape)
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
