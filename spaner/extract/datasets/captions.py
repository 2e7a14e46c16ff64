"""Captions of a CSV: sentences about one image each, several an image, as rows of a modality of their own.

    path,label,split,caption                          path,split,one,two
    1.jpg,dog,train,a dog runs on grass               1.jpg,train,a dog runs on grass,"wet dog, happy"
    1.jpg,dog,train,"wet dog, happy"

Lines of one image are its captions, and so are several columns; an empty field of several is none. Caption k
of an image (from 0, in the order of the list) is the row "ID#k" of `caption/SPLIT`, of the image's class.
Captions often come without classes: then there is no column `label`, and every image is of the one class
"image", which can be scored and not trained on.

Reads columns of lines that were read already. It opens no image and encodes nothing.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from spaner.errors import DatasetError
from spaner.extract.datasets.dataset import Split
from spaner.extract.datasets.lists import short

MODALITY = "caption"
CLASSLESS = "image"
"""The class of images that have none."""

Line = dict[str, str]


def row_id(image: str, number: int) -> str:
    """The id of an image's caption."""
    return f"{image}#{number}"


def of_line(file: Path, line: int, row: Line, columns: Sequence[str]) -> list[str]:
    """The captions of a line.

    Raises:
        DatasetError: it has none.
    """
    found = [row[name] for name in columns if row[name]]
    if not found:
        raise DatasetError(
            f"{file}: line {line} has no {' and no '.join(columns)}; expected a caption in every line; fill "
            "it in, or remove the line"
        )
    return found


def gathered(file: Path, lines: Sequence[tuple[Line, list[str]]]) -> tuple[list[Line], dict[str, list[str]]]:
    """One line for each image, in the order of the first of each, and the captions of each by its id.

    Raises:
        DatasetError: lines of one image that differ in path, label or split, or a caption that it has twice.
    """
    first: dict[str, Line] = {}
    captions: dict[str, list[str]] = {}
    for row, found in lines:
        known = first.setdefault(row["id"], row)
        for name in ("path", "label", "split"):
            if row[name] != known[name]:
                raise DatasetError(
                    f"{file}: image {short(row['id'])!r} has {name} {short(known[name])!r} in one line and "
                    f"{short(row[name])!r} in another; expected one image under one id; correct one"
                )
        own = captions.setdefault(row["id"], [])
        for caption in found:
            if caption in own:
                raise DatasetError(
                    f"{file}: image {short(row['id'])!r} has the caption {short(caption)!r} twice; expected "
                    "each once; remove one"
                )
            own.append(caption)
    return list(first.values()), captions


def splits(
    rows: Sequence[Line], captions: dict[str, list[str]], label_of: dict[str, int]
) -> dict[str, Split]:
    """The captions of every split; a payload is the sentence."""
    names = dict.fromkeys(row["split"] for row in rows)
    return {name: _split([row for row in rows if row["split"] == name], captions, label_of) for name in names}


def _split(rows: Sequence[Line], captions: dict[str, list[str]], label_of: dict[str, int]) -> Split:
    said = dict(_named(rows, captions))
    labels = [label_of[row["label"]] for row in rows for _ in captions[row["id"]]]
    return Split(list(said), np.array(labels, np.int32), said.__getitem__)


def _named(rows: Sequence[Line], captions: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    for row in rows:
        yield from ((row_id(row["id"], k), said) for k, said in enumerate(captions[row["id"]]))
