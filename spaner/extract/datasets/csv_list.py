"""A CSV manifest: one line per image or sound, columns ``path``, ``label``, ``split`` and, if wanted, ``id``.

Paths are relative to the CSV file (or to ``--data-root``); labels are class names, numbered in sorted order
("_" is read as a space). A file that does not exist becomes a failed row. Without ``id`` the path is the id.
"""

import csv
from pathlib import Path, PurePath

import numpy as np

from spaner.errors import DatasetError
from spaner.extract.datasets.audio import Recording, are_sounds
from spaner.extract.datasets.dataset import Dataset, Split
from spaner.extract.datasets.images import decode

COLUMNS = ("path", "label", "split")


def read(argument: str, root: Path | None = None, **_: object) -> Dataset:
    """Read ``csv:PATH``.

    Raises:
        DatasetError: file or column missing, no rows, duplicate ids, absolute ids, a class that train lacks.
    """
    file = Path(argument)
    if not argument or not file.is_file():
        raise DatasetError(
            f"--dataset csv:{argument}: no such file; expected columns {', '.join(COLUMNS)}; type csv:PATH"
        )
    rows = _rows(file)
    names = sorted({row["label"] for row in rows})
    _check_classes(file, rows)
    base, label_of = root or file.parent, {name: i for i, name in enumerate(names)}
    sounds, splits = are_sounds(row["path"] for row in rows), {}
    for split in dict.fromkeys(row["split"] for row in rows):
        chosen = [row for row in rows if row["split"] == split]
        splits[split] = _split(base, chosen, label_of, sounds=sounds)
    shown = [name.replace("_", " ") for name in names]
    modality, encoders = ("audio", {"audio": "esresnext"}) if sounds else ("image", {})
    ledger = {"order": "as listed in the CSV"}
    return Dataset(file.stem, shown, {modality: splits}, encoders=encoders, ledger=ledger)


def _rows(file: Path) -> list[dict[str, str]]:
    """The lines as dictionaries with an ``id``, all values stripped."""
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        found = [name.strip() for name in reader.fieldnames or []]
        missing = [name for name in COLUMNS if name not in found]
        if missing:
            raise DatasetError(
                f"{file}: column {missing[0]!r} is missing; found {', '.join(found) or 'none'}; expected "
                f"{', '.join(COLUMNS)} and optionally id; add it to the first line"
            )
        reader.fieldnames = found
        rows = [_row(file, line, row) for line, row in enumerate(reader, start=2)]
    if not rows:
        raise DatasetError(f"{file}: found no rows below the header; expected one line per image; add them")
    _check_ids(file, [row["id"] for row in rows])
    return rows


def _row(file: Path, line: int, row: dict[str, str | None]) -> dict[str, str]:
    values = {name: (row.get(name) or "").strip() for name in (*COLUMNS, "id")}
    empty = [name for name in COLUMNS if not values[name]]
    if empty:
        raise DatasetError(
            f"{file}: line {line} has no {empty[0]}; expected a value in every column; fill it in"
        )
    values["id"] = values["id"] or PurePath(values["path"]).as_posix()
    return values


def _check_ids(file: Path, ids: list[str]) -> None:
    seen: set[str] = set()
    for key in ids:
        if key in seen:
            raise DatasetError(
                f"{file}: id {key!r} occurs twice; expected unique ids; add or correct the id column"
            )
        if PurePath(key).is_absolute():
            raise DatasetError(
                f"{file}: path {key!r} is absolute; expected paths relative to the CSV, or a column id with "
                "a stable name; add the column id"
            )
        seen.add(key)


def _check_classes(file: Path, rows: list[dict[str, str]]) -> None:
    train = {row["label"] for row in rows if row["split"] == "train"}
    strange = sorted({row["label"] for row in rows} - train) if train else []
    if strange:
        split = next(row["split"] for row in rows if row["label"] == strange[0])
        raise DatasetError(
            f"{file}: class {strange[0]!r} is in {split} but not in train ({len(strange)} such); expected "
            "the classes of train; add training rows or remove it"
        )


def _split(base: Path, rows: list[dict[str, str]], label_of: dict[str, int], *, sounds: bool) -> Split:
    ids = [row["id"] for row in rows]
    path_of = {row["id"]: base / row["path"] for row in rows}
    labels = np.array([label_of[row["label"]] for row in rows], dtype=np.int32)
    if sounds:
        return Split(ids, labels, lambda key: Recording(path_of[key]))
    return Split(ids, labels, lambda key: decode(path_of[key]))
