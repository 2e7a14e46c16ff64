"""A CSV manifest: one line per image or sound, columns ``path``, ``label``, ``split`` and, if wanted, ``id``.

Paths are relative to the CSV file (or to ``--data-root``); labels are class names, numbered in sorted order
("_" is read as a space). A file that does not exist becomes a failed row. Without ``id`` the path is the id.
``Train``, ``valid`` and ``validation`` mean train and val. Only what is listed is looked at.
"""

import re
from pathlib import Path, PurePath

from spaner.errors import DatasetError
from spaner.extract.datasets.audio import Recording
from spaner.extract.datasets.dataset import Dataset, Split, file_split, shown_names
from spaner.extract.datasets.folder import SPLITS
from spaner.extract.datasets.images import decode
from spaner.extract.datasets.lists import first_double, places, short, table
from spaner.extract.datasets.tree import are_sounds

COLUMNS = ("path", "label", "split")
SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def read(argument: str, root: Path | None = None, *, allow_outside: bool = False, **_: object) -> Dataset:
    """Read ``csv:PATH``.

    Raises:
        DatasetError: file or column missing, no rows, duplicate ids, absolute ids, a class that train lacks,
            a path that leaves the data root.
    """
    file = Path(argument)
    if not argument or not file.is_file():
        raise DatasetError(
            f"--dataset csv:{argument}: no such file; expected columns {', '.join(COLUMNS)}; type csv:PATH"
        )
    rows = _rows(file)
    names = sorted({row["label"] for row in rows})
    _check_classes(file, rows)
    shown, label_of = shown_names(file, names), {name: i for i, name in enumerate(names)}
    sounds = are_sounds(file, (row["path"] for row in rows))
    place = places(file, root or file.parent, [row["path"] for row in rows], allow_outside=allow_outside)
    path_of = {row["id"]: row["path"] for row in rows}

    def split_of(chosen: list[dict[str, str]]) -> Split:
        labels = [label_of[row["label"]] for row in chosen]
        opened = Recording if sounds else decode
        return file_split([row["id"] for row in chosen], labels, lambda key: place(path_of[key]), opened)

    splits = {
        name: split_of([row for row in rows if row["split"] == name])
        for name in dict.fromkeys(row["split"] for row in rows)
    }
    modality, encoders = ("audio", {"audio": "esresnext"}) if sounds else ("image", {})
    ledger = {"order": "as listed in the CSV"}
    return Dataset(file.stem, shown, {modality: splits}, encoders=encoders, ledger=ledger)


def _rows(file: Path) -> list[dict[str, str]]:
    """The lines as dictionaries with an ``id``."""
    rows = [_row(file, line, row) for line, row in table(file, COLUMNS)]
    if not rows:
        raise DatasetError(f"{file}: found no rows below the header; expected one line per image; add them")
    double = first_double(row["id"] for row in rows)
    if double is not None:
        raise DatasetError(
            f"{file}: id {short(double)!r} occurs twice; expected unique ids; add or correct the id column"
        )
    return rows


def _row(file: Path, line: int, row: dict[str, str]) -> dict[str, str]:
    empty = [name for name in COLUMNS if not row[name]]
    if empty:
        raise DatasetError(
            f"{file}: line {line} has no {empty[0]}; expected a value in every column; fill it in"
        )
    split = SPLITS.get(row["split"].casefold(), row["split"])
    if not SPLIT_NAME.fullmatch(split):
        raise DatasetError(
            f"{file}: line {line} has split {short(split)!r}; expected a name such as train, of letters, "
            "digits and _ . + -; correct it"
        )
    key = row.get("id") or PurePath(row["path"]).as_posix()
    if PurePath(key).is_absolute():
        raise DatasetError(
            f"{file}: path {short(key)!r} is absolute; expected paths relative to the CSV, or a column id "
            "with a stable name; add the column id"
        )
    return {"path": row["path"], "label": row["label"], "split": split, "id": key}


def _check_classes(file: Path, rows: list[dict[str, str]]) -> None:
    train = {row["label"] for row in rows if row["split"] == "train"}
    strange = sorted({row["label"] for row in rows} - train) if train else []
    if strange:
        split = next(row["split"] for row in rows if row["label"] == strange[0])
        raise DatasetError(
            f"{file}: class {short(strange[0])!r} is in {split} but not in train ({len(strange)} such); "
            "expected the classes of train; add training rows or remove it"
        )
