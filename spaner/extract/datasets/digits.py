"""The embedded dataset: ten digits in eight modalities, with nothing to download.

Image: scikit-learn's 1,797 handwritten 8x8 scans, in three parts drawn once: a hundred on which the digits
encoder was pretrained and that no split contains, 700 for "train", 997 for "test". Text comes from the class
names. Further views have a row for every scan, under its id, so that a sample is seen in many ways:

    table     the scan's 64 intensities as numbers
    strokes   points of its skeleton, a set without order (see `strokes`)
    path      the same points in an order in which a pen could have drawn them
    speech    the digit said aloud, synthesised (`speech`)
    morse     the digit keyed in Morse code, synthesised (`morse`)

Audio: the telephone's key tones, synthesised (`dtmf`), the same number for each digit, under ids of their
own. Scans and what is derived from them are real; speech, keying and tones share the digit with a scan and
nothing else, and nobody made them: say so where their numbers are shown.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from spaner.extract.datasets import dtmf, morse, speech, strokes
from spaner.extract.datasets.dataset import Dataset, Split

CLASS_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
PRESSES = 32
"""Clips of each key in each audio split."""

PRETRAINING, TRAIN = 100, 700
"""Scans in the first two parts; the rest is test."""


def read(argument: str = "", root: Path | None = None, *, seed: int = 0, **_: object) -> Dataset:
    """Read the embedded dataset; the seed draws what is synthesised: tones, voices, keying."""
    rows = dict(zip(("train", "test"), parts()[1:], strict=True))
    openers = {"image": _scan, **_views(seed)}
    splits = {name: {part: _of_scans(each, rows[part]) for part in rows} for name, each in openers.items()}
    splits["audio"] = {"train": _tones(0, seed), "test": _tones(PRESSES, seed)}
    ledger = {"images": "scikit-learn load_digits", "audio": f"synthesised DTMF tones, seed {seed}"}
    ledger |= {"speech": f"formant synthesis, seed {seed}", "morse": f"synthesised keying, seed {seed}"}
    encoders = dict.fromkeys((*splits, "text"), "digits")
    return Dataset("digits", list(CLASS_NAMES), splits, encoders, None, ledger)


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


@cache
def _skeletons() -> np.ndarray:
    return strokes.skeletons(load()[0])


def _scan(number: int) -> Image.Image:
    return Image.fromarray(load()[0][number]).convert("RGB")


def _views(seed: int) -> dict[str, Callable[[int], Any]]:
    """Scan number -> payload, of every view that a scan has beside its picture."""
    scans, labels = load()
    return {
        "table": lambda number: scans[number].ravel().astype(np.float32) / 255,
        "strokes": lambda number: strokes.points(_skeletons()[number]),
        "path": lambda number: strokes.path(_skeletons()[number]),
        "speech": lambda number: (speech.clip(labels[number], f"speech/{number:04d}", seed), speech.RATE),
        "morse": lambda number: morse.keying(labels[number], f"morse/{number:04d}", seed),
    }


def _of_scans(opener: Callable[[int], Any], rows: np.ndarray) -> Split:
    """A row for each scan, under the scan's id."""
    ids = [f"scan/{row:04d}" for row in rows]
    return Split(ids, load()[1][rows], lambda key: opener(int(key.removeprefix("scan/"))))


def _tones(first: int, seed: int) -> Split:
    """`PRESSES` clips of each digit key; ids "key/7/0033" count on through the splits."""
    ids = [f"key/{key}/{press:04d}" for key in range(10) for press in range(first, first + PRESSES)]
    labels = np.repeat(np.arange(10, dtype=np.int32), PRESSES)
    return Split(ids, labels, lambda key: (dtmf.clip(key.split("/")[1], key, seed), dtmf.RATE))
