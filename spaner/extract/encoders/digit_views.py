"""Encoders of the further views of a written digit: table, strokes, path, speech and Morse keying.

Each is a few fixed steps that anybody could check, then *fixed random features*: one random linear map and a
ReLU or a cosine, drawn once from a seed and never trained (Rahimi & Recht, "Random Features for Large-Scale
Kernel Machines", 2007). So nothing here has seen a label or a scan: what the views know of digits, they know
by what they are. Spaces are as wide as their number of features, which differs from view to view.

    table     64 intensities -> 40 ReLU features
    strokes   the mean over points of 32 Fourier features: a kernel mean, blind to the points' order
    path      16 points evenly along the path, their steps too -> 36 ReLU features
    speech    20 mel bands in four quarters of the clip, the clip's own mean removed -> 56 ReLU features
    morse     logarithms of 9 durations -> 24 ReLU features
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from spaner.cache.manifest import EncoderSpec
from spaner.extract.datasets import speech
from spaner.extract.datasets.audio import PREPARATION, waveform
from spaner.extract.datasets.strokes import evenly

POINTS, STEPS, BANDS, QUARTERS = 32, 16, 20, 4
FFT, HOP = 256, 128


@dataclass(frozen=True)
class View:
    """How one view becomes numbers, and how many random features are drawn of them."""

    numbers: Callable[[Any], Float[Tensor, "*n W"]]
    width: int
    dim: int
    scale: float
    activation: str
    preprocessing: dict[str, Any]


def table_numbers(payload: Float[np.ndarray, "64"]) -> Float[Tensor, "64"]:
    """Intensities in [0, 1] around the middle."""
    found = torch.as_tensor(np.array(payload, np.float32))
    if found.shape != (64,):
        raise ValueError(f"shape {tuple(found.shape)} instead of 64 numbers")
    return found - 0.3


def stroke_numbers(payload: Float[np.ndarray, "K 2"]) -> Float[Tensor, "P 2"]:
    """`POINTS` of the points; where there are fewer, some twice."""
    rows = np.linspace(0, len(payload) - 1, POINTS).round().astype(int)
    return torch.from_numpy(np.array(payload, np.float32)[rows])


def path_numbers(payload: Float[np.ndarray, "K 2"]) -> Float[Tensor, " W"]:
    """Evenly spaced points around the middle of the scan, and the steps between them."""
    walk = evenly(np.asarray(payload, np.float32), STEPS)
    steps = np.diff(walk, axis=0) * STEPS / 4
    return torch.from_numpy(np.concatenate([(walk - 0.5).ravel(), steps.ravel()]).astype(np.float32))


def speech_numbers(payload: Any) -> Float[Tensor, " W"]:
    """Log mel bands, the mean over each quarter of the clip; a clip's own mean is removed, so its level does
    not matter."""
    wave = waveform(payload, speech.CLIP_SECONDS, speech.RATE)[0]
    power = torch.stft(wave, FFT, HOP, window=torch.hann_window(FFT), return_complex=True).abs().square()
    bands = torch.log(_mel() @ power + 1e-8)
    quarters = torch.stack([part.mean(1) for part in bands.tensor_split(QUARTERS, dim=1)])
    return ((quarters - quarters.mean()) / 4).flatten()


@cache
def _mel() -> Float[Tensor, "BANDS F"]:
    """Triangles, evenly spaced in mel from 80 Hz to 3.8 kHz."""
    mel = torch.linspace(2595 * np.log10(1 + 80 / 700), 2595 * np.log10(1 + 3800 / 700), BANDS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    hertz = torch.linspace(0, speech.RATE / 2, FFT // 2 + 1)
    rising = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)


def morse_numbers(payload: Float[np.ndarray, "9"]) -> Float[Tensor, "9"]:
    """Logarithms of the durations around their mean: the speed of the hand does not matter."""
    logs = torch.from_numpy(np.array(payload, np.float32)).log()
    return logs - logs.mean()


VIEWS: dict[str, View] = {
    "table": View(table_numbers, 64, 40, 1.0, "relu", {"numbers": 64, "range": [0, 1]}),
    "strokes": View(stroke_numbers, 2, 32, 7.0, "cosine", {"points": POINTS, "pooling": "mean"}),
    "path": View(path_numbers, 4 * STEPS - 2, 36, 1.0, "relu", {"points": STEPS, "spacing": "even"}),
    "speech": View(
        speech_numbers,
        BANDS * QUARTERS,
        56,
        1.0,
        "relu",
        {
            "rate": speech.RATE,
            "seconds": speech.CLIP_SECONDS,
            "bands": BANDS,
            "parts": QUARTERS,
            **PREPARATION,
        },
    ),
    "morse": View(morse_numbers, 9, 24, 1.0, "relu", {"durations": 9, "scale": "log"}),
}


class RandomFeatures:
    """A view's numbers -> (B, D) random features, the same for ever for one seed."""

    def __init__(self, view: View, modality: str, seed: int) -> None:
        self.view = view
        draw = np.random.default_rng([seed, *modality.encode()])
        self.weight = torch.from_numpy(draw.normal(0, view.scale, (view.width, view.dim)).astype(np.float32))
        turn = np.pi if view.activation == "cosine" else 0.5
        self.bias = torch.from_numpy(draw.uniform(-turn, turn, view.dim).astype(np.float32))
        self.spec = EncoderSpec(
            name="digits/random-features",
            weights=f"random features, seed {seed}",
            weights_sha256=hashlib.sha256(
                self.weight.numpy().tobytes() + self.bias.numpy().tobytes()
            ).hexdigest(),
            modality=modality,
            dim=view.dim,
            preprocessing={**view.preprocessing, "features": view.activation},
            precision="float32",
        )

    def prepare(self, payload: Any, view: int, key: str, seed: int) -> Float[Tensor, "*n W"]:
        """The view's numbers; there are no random views."""
        return self.view.numbers(payload)

    @torch.inference_mode()
    def encode(self, batch: Float[Tensor, "B *n W"]) -> Float[Tensor, "B D"]:
        """Raw rows, float32, on the CPU; of a set of points the mean."""
        found = batch @ self.weight + self.bias
        if self.view.activation == "cosine":
            return torch.cos(found).mean(1)
        return torch.relu(found)


def load(modality: str, *, seed: int = 0) -> RandomFeatures:
    """The encoder of a view; the weights depend on nothing but the view and the seed.

    Raises:
        KeyError: no such view.
    """
    return RandomFeatures(VIEWS[modality], modality, seed)
