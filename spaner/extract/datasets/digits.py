"""The embedded dataset: ten digits seen, named and heard, with nothing to download.

Image: scikit-learn's 1,797 handwritten 8x8 scans, in three parts drawn once: a hundred on which the digits
encoder was pretrained and that no split contains, 700 for "train", 997 for "test". Audio: the telephone's key
tones, synthesised (see ``dtmf``), the same number for each digit. Text comes from the class names.
The scans are real, the sounds are not: say so where their numbers are shown.
"""

from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from spaner.extract.datasets import dtmf
from spaner.extract.datasets.dataset import Dataset, Split

CLASS_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
PRESSES = 32
"""Clips of each key in each audio split."""

PRETRAINING, TRAIN = 100, 700
"""Scans in the first two parts; the rest is test."""


def read(argument: str = "", root: Path | None = None, *, seed: int = 0, **_: object) -> Dataset:
    """Read the embedded dataset; the seed draws the key tones' levels, durations and noise."""
    train, test = parts()[1:]
    splits = {
        "image": {"train": _scans(train), "test": _scans(test)},
        "audio": {"train": _tones(0, seed), "test": _tones(PRESSES, seed)},
    }
    ledger = {"images": "scikit-learn load_digits", "audio": f"synthesised DTMF tones, seed {seed}"}
    return Dataset(
        "digits", list(CLASS_NAMES), splits, dict.fromkeys(("image", "text", "audio"), "digits"), None, ledger
    )


def parts() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scan numbers of the pretraining share, train and test: the same on every machine and in every run."""
    order = np.random.default_rng(0).permutation(len(load()[1]))
    pretraining, train, test = np.split(order, (PRETRAINING, PRETRAINING + TRAIN))
    return np.sort(pretraining), np.sort(train), np.sort(test)


@cache
def load() -> tuple[UInt8[np.ndarray, "N 8 8"], np.ndarray]:
    """All scans as grey levels 0 to 255 (scikit-learn has 17 levels), and their digits (N,) int32."""
    from sklearn.datasets import load_digits  # takes a second to import, and only this data set needs it

    flat, labels = load_digits(return_X_y=True)
    scans = np.asarray(flat).reshape(-1, 8, 8)
    return np.round(scans * (255 / 16)).astype(np.uint8), np.asarray(labels, dtype=np.int32)


def _scans(rows: np.ndarray) -> Split:
    scans, labels = load()
    return Split(
        [f"scan/{row:04d}" for row in rows],
        labels[rows],
        lambda key: Image.fromarray(scans[int(key.removeprefix("scan/"))]).convert("RGB"),
    )


def _tones(first: int, seed: int) -> Split:
    """`PRESSES` clips of each digit key; ids "key/7/0033" count on through the splits."""
    ids = [f"key/{key}/{press:04d}" for key in range(10) for press in range(first, first + PRESSES)]
    labels = np.repeat(np.arange(10, dtype=np.int32), PRESSES)
    return Split(ids, labels, lambda key: (dtmf.clip(key.split("/")[1], key, seed), dtmf.RATE))
