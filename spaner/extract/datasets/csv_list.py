"""A CSV manifest: one line per image or sound, columns `path`, `label`, `split` and, if wanted, `id`.

With `--modality-column NAME` that column says of which modality a line is: lines of one id are one sample,
and a sample may lack any of them; without a column `label` they meet by `id` alone. With `--caption-column
NAME` that column holds sentences about the image (`captions`), with `--negated-column NAME` another their
negated forms. Paths are relative to the CSV file (or to `--data-root`); labels are class names, numbered in
sorted order ("_" is read as a space). A file that does not exist becomes a failed row. Without `id` the path
is the id. `Train`, `valid` and `validation` mean train and val. Only what is listed is looked at.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from spaner.errors import DatasetError
from spaner.extract.datasets import captions
from spaner.extract.datasets.audio import Recording
from spaner.extract.datasets.dataset import Dataset, Split, file_split, shown_names
from spaner.extract.datasets.folder import SPLITS
from spaner.extract.datasets.images import decode
from spaner.extract.datasets.lists import first_double, places, short, table
from spaner.extract.datasets.tree import are_sounds

COLUMNS = ("path", "label", "split")
CLASSLESS = "sample"
"""The one class of samples that have none."""
SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def read(
    argument: str,
    root: Path | None = None,
    *,
    allow_outside: bool = False,
    modality_column: str | None = None,
    caption_column: tuple[str, ...] | None = None,
    negated_column: tuple[str, ...] | None = None,
    **_: object,
) -> Dataset:
    """Read `csv:PATH`.

    Raises:
        DatasetError: file or column missing, no rows, duplicate ids, absolute ids, a class that train lacks,
            a path that leaves the data root, an id with two classes or in two splits.
    """
    file = Path(argument)
    if not argument or not file.is_file():
        raise DatasetError(
            f"--dataset csv:{argument}: no such file; expected columns {', '.join(COLUMNS)}; type csv:PATH"
        )
    if caption_column:
        said = caption_column, negated_column or ()
        return _captioned(file, root, *said, modality_column, allow_outside=allow_outside)
    if negated_column:
        raise DatasetError(
            f"--negated-column {','.join(negated_column)}: found no --caption-column; expected the captions "
            "that it negates; name their column too"
        )
    rows = _rows(file, modality_column)
    return _dataset(file, root, rows, modality_column, allow_outside=allow_outside)


def _dataset(
    file: Path, root: Path | None, rows: list[dict[str, str]], column: str | None, *, allow_outside: bool
) -> Dataset:
    """The data set of checked lines."""
    names = sorted({row["label"] for row in rows})
    _check_classes(file, rows)
    shown, label_of = shown_names(file, names), {name: i for i, name in enumerate(names)}
    place = places(file, root or file.parent, [row["path"] for row in rows], allow_outside=allow_outside)
    splits: dict[str, dict[str, Split]] = {}
    encoders: dict[str, str] = {}
    for modality, own in _of_modalities(rows).items():
        sounds = are_sounds(file, (row["path"] for row in own))
        name = modality or ("audio" if sounds else "image")
        splits[name] = _splits(own, label_of, place, Recording if sounds else decode)
        encoders |= {name: "esresnext"} if sounds else {}
    ledger = {"order": "as listed in the CSV"}
    ledger |= {"modality column": column} if column else {}
    return Dataset(file.stem, shown, splits, encoders=encoders, ledger=ledger)


def _captioned(
    file: Path,
    root: Path | None,
    columns: tuple[str, ...],
    negated: tuple[str, ...],
    modality: str | None,
    *,
    allow_outside: bool,
) -> Dataset:
    """Images, the captions of each, and their negated forms where a column has them.

    Raises:
        DatasetError: a modality column too, what `captions` finds wrong, or lines of sounds.
    """
    if modality:
        raise DatasetError(
            f"--caption-column {columns[0]} and --modality-column {modality}: captions are of images; "
            "expected one of the two; leave --modality-column out"
        )
    captions.check_columns(columns, negated)
    classless = {"label": captions.CLASSLESS}
    read = [
        (_row(file, line, classless | row, None), captions.of_line(file, line, row, columns, negated))
        for line, row in table(file, ("path", "split", *columns, *negated))
    ]
    if not read:
        raise DatasetError(f"{file}: found no rows below the header; expected a line per caption; add them")
    rows, said = captions.gathered(file, read)
    found = _dataset(file, root, rows, None, allow_outside=allow_outside)
    if "image" not in found.splits:
        raise DatasetError(
            f"{file}: lists sounds, first {short(rows[0]['path'])!r}; expected images beside "
            "--caption-column; leave it out"
        )
    label_of = {name: i for i, name in enumerate(sorted({row["label"] for row in rows}))}
    forms = dict(zip(captions.MODALITIES, (columns, negated) if negated else (columns,), strict=False))
    sentences = {form: captions.splits(rows, said, label_of, form) for form in forms}
    return replace(
        found,
        splits=found.splits | sentences,
        ledger=found.ledger | {f"{form} column": ",".join(names) for form, names in forms.items()},
    )


def _of_modalities(rows: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """The lines of each modality; "" where no column says."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        found.setdefault(row["modality"], []).append(row)
    return found


