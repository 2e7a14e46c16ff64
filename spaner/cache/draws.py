"""Few-shot draws as data: which rows a k-shot experiment trains on.

The algorithm is CoOp's (Zhou et al. 2022), which most few-shot results of CLIP share: rows are grouped by
label in order of first appearance, one `random.sample` per class draws from one continuous stream, and a
class with fewer rows gives all of them and draws nothing. Seeds 1 to 3 and 1, 2, 4, 8, 16 shots are usual.
Pure functions: no global random state is read or changed. Nothing here knows what a row holds.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from spaner.errors import CacheError

VAL_SHOTS = 4


def few_shot(labels: Int[np.ndarray, " N"], shots: int, seed: int) -> Int[np.ndarray, " K"]:
    """Row numbers of a draw, class after class.

    Args:
        labels: class of each row, in dataset order, on which the draw depends.
        shots: rows per class. A smaller number is in general no subset of a larger one.
        seed: of `random.Random`.
    """
    return _draw(labels, shots, random.Random(seed))


def few_shot_splits(
    train_labels: Int[np.ndarray, " N"],
    val_labels: Int[np.ndarray, " M"],
    shots: int,
    seed: int,
    val_shots: int = VAL_SHOTS,
) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " L"]]:
    """Training and validation rows; validation continues the same stream with min(shots, val_shots) a class.

    CoOp and most others validate on at most 4 rows of a class; `val_shots=shots` gives as many as train.
    """
    stream = random.Random(seed)
    train = _draw(train_labels, shots, stream)
    return train, _draw(val_labels, min(shots, val_shots), stream)


def _draw(labels: np.ndarray, shots: int, stream: random.Random) -> np.ndarray:
    if shots < 1:
        raise CacheError(f"a draw needs at least 1 shot, found {shots}")
    classes: dict[int, list[int]] = {}
    for row, label in enumerate(np.asarray(labels).tolist()):
        classes.setdefault(label, []).append(row)
    drawn = [rows if len(rows) < shots else stream.sample(rows, shots) for rows in classes.values()]
    return np.array([row for rows in drawn for row in rows], np.int64)


def first_shots(
    labels: Int[np.ndarray, " N"], shots: int
) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " K"]]:
    """Training and validation rows without chance: the first and the next `shots` rows of each class.

    Rows come class after class, in the order of labels.

    Raises:
        CacheError: no shots, or a class with fewer than twice as many rows.
    """
    if shots < 1:
        raise CacheError(f"a selection needs at least 1 shot, found {shots}")
    labels = np.asarray(labels)
    rows = {int(label): np.flatnonzero(labels == label) for label in np.unique(labels)}
    short = [label for label, found in rows.items() if len(found) < 2 * shots]
    if short:
        raise CacheError(
            f"class {short[0]} has {len(rows[short[0]])} rows; {shots} shots need {2 * shots} (to train and "
            "to validate); ask for fewer shots, or extract the table again without failed rows"
        )
    empty = [np.empty(0, np.int64)]
    train = np.concatenate([found[:shots] for found in rows.values()] or empty)
    validate = np.concatenate([found[shots : 2 * shots] for found in rows.values()] or empty)
    return train, validate


def read_draw(
    path: str | Path,
    ids: Sequence[str] | np.ndarray,
    split: str = "train",
    *,
    labels: Int[np.ndarray, " N"] | None = None,
    class_names: Sequence[str] = (),
) -> Int[np.ndarray, " K"]:
    """Rows of a published index file, in its order.

    Args:
        path: JSON of Lin et al. (2023), `{"train": {"data": [{"impath", "label", "classname"}, …]}, …}`,
            or of CoOp, `{"train": [[path, label, classname], …], …}`; or JSON Lines of such objects or
            lists, one split a file.
        ids: ids of the table. An image matches the id that its path ends with, or that ends with its path.
        split: "train", "val" or "test".
        labels, class_names: of the table; the file's own must then agree, by name or else by number.

    Raises:
        CacheError: not such a file, an image that no id, or more than one, matches, one that is listed
            twice, or one that is of another class there.
    """
    path = Path(path)
    try:
        items = [_item(item) for item in _items(path, split)]
    except FileNotFoundError:
        raise CacheError(f"no index file {path}; give the path of a published shot_K-seed_S.json") from None
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise CacheError(
            f'{path} is not a few-shot index file: found {error!r}, expected {{"{split}": {{"data": '
            '[{"impath": …}]}}; give a published shot_K-seed_S.json'
        ) from None
    index = _Endings(ids)
    rows = np.array([index.find(image, path) for image, _, _ in items], np.int64)
    if len(np.unique(rows)) < len(rows):
        again = next(i for i in range(len(rows)) if rows[i] in rows[:i])
        raise CacheError(f"{path} lists {items[again][0]} twice; expected each image once; get it again")
    if labels is not None:
        _check_labels(path, items, np.asarray(labels)[rows], list(class_names))
    return rows


def _items(path: Path, split: str) -> list[Any]:
    data = path.read_bytes()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in data.splitlines() if line.strip()]
    listed = json.loads(data)[split]
    return listed["data"] if isinstance(listed, dict) else listed


def _item(item: Any) -> tuple[str, int | None, str | None]:
    """Image, and label and class name where the file has them."""
    if isinstance(item, dict):
        image, label, name = item["impath"], item.get("label"), item.get("classname")
    else:
        image, label, name = (*item, None, None)[:3]
    if not isinstance(image, str):
        raise TypeError(f"{image!r} is no path")
    if label is not None and (isinstance(label, bool) or not isinstance(label, int)):
        raise TypeError(f"{label!r} is no label")
    return image, label, name


def _check_labels(
    path: Path, items: list[tuple[str, int | None, str | None]], ours: np.ndarray, class_names: list[str]
) -> None:
    """Classes agree by name where both sides know it, by number where the file has no names. Elsewhere
    numbers may differ, as lists sort classes differently, but one of theirs is always one of ours."""
    label_of = {_plain(name): label for label, name in enumerate(class_names)}
    ours_of: dict[int, int] = {}
    theirs_of: dict[int, int] = {}
    for (image, label, name), mine in zip(items, ours.tolist(), strict=True):
        here = class_names[mine] if mine < len(class_names) else str(mine)
        wrong = label not in (None, mine) if name is None else label_of.get(_plain(name), mine) != mine
        if label is not None:
            wrong |= ours_of.setdefault(label, mine) != mine or theirs_of.setdefault(mine, label) != label
        if wrong and (name is None or _plain(name) != _plain(here)):  # ImageNet has two classes "missile"
            raise CacheError(
                f"{path} gives {image} the class {name if name is not None else label!r}, here it is "
                f"{here!r} ({mine}); expected the same; is it another dataset's, or another version's?"
            )


def _plain(name: object) -> str:
    return " ".join(str(name).replace("_", " ").casefold().split())


class _Endings:
    """Finds the one id that is a path's longest ending, or of which the path is an ending."""

    def __init__(self, ids: Sequence[str] | np.ndarray) -> None:
        self._rows = {str(name): row for row, name in enumerate(ids)}
        self._by_name: dict[str, list[str]] = {}
        for name in self._rows:
            self._by_name.setdefault(name.rsplit("/", 1)[-1], []).append(name)

    def find(self, image: str, source: Path) -> int:
        parts = image.split("/")
        for start in range(len(parts)):
            if (row := self._rows.get("/".join(parts[start:]))) is not None:
                return row
        tail = "/" + image.lstrip("./")
        longer = [name for name in self._by_name.get(parts[-1], []) if name.endswith(tail)]
        if len(longer) == 1:
            return self._rows[longer[0]]
        found = "no id" if not longer else f"{len(longer)} ids, first {longer[0]}"
        raise CacheError(
            f"{source} lists {image}, which matches {found} of this table; is it another dataset's?"
        )
