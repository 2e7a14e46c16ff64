"""What the page sees of a sample: a small picture, a short sound, the outline of a wave.

Everything is decoded as extraction decodes it and encoded again, so that no byte of a stranger's file reaches
the browser: what is no picture and no sound is not shown, whatever it is called.
"""

import io
from functools import lru_cache
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float
from PIL import Image

from spaner.errors import SpanerError
from spaner.extract.datasets import images
from spaner.extract.datasets.audio import Recording
from spaner.search.indexed import Index

THUMBNAIL, PICTURE = 288, 1200
"""Pixels of the longer side."""

SECONDS = 10.0
BARS = 56
KEPT = 2048
"""Thumbnails that stay in memory."""


class Unseen(Exception):
    """A sample that cannot be shown; the message says why."""


class Gallery:
    """Shows the rows of one index."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.thumbnail = lru_cache(KEPT)(lambda row: self._picture(row, THUMBNAIL))

    def picture(self, row: int) -> tuple[str, bytes]:
        """The row's picture, its longer side at most `PICTURE`."""
        return self._picture(row, PICTURE)

    def _picture(self, row: int, side: int) -> tuple[str, bytes]:
        payload = self._payload(row)
        if not isinstance(payload, Image.Image):
            raise Unseen("no picture")
        payload.thumbnail((side, side))
        small = max(payload.size) <= 64
        out = io.BytesIO()
        payload.save(out, "PNG") if small else payload.save(out, "JPEG", quality=84)
        return "image/png" if small else "image/jpeg", out.getvalue()

    def sound(self, row: int) -> tuple[str, bytes]:
        """The first seconds of the row's sound as WAV, 16 bit."""
        samples, rate = self._samples(row)
        out = io.BytesIO()
        soundfile.write(out, samples.T, rate, format="WAV", subtype="PCM_16")
        return "audio/wav", out.getvalue()

    def bars(self, row: int) -> list[float]:
        """The sound's outline: the peak of each of `BARS` stretches, 0 to 1."""
        samples, _ = self._samples(row)
        mono = np.abs(samples).max(axis=0)
        peaks = np.array([part.max(initial=0) for part in np.array_split(mono, BARS)])
        return [round(float(p), 3) for p in peaks / max(float(peaks.max()), 1e-9)]

    def _samples(self, row: int) -> tuple[Float[np.ndarray, "C L"], int]:
        payload = self._payload(row)
        if isinstance(payload, Recording):
            try:
                return payload.read(SECONDS)
            except ValueError as error:
                raise Unseen(str(error)) from None
        if not isinstance(payload, tuple):
            raise Unseen("no sound")
        samples, rate = payload
        return samples[:, : int(SECONDS * rate)], rate

    def _payload(self, row: int) -> Any:
        if not 0 <= row < len(self.index):
            raise Unseen("no such row")
        try:
            with images.quiet():
                return self.index.payload(row)
        except (SpanerError, ValueError, OSError) as error:
            raise Unseen(str(error)) from None
