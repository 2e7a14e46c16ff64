"""Digits keyed by hand in Morse code: how long the key was down and up, no sound of it.

A digit is five signs, dots or dashes (ITU-R Recommendation M.1677); a dash lasts three dots and so do the
gaps between letters, a gap inside a digit one. A hand is never exact: speed, the ratio of dash to dot and
every single duration are drawn at random, yet a sample is a pure function of (sample id, seed).

Needs NumPy only. The durations are synthesised; nobody keyed them.
"""

import numpy as np
from jaxtyping import Float

from spaner.extract.datasets.dtmf import generator

SIGNS = ("-----", ".----", "..---", "...--", "....-", ".....", "-....", "--...", "---..", "----.")
"""Digit -> its code."""

DOT_SECONDS = (0.04, 0.16)
RATIO = (1.7, 3.6)
"""Dash to dot: a tired hand makes them nearly alike."""
SHAKE = 0.26
"""Standard deviation of the logarithm of one duration."""


def keying(digit: int, sample_id: str, seed: int = 0) -> Float[np.ndarray, "9"]:
    """Seconds down, up, down …, down: five signs and the four gaps between them, float32.

    Raises:
        IndexError: no such digit.
    """
    draw = generator(sample_id, seed)
    dot, ratio = draw.uniform(*DOT_SECONDS), draw.uniform(*RATIO)
    seconds = np.full(9, dot)
    seconds[::2] *= np.where(np.array(list(SIGNS[digit])) == "-", ratio, 1.0)
    return (seconds * np.exp(draw.normal(0, SHAKE, 9))).astype(np.float32)
