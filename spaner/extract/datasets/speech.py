"""Spoken-digit-like sounds: the names zero … nine from a small formant synthesiser, no recording of anybody.

A voice is a row of harmonics of a pitch that falls a little; each vowel lifts those near its three formants
(average frequencies of men's vowels: Peterson & Barney, "Control Methods Used in a Study of the Vowels",
1952), and consonants are hiss in a band, a hum, or a pause. Speaker (pitch, length of the throat, pace),
level and noise are drawn at random, yet a clip is a pure function of (sample id, seed).

Needs NumPy only. It is speech-like, not speech: a listener can guess the digit, no more is claimed.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float

from spaner.extract.datasets.dtmf import generator

RATE = 8_000
CLIP_SECONDS = 0.5
WORD_SECONDS = (0.3, 0.46)
PITCH_HZ = (85.0, 235.0)
THROAT = (0.88, 1.16)
"""Factor of all formants: a long throat to a short one."""
LEVEL_DB = (-30.0, -3.0)
SNR_DB = (0.0, 20.0)
BANDWIDTHS_HZ = (70.0, 100.0, 150.0)
FRAME = 64
"""Samples over which a formant counts as still: 8 ms."""


@dataclass(frozen=True)
class Sound:
    """A piece of a word: formants in Hz, how loud the voice is, how loud a hiss and where it lies, and how
    long it lasts beside others."""

    formants: tuple[float, float, float]
    voice: float = 1.0
    hiss: float = 0.0
    band: float = 3000.0
    length: float = 1.0


SOUNDS: dict[str, Sound] = {
    "iy": Sound((270, 2290, 3010)),
    "ih": Sound((390, 1990, 2550), length=0.7),
    "eh": Sound((530, 1840, 2480)),
    "ah": Sound((640, 1190, 2390)),
    "aa": Sound((730, 1090, 2440)),
    "ao": Sound((570, 840, 2410)),
    "uh": Sound((440, 1020, 2240), length=0.7),
    "uw": Sound((300, 870, 2240)),
    "er": Sound((490, 1350, 1690), length=0.7),
    "w": Sound((300, 700, 2200), voice=0.6, length=0.5),
    "r": Sound((350, 1060, 1500), voice=0.7, length=0.5),
    "n": Sound((250, 1500, 2300), voice=0.35, length=0.6),
    "v": Sound((280, 1100, 2300), voice=0.3, hiss=0.08, band=2500, length=0.5),
    "z": Sound((280, 1500, 2500), voice=0.25, hiss=0.25, band=3400, length=0.6),
    "s": Sound((300, 1500, 2500), voice=0.0, hiss=0.4, band=3500, length=0.8),
    "f": Sound((300, 1100, 2300), voice=0.0, hiss=0.12, band=2600, length=0.7),
    "th": Sound((300, 1400, 2500), voice=0.0, hiss=0.1, band=3000, length=0.6),
    "t": Sound((300, 1700, 2600), voice=0.0, hiss=0.3, band=3200, length=0.25),
    "-": Sound((300, 1500, 2500), voice=0.0, length=0.35),
}

WORDS = (
    "z ih r ao uh", "w ah n", "t uw uw", "th r iy", "f ao r",
    "f aa ih v", "s ih - t s", "s eh v ah n", "eh ih - t", "n aa ih n",
)  # fmt: skip
"""Digit -> its sounds, in order."""


def clip(digit: int, sample_id: str, seed: int = 0) -> Float[np.ndarray, "1 L"]:
    """Half a second in which somebody says the digit: float32 in [-1, 1] at 8 kHz.

    Raises:
        IndexError: no such digit.
    """
    draw = generator(sample_id, seed)
    said = word(digit, draw.uniform(*WORD_SECONDS), draw.uniform(*PITCH_HZ), draw.uniform(*THROAT), draw)
    length = round(CLIP_SECONDS * RATE)
    onset = draw.integers(0, length - len(said) + 1)
    rms = np.sqrt(np.mean(said**2))
    wave = draw.normal(0, rms * 10 ** (-draw.uniform(*SNR_DB) / 20), length)
    wave[onset : onset + len(said)] += said
    wave *= 10 ** (draw.uniform(*LEVEL_DB) / 20) / max(np.abs(wave).max(), 1e-9)
    return wave.astype(np.float32)[None]


def word(
    digit: int, seconds: float, pitch: float, throat: float, draw: np.random.Generator
) -> Float[np.ndarray, " L"]:
    """The sounds of a digit's name, gliding into each other; `throat` multiplies all formants."""
    sounds = [SOUNDS[name] for name in WORDS[digit].split()]
    frames = round(seconds * RATE / FRAME)
    track = _glide(digit, frames)
    formants, (voice, hiss) = track[:, :3] * throat, track[:, 3:].T
    voiced = _harmonics(formants, pitch * np.linspace(1.08, 0.88, frames)) * np.repeat(voice, FRAME)
    noise = _band(draw.normal(size=frames * FRAME), float(max(sounds, key=lambda s: s.hiss).band))
    return voiced + noise * np.repeat(hiss, FRAME)


@cache
def _glide(digit: int, frames: int) -> Float[np.ndarray, "F 5"]:
    """Formants, voice and hiss in every frame: each sound at its middle, straight lines between."""
    sounds = [SOUNDS[name] for name in WORDS[digit].split()]
    ends = np.cumsum([sound.length for sound in sounds])
    middles = (ends - np.array([sound.length for sound in sounds]) / 2) / ends[-1]
    values = np.array([(*sound.formants, sound.voice, sound.hiss) for sound in sounds])
    at = np.linspace(0, 1, frames)
    return np.stack([np.interp(at, middles, column) for column in values.T], axis=1)


def _harmonics(formants: Float[np.ndarray, "F 3"], pitch: Float[np.ndarray, " F"]) -> Float[np.ndarray, " L"]:
    """The voice: every harmonic below 3.8 kHz, as loud as the three resonances let it through."""
    turns = np.repeat(pitch, FRAME).cumsum() / RATE
    number = np.arange(1, int(3800 / pitch.max()) + 1)
    hertz = pitch[:, None] * number  # (F, K)
    offset = (hertz[:, :, None] - formants[:, None]) / np.array(BANDWIDTHS_HZ)
    loud = (1 / (1 + offset**2)).sum(2) / number**0.5
    # Chebyshev: sin((k + 1) t) = 2 cos(t) sin(k t) - sin((k - 1) t), cheaper than a sine each
    angle = (2 * np.pi * turns).reshape(-1, FRAME)
    twice, last, now = 2 * np.cos(angle), np.zeros_like(angle), np.sin(angle)
    total = np.zeros_like(angle)
    for each in loud.T:
        total += each[:, None] * now
        last, now = now, twice * now - last
    return total.ravel()


def _band(noise: Float[np.ndarray, " L"], centre: float) -> Float[np.ndarray, " L"]:
    """White noise, a band around `centre` Hz left of it."""
    spectrum = np.fft.rfft(noise)
    hertz = np.fft.rfftfreq(len(noise), 1 / RATE)
    return np.fft.irfft(spectrum / (1 + ((hertz - centre) / 600) ** 2), len(noise)) * 2