def _splits(
    rows: list[dict[str, str]],
    label_of: dict[str, int],
    place: Callable[[str], Path],
    opened: Callable[[Path], Any],
) -> dict[str, Split]:
    path_of = {row["id"]: row["path"] for row in rows}

    def split_of(chosen: list[dict[str, str]]) -> Split:
        labels = [label_of[row["label"]] for row in chosen]
        return file_split([row["id"] for row in chosen], labels, lambda key: place(path_of[key]), opened)

    return {
        name: split_of([row for row in rows if row["split"] == name])
        for name in dict.fromkeys(row["split"] for row in rows)
    }


def _rows(file: Path, column: str | None) -> list[dict[str, str]]:
    """The lines as dictionaries with an `id` and a `modality`."""
    columns = ("path", "split", column) if column else COLUMNS
    lines = table(file, columns)
    classless = _without_classes(file, lines) if column else {}
    rows = [_row(file, line, classless | row, column) for line, row in lines]
    if not rows:
        raise DatasetError(f"{file}: found no rows below the header; expected one line per image; add them")
    for modality, own in _of_modalities(rows).items():
        double = first_double(row["id"] for row in own)
        if double is not None:
            where = f" in {modality}" if modality else ""
            raise DatasetError(
                f"{file}: id {short(double)!r} occurs twice{where}; expected unique ids; add or correct the "
                "id column"
            )
    _check_samples(file, rows)
    return rows


def _without_classes(file: Path, lines: list[tuple[int, dict[str, str]]]) -> dict[str, str]:
    """What stands for the column `label` where lines of several modalities have none: they meet by id.

    Raises:
        DatasetError: there is no column `id` either.
    """
    if lines and not {"label", "id"} & lines[0][1].keys():
        raise DatasetError(
            f"{file}: column 'label' is missing, and column 'id' too; expected classes, or ids that say "
            "which lines are one sample; add one of them"
        )
    return {"label": CLASSLESS}


def _check_samples(file: Path, rows: list[dict[str, str]]) -> None:
    """A sample has one class and lies in one split, whatever it is seen as."""
    known: dict[str, dict[str, str]] = {}
    for row in rows:
        first = known.setdefault(row["id"], row)
        for name in ("label", "split"):
            if row[name] != first[name]:
                raise DatasetError(
                    f"{file}: id {short(row['id'])!r} has {name} {first[name]!r} in {first['modality']} and "
                    f"{row[name]!r} in {row['modality']}; expected one sample under one id; correct one"
                )


def _row(file: Path, line: int, row: dict[str, str], column: str | None) -> dict[str, str]:
    modality = row[column] if column else ""
    empty = [name for name in (*COLUMNS, *([column] if column else [])) if not row[name]]
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
    if column and (not SPLIT_NAME.fullmatch(modality) or modality == "text"):
        raise DatasetError(
            f"{file}: line {line} has modality {short(modality)!r}; expected a name such as image or audio "
            "(text is made from class names); correct it"
        )
    key = row.get("id") or PurePath(row["path"]).as_posix()
    if PurePath(key).is_absolute():
        raise DatasetError(
            f"{file}: path {short(key)!r} is absolute; expected paths relative to the CSV, or a column id "
            "with a stable name; add the column id"
        )
    return {"path": row["path"], "label": row["label"], "split": split, "id": key, "modality": modality}


def _check_classes(file: Path, rows: list[dict[str, str]]) -> None:
    train = {row["label"] for row in rows if row["split"] == "train"}
    strange = sorted({row["label"] for row in rows} - train) if train else []
    if strange:
        split = next(row["split"] for row in rows if row["label"] == strange[0])
        raise DatasetError(
            f"{file}: class {short(strange[0])!r} is in {split} but not in train ({len(strange)} such); "
            "expected the classes of train; add training rows or remove it"
        )
