"""DTMF key tones: the sounds of a telephone keypad, synthesised from the published frequency pairs.

A key sounds as the sum of one row and one column frequency (ITU-T Recommendation Q.23). Level, the two
tones' balance, phases, onset, duration and noise are drawn at random, yet a clip is a pure function of
(sample id, seed): the same id gives the same samples in any order, in any process.

Needs NumPy only. Does not decode tones and holds no recordings: everything here is synthesised.
"""

import hashlib

import numpy as np
from jaxtyping import Float

RATE = 8_000
"""Samples per second, the rate of a telephone line."""

ROWS_HZ = (697, 770, 852, 941)
COLUMNS_HZ = (1209, 1336, 1477, 1633)
KEYPAD = ("123A", "456B", "789C", "*0#D")

FREQUENCIES: dict[str, tuple[int, int]] = {
    key: (low, high)
    for low, keys in zip(ROWS_HZ, KEYPAD, strict=True)
    for high, key in zip(COLUMNS_HZ, keys, strict=True)
}
"""Key -> (row frequency, column frequency) in Hz."""

CLIP_SECONDS = 0.5
TONE_SECONDS = (0.06, 0.3)
LEVEL_DB = (-30.0, -3.0)
BALANCE_DB = (-4.0, 4.0)
SNR_DB = (-12.0, 15.0)


def generator(sample_id: str, seed: int) -> np.random.Generator:
    """Random numbers that depend on nothing but the sample's id and the seed."""
    digest = hashlib.sha256(f"{seed}\0{sample_id}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype="<u4"))


def tone(
    key: str, seconds: float, phases: tuple[float, float] = (0.0, 0.0), balance_db: float = 0.0
) -> Float[np.ndarray, " L"]:
    """The key's two sines, peak at most 1; `balance_db` lifts the column over the row frequency.

    Raises:
        KeyError: the keypad has no such key.
    """
    time = np.arange(round(seconds * RATE)) / RATE
    low, high = (
        np.sin(2 * np.pi * hz * time + phase) for hz, phase in zip(FREQUENCIES[key], phases, strict=True)
    )
    gain = 10 ** (balance_db / 20)
    return (low + gain * high) / (1 + gain)


def clip(key: str, sample_id: str, seed: int = 0) -> Float[np.ndarray, "1 L"]:
    """Half a second of line noise in which the key is pressed once: float32 in [-1, 1] at 8 kHz.

    Noise is white and set against the tone's own power, so loud and quiet clips are equally hard.
    """
    draw = generator(sample_id, seed)
    phases = tuple(draw.uniform(0, 2 * np.pi, 2))
    press = tone(key, draw.uniform(*TONE_SECONDS), phases, draw.uniform(*BALANCE_DB))
    length = round(CLIP_SECONDS * RATE)
    onset = draw.integers(0, length - len(press) + 1)
    noise_rms = np.sqrt(np.mean(press**2)) * 10 ** (-draw.uniform(*SNR_DB) / 20)
    wave = draw.normal(0, noise_rms, length)
    wave[onset : onset + len(press)] += press
    wave *= 10 ** (draw.uniform(*LEVEL_DB) / 20) / max(1.0, np.abs(wave).max())
    return wave.astype(np.float32)[None]
