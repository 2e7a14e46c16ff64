"""Captions of a CSV: sentences about one image each, several an image, as rows of a modality of their own.

    path,label,split,caption                          path,split,one,two
    1.jpg,dog,train,a dog runs on grass               1.jpg,train,a dog runs on grass,"wet dog, happy"
    1.jpg,dog,train,"wet dog, happy"

Lines of one image are its captions, and so are several columns; an empty field of several is none. Caption k
of an image (from 0, in the order of the list) is the row "ID#k" of `caption/SPLIT`, of the image's class.
A caption may have a negated form in a column of its own ("no dog runs on grass"): it is the row of the same
id in `negated/SPLIT`. Captions often come without classes: then there is no column `label`, and every image
is of the one class "image", which can be scored and not trained on.

Reads columns of lines that were read already. It opens no image and encodes nothing.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from spaner.errors import DatasetError
from spaner.extract.datasets.dataset import Split
from spaner.extract.datasets.lists import short

MODALITIES = ("caption", "negated")
CLASSLESS = "image"
"""The class of images that have none."""

Line = dict[str, str]
Said = tuple[str, str]
"""A caption and its negated form, "" where it has none: in the order of `MODALITIES`."""


def row_id(image: str, number: int) -> str:
    """The id of an image's caption."""
    return f"{image}#{number}"


def check_columns(columns: Sequence[str], negated: Sequence[str]) -> None:
    """DatasetError unless there is a column of negated forms for each of captions, or none."""
    if negated and len(negated) != len(columns):
        raise DatasetError(
            f"--negated-column {','.join(negated)}: {len(negated)} beside {len(columns)} of captions; "
            "expected one for each --caption-column, in their order; name as many"
        )


def of_line(
    file: Path, line: int, row: Line, columns: Sequence[str], negated: Sequence[str] = ()
) -> list[Said]:
    """The captions of a line.

    Raises:
        DatasetError: it has none, a negated form without a caption, or one that says the same.
    """
    denied = [row[name] for name in negated] or [""] * len(columns)
    for column, form in zip(columns, denied, strict=True):
        if form and form == row[column]:
            raise DatasetError(
                f"{file}: line {line} has the caption {short(form)!r} as its own negated form; expected one "
                "that says the opposite; correct it, or leave it empty"
            )
        if form and not row[column]:
            raise DatasetError(
                f"{file}: line {line} negates {short(form)!r} and has no {column}; expected the caption "
                "beside its negated form; fill it in"
            )
    found = [(row[name], form) for name, form in zip(columns, denied, strict=True) if row[name]]
    if not found:
        raise DatasetError(
            f"{file}: line {line} has no {' and no '.join(columns)}; expected a caption in every line; fill "
            "it in, or remove the line"
        )
    return found


def gathered(
    file: Path, lines: Sequence[tuple[Line, list[Said]]]
) -> tuple[list[Line], dict[str, list[Said]]]:
    """One line for each image, in the order of the first of each, and the captions of each by its id.

    Raises:
        DatasetError: lines of one image that differ in path, label or split, or a caption that it has twice.
    """
    first: dict[str, Line] = {}
    captions: dict[str, list[Said]] = {}
    for row, found in lines:
        known = first.setdefault(row["id"], row)
        for name in ("path", "label", "split"):
            if row[name] != known[name]:
                raise DatasetError(
                    f"{file}: image {short(row['id'])!r} has {name} {short(known[name])!r} in one line and "
                    f"{short(row[name])!r} in another; expected one image under one id; correct one"
                )
        own = captions.setdefault(row["id"], [])
        for said in found:
            if said[0] in {caption for caption, _ in own}:
                raise DatasetError(
                    f"{file}: image {short(row['id'])!r} has the caption {short(said[0])!r} twice; expected "
                    "each once; remove one"
                )
            own.append(said)
    return list(first.values()), captions


def splits(
    rows: Sequence[Line], captions: dict[str, list[Said]], label_of: dict[str, int], modality: str
) -> dict[str, Split]:
    """The captions of every split, or their negated forms; a payload is the sentence."""
    names = dict.fromkeys(row["split"] for row in rows)
    form = MODALITIES.index(modality)
    return {
        name: _split([row for row in rows if row["split"] == name], captions, label_of, form)
        for name in names
    }


def _split(
    rows: Sequence[Line], captions: dict[str, list[Said]], label_of: dict[str, int], form: int
) -> Split:
    said = {key: words for _, key, words in _named(rows, captions, form)}
    labels = [label_of[label] for label, _, _ in _named(rows, captions, form)]
    return Split(list(said), np.array(labels, np.int32), said.__getitem__)


def _named(
    rows: Sequence[Line], captions: dict[str, list[Said]], form: int
) -> Iterator[tuple[str, str, str]]:
    """Label, id and words of every sentence of a form that there is."""
    for row in rows:
        for k, said in enumerate(captions[row["id"]]):
            if said[form]:
                yield row["label"], row_id(row["id"], k), said[form]
