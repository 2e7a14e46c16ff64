"""Sounds: files to waveforms, waveforms to the fixed-length mono input of an encoder.

Decodes what libsndfile reads (WAV, FLAC, OGG, MP3, AIFF …) in any rate, width and channel count, and only as
much as is needed: an hour costs what its first five seconds cost. Then: mean of the channels, resampling,
cut or zeros at the end. Needs soundfile and torchaudio's resampler; decoding with torchaudio takes FFmpeg.

A sound that cannot be used raises `BadSound`, the failed row's reason. Digital silence (every sample exactly
0) is one: an encoder that looks at log power sees nothing but rounding noise there, other noise on every
machine. Clips with silent stretches are kept. A damaged OGG file that ends between two pages, or an MP3 file
that ends early, is taken as a shorter one: these formats do not tell. A FLAC file without its length, as
encoders that write into a pipe leave it, is read to its end. What a sound takes in memory is computed from
its header before a sample is allocated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import torch
from jaxtyping import Float
from torch import Tensor
from torchaudio.transforms import Resample

from spaner.extract.datasets.dataset import BUDGET, SampleFolder, Split, file_split, why_no_file

RATE = 44_100
MARGIN = 0.1
"""Seconds read beyond the cut, so that resampling the excerpt equals resampling the whole."""
FINEST_RATIO, LARGEST_FILTER = 2_000, 1 << 22
"""Rates whose ratio needs larger numbers are rounded: 0.03 % of pitch at most, not gigabytes of filter."""
RATES = range(1_000, 768_001)
"""Hz that sounds have; beyond, a header is damaged or lies, and resampling would take gigabytes."""
UNKNOWN_LENGTH = 1 << 62
"""libsndfile reports more frames than this where a file does not say how many it has."""
LOUDEST = 16.0
"""Full scale is 1; a float file far above it holds another unit."""
PREPARATION = {
    "channels": "mean",
    "resample": "torchaudio sinc, width 6, rolloff 0.99",
    "length": "cut or zeros at end",
}


class BadSound(ValueError):
    """A sound that gives no row; the message is the failed row's reason."""


@dataclass(frozen=True)
class Recording:
    """A sound file that is decoded when an encoder says how many seconds it needs."""

    path: Path

    def read(self, seconds: float) -> tuple[Float[np.ndarray, "C L"], int]:
        """The first `seconds` as float32 in [-1, 1], and their rate in Hz; see `decode`."""
        return decode(self.path, seconds)


def audio_split(root: Path, ids: Sequence[str], labels: np.ndarray) -> Split:
    """A split of sound files: ids are paths relative to `root`; a row opens as a `Recording`."""
    split = file_split(ids, labels, lambda key: root / key, Recording)
    return replace(split, files=SampleFolder(root, "sound"))


class _Stream(soundfile.SoundFile):
    """A file read from its beginning: without a length libsndfile can decode it, but not seek in it."""

    def seekable(self) -> bool:
        """Never: soundfile would seek after every read."""
        return False


def decode(path: Path, seconds: float) -> tuple[Float[np.ndarray, "C L"], int]:
    """The first `seconds` of a file, or all of a shorter one: float32 in [-1, 1], and the rate in Hz.

    Raises:
        BadSound: missing, empty, truncated, not audio, or a rate or size that no sound has.
    """
    missing = why_no_file(path)
    if missing:
        raise BadSound(missing)
    try:
        with _Stream(path) as file:
            rate, known = file.samplerate, file.frames < UNKNOWN_LENGTH
            wanted = min(file.frames, int(np.ceil(seconds * rate)))
            _check_rate(rate)
            _check_size(wanted, file.channels)
            samples = file.read(wanted, dtype="float32", always_2d=True)
            complete = file.format == "MP3" or len(samples) == wanted or not known
    except soundfile.LibsndfileError as error:
        raise BadSound(_reason(path, str(error))) from None
    cut = _missing_bytes(path)
    if cut or not complete:
        raise BadSound(f"truncated: {cut:,} bytes are missing" if cut else "truncated: ends too early")
    return np.ascontiguousarray(samples.T), rate


def _check_rate(rate: int) -> None:
    if rate not in RATES:
        raise BadSound(f"a rate of {rate:,} Hz; sounds have {RATES[0]:,} to {RATES[-1]:,}")


def _check_size(samples: int, channels: int) -> None:
    """Before anything is allocated: samples are read once and copied once, as float32."""
    needed = 2 * samples * channels * 4
    if needed > BUDGET:
        raise BadSound(f"{samples:,} samples in {channels} channels take {needed:,} bytes, over {BUDGET:,}")


def _reason(path: Path, message: str) -> str:
    if path.stat().st_size == 0:
        return "empty file"
    known = message.rpartition(": ")[2].strip().rstrip(".")
    return "not audio" if known == "Format not recognised" else f"damaged or not audio: {known[:100]}"


def _missing_bytes(path: Path) -> int:
    """Bytes that a RIFF file says it has beyond its end, which libsndfile passes over in silence.

    Writers into a pipe leave 0 or nearly 4 GiB in that place; it says nothing then.
    """
    with path.open("rb") as file:
        head = file.read(8)
    size = int.from_bytes(head[4:], "little")
    if head[:4] != b"RIFF" or size == 0 or size >= 0xFFFFFF00:
        return 0
    return max(0, size + 8 - path.stat().st_size)


def waveform(
    payload: Recording | tuple[Float[np.ndarray, "C L"], int],
    seconds: float,
    rate: int = RATE,
    *,
    pad: bool = True,
) -> Float[Tensor, "1 samples"]:
    """A payload as mono at `rate` Hz in [-1, 1], cut to `round(seconds * rate)` samples.

    Args:
        pad: add zeros at the end of what is shorter.

    Raises:
        BadSound: no samples, NaN or infinity, digital silence, another unit than [-1, 1], or no rate.
    """
    samples, found = payload.read(seconds + MARGIN) if isinstance(payload, Recording) else payload
    samples = np.asarray(samples, dtype=np.float32)
    _check_rate(found)
    needed = int(np.ceil((seconds + MARGIN) * found))
    mono = _checked(samples[..., :needed])
    if found != rate:
        mono = _resampler(found, rate)(mono)
    length = round(seconds * rate)
    missing = length - len(mono) if pad else 0
    return torch.nn.functional.pad(mono[:length], (0, max(0, missing)))[None]


def _checked(samples: np.ndarray) -> Float[Tensor, " samples"]:
    """The mean of the channels, if the samples can be used."""
    if samples.ndim != 2 or samples.size == 0:
        raise BadSound(
            "no samples" if samples.size == 0 else f"shape {samples.shape} instead of (channels, samples)"
        )
    if not np.isfinite(samples).all():
        raise BadSound("holds NaN or infinite samples")
    peak = float(np.abs(samples).max())
    if peak > LOUDEST:
        raise BadSound(f"samples reach {peak:.3g} where full scale is 1: another unit?")
    mono = torch.from_numpy(samples.mean(axis=0))
    if not mono.any():
        raise BadSound("digital silence: every sample is 0")
    return mono


@lru_cache(maxsize=32)
def _resampler(found: int, wanted: int) -> Resample:
    finest = min(FINEST_RATIO, math.isqrt(LARGEST_FILTER * wanted // found))
    ratio = Fraction(found, wanted).limit_denominator(finest)
    return Resample(max(1, ratio.numerator), ratio.denominator)
