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
    train_labels: Int[np.ndarray, " N"], val_labels: Int[np.ndarray, " M"], shots: int, seed: int
) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " L"]]:
    """Training and validation rows; validation continues the same stream with min(shots, 4) per class."""
    stream = random.Random(seed)
    train = _draw(train_labels, shots, stream)
    return train, _draw(val_labels, min(shots, VAL_SHOTS), stream)


def _draw(labels: np.ndarray, shots: int, stream: random.Random) -> np.ndarray:
    if shots < 1:
        raise CacheError(f"a draw needs at least 1 shot, found {shots}")
    classes: dict[int, list[int]] = {}
    for row, label in enumerate(np.asarray(labels).tolist()):
        classes.setdefault(label, []).append(row)
    drawn = [rows if len(rows) < shots else stream.sample(rows, shots) for rows in classes.values()]
    return np.array([row for rows in drawn for row in rows], np.int64)


def read_draw(
    path: str | Path, ids: Sequence[str] | np.ndarray, split: str = "train"
) -> Int[np.ndarray, " K"]:
    """Rows of a published index file, in its order.

    Args:
        path: JSON of Lin et al. (2023), `{"train": {"data": [{"impath", "label", "classname"}, …]}, …}`,
            or of CoOp, `{"train": [[path, label, classname], …], …}`.
        ids: ids of the table. An image matches the id that its path ends with, or that ends with its path.
        split: "train", "val" or "test".

    Raises:
        CacheError: not such a file, or an image that no id, or more than one, matches.
    """
    path = Path(path)
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))[split]
        items = listed["data"] if isinstance(listed, dict) else listed
        paths = [item["impath"] if isinstance(item, dict) else item[0] for item in items]
        index = _Endings(ids)
        return np.array([index.find(image, path) for image in paths], np.int64)
    except FileNotFoundError:
        raise CacheError(f"no index file {path}; give the path of a published shot_K-seed_S.json") from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CacheError(
            f'{path} is not a few-shot index file: found {error!r}, expected {{"{split}": {{"data": '
            '[{"impath": …}]}}; give a published shot_K-seed_S.json'
        ) from None


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
