"""ESC-50's protocol of Lin et al. (CVPR 2023): one fold gives the shots, the other folds are the test.

For split s, the first K clips of each class in listing order train, the next K validate, both from fold s;
nothing is drawn at random. Numbers are reported as the mean over the splits. Pure functions on labels.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from spaner.errors import CacheError

FOLDS = 5
MOST_SHOTS = 4  # ESC-50 has 8 clips per class and fold


def first_shots(
    labels: Int[np.ndarray, " N"], shots: int
) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " K"]]:
    """Training and validation rows of the fold that `labels` lists: the first and the next `shots` of each
    class.

    Rows come class after class, in the order of labels.

    Raises:
        CacheError: shots outside 1 to 4, or a class with fewer than twice as many clips.
    """
    if not 1 <= shots <= MOST_SHOTS:
        raise CacheError(
            f"{shots} shots of a fold: expected 1 to {MOST_SHOTS}, half of a class trains; type fewer"
        )
    labels = np.asarray(labels)
    rows = {int(label): np.flatnonzero(labels == label) for label in np.unique(labels)}
    short = [label for label, found in rows.items() if len(found) < 2 * shots]
    if short:
        raise CacheError(
            f"class {short[0]} has {len(rows[short[0]])} clips in this fold; {shots} shots need {2 * shots} "
            "(to train "
            "and to validate); ask for fewer shots, or extract the fold again without failed rows"
        )
    empty = [np.empty(0, np.int64)]
    train = np.concatenate([found[:shots] for found in rows.values()] or empty)
    validate = np.concatenate([found[shots : 2 * shots] for found in rows.values()] or empty)
    return train, validate


def other_folds(fold: int, present: Sequence[str]) -> list[str]:
    """Names of the folds that test where the split `fold` (1 to 5) trains.

    Args:
        present: splits that exist; others than "fold1" … "fold5" are ignored.

    Raises:
        CacheError: a fold is missing, or `fold` is none.
    """
    names = [f"fold{i}" for i in range(1, FOLDS + 1)]
    if f"fold{fold}" not in names:
        raise CacheError(f"fold {fold}: there is none; expected 1 to {FOLDS}; type one of them")
    missing = [name for name in names if name not in present]
    if missing:
        raise CacheError(
            f"{', '.join(missing)} missing, found {', '.join(present) or 'none'}; the protocol tests on the "
            f"four folds that do not train; type `spaner extract --modality audio --splits {missing[0]}`"
        )
    return [name for name in names if name != f"fold{fold}"]
