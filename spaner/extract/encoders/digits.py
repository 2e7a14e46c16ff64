"""The encoder of the embedded dataset: CLIP-style towers for 8x8 scans and for text, and a tone network.

`ImageTower` and `TextTower` share a 64-wide space, trained contrastively with a learned scale (as CLIP,
arXiv:2103.00020); `ToneTower` was trained alone, to tell telephone keys apart, and keeps a 48-wide space of
its own: the modality that joins later. Weights ship with the package; `digits_pretrain` makes them. Further
views of a digit have fixed random features instead of a tower (`digit_views`).

Meant for demonstrations, tests and first steps offline. Not an encoder for anything but digits and key tones.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from spaner.cache.manifest import EncoderSpec
from spaner.device import device_of, threads
from spaner.errors import EncoderError
from spaner.extract.datasets import dtmf
from spaner.extract.datasets.audio import PREPARATION, Recording, waveform
from spaner.extract.datasets.images import random_crop
from spaner.extract.encoders import digit_views
from spaner.extract.encoders.text_tower import Marks, PromptTower

WEIGHTS = Path(__file__).with_name("digits.safetensors")
DIM = 64
AUDIO_DIM = 48
SIDE = 8
TEXT_BYTES = 96
START, END, PAD = 256, 257, 258
FFT, HOP = 256, 128


class ImageTower(nn.Module):
    """Three convolutions over an 8x8 grey scan in [0, 1], then one linear map: (B, 1, 8, 8) -> (B, D)."""

    def __init__(self, dim: int = DIM) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, 24, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(24, 48, 3, stride=2, padding=1)
        self.project = nn.Linear(48 * 4, dim)

    def forward(self, scans: Float[Tensor, "B 1 8 8"]) -> Float[Tensor, "B D"]:
        hidden = F.gelu(self.conv1(scans - 0.5))
        hidden = F.gelu(self.conv2(hidden))
        hidden = F.gelu(self.conv3(hidden))
        return self.project(hidden.flatten(1))


class TextTower(nn.Module):
    """Convolutions over UTF-8 bytes, then mean and maximum over positions: every string has an embedding."""

    def __init__(self, dim: int = DIM, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(PAD + 1, 16)
        self.conv1 = nn.Conv1d(16, width, 5, padding=2)
        self.conv2 = nn.Conv1d(width, width, 3, padding=1)
        self.project = nn.Linear(2 * width, dim)

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B D"]:
        real = (tokens != PAD)[:, None]
        hidden = self.embed(tokens).mT * real
        hidden = F.gelu(self.conv1(hidden)) * real
        hidden = F.gelu(self.conv2(hidden)) * real
        mean = hidden.sum(2) / real.sum(2)
        peak = hidden.masked_fill(~real, -torch.inf).amax(2)
        return self.project(torch.cat([mean, peak], dim=1))


class ToneTower(nn.Module):
    """Log-spectrogram, two convolutions over time, a mean and a maximum: (B, L) at 8 kHz -> (B, 48)."""

    def __init__(self, dim: int = AUDIO_DIM, width: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(FFT // 2 + 1, width, 1)
        self.conv2 = nn.Conv1d(width, width, 3, padding=1)
        self.project = nn.Linear(2 * width, dim)
        self.window: Tensor
        self.register_buffer("window", torch.hann_window(FFT), persistent=False)

    def forward(self, waves: Float[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        spectrum = torch.stft(waves, FFT, HOP, window=self.window, return_complex=True).abs()
        # A clip's own mean is removed, so the level at which a key was recorded does not matter.
        level = torch.log(spectrum + 1e-4)
        hidden = F.gelu(self.conv1(level - level.mean((1, 2), keepdim=True)))
        hidden = F.gelu(self.conv2(hidden))
        return F.gelu(self.project(torch.cat([hidden.mean(2), hidden.amax(2)], dim=1)))


def tokens(text: str) -> Int[Tensor, " T"]:
    """UTF-8 bytes between a start and an end mark, padded to a fixed length; longer texts are cut."""
    body = list(text.encode()[: TEXT_BYTES - 2])
    marks = [START, *body, END]
    return torch.tensor(marks + [PAD] * (TEXT_BYTES - len(marks)))


def scan(image: Image.Image) -> Float[Tensor, "1 8 8"]:
    """Grey levels in [0, 1], reduced to 8x8 where the picture is larger."""
    grey = image.convert("L")
    if grey.size != (SIDE, SIDE):
        grey = grey.resize((SIDE, SIDE), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(grey, dtype=np.float32) / 255)[None]


def shifted(image: Float[Tensor, "1 8 8"], key: str, view: int, seed: int) -> Float[Tensor, "1 8 8"]:
    """View 0 is the scan as it is; the others move it by up to one pixel, purely by (key, view, seed)."""
    if view == 0:
        return image
    left, top, _ = random_crop(key, view, seed, (2, 2))
    return F.pad(image, (1, 1, 1, 1))[:, top : top + SIDE, left : left + SIDE]


class DigitsImageEncoder:
    """Pictures -> (B, 64)."""

    def __init__(self, tower: nn.Module, spec: EncoderSpec) -> None:
        self.spec = spec
        self.tower = tower

    def prepare(self, payload: Image.Image, view: int, key: str, seed: int) -> Float[Tensor, "1 8 8"]:
        """Grey, 8x8, view above 0 shifted."""
        return shifted(scan(payload), key, view, seed)

    @torch.inference_mode()
    def encode(self, batch: Float[Tensor, "B 1 8 8"]) -> Float[Tensor, "B D"]:
        """Raw rows, float32, on the CPU."""
        return _rows(self.tower, batch)


class DigitsTextEncoder:
    """Strings -> (B, 64)."""

    def __init__(self, tower: nn.Module, spec: EncoderSpec) -> None:
        self.spec = spec
        self.tower = tower

    def prepare(self, payload: str, view: int, key: str, seed: int) -> Int[Tensor, " T"]:
        """Bytes of the string; text has no random views."""
        return tokens(payload)

    @torch.inference_mode()
    def encode(self, batch: Int[Tensor, "B T"]) -> Float[Tensor, "B D"]:
        """Raw rows, float32, on the CPU."""
        return _rows(self.tower, batch)


class ToneEncoder:
    """Sounds -> (B, 48)."""

    def __init__(self, tower: nn.Module, spec: EncoderSpec) -> None:
        self.spec = spec
        self.tower = tower

    def prepare(
        self, payload: Recording | tuple[Float[np.ndarray, "C L"], int], view: int, key: str, seed: int
    ) -> Float[Tensor, " samples"]:
        """Half a second of mono at 8 kHz; sound has no random views."""
        return waveform(payload, dtmf.CLIP_SECONDS, dtmf.RATE)[0]

    @torch.inference_mode()
    def encode(self, batch: Float[Tensor, "B samples"]) -> Float[Tensor, "B D"]:
        """Raw rows, float32, on the CPU."""
        return _rows(self.tower, batch)


def _rows(tower: nn.Module, batch: Tensor) -> Tensor:
    """On one thread: a second one costs more than it saves, and its share of a sum changes the last bits."""
    device = next(tower.parameters()).device
    with threads(0, device):
        return tower(batch.to(device)).cpu()


PREPROCESSING: dict[str, dict[str, Any]] = {
    "image": {
        "mode": "grey",
        "side": SIDE,
        "resize": "box",
        "range": [0, 1],
        "views": "shift of at most 1 px",
    },
    "text": {"tokens": "UTF-8 bytes", "length": TEXT_BYTES},
    "audio": {"rate": dtmf.RATE, "seconds": dtmf.CLIP_SECONDS, "fft": FFT, "hop": HOP, **PREPARATION},
}
PARTS: dict[
    str, tuple[type[nn.Module], type[DigitsImageEncoder] | type[DigitsTextEncoder] | type[ToneEncoder], int]
] = {
    "image": (ImageTower, DigitsImageEncoder, DIM),
    "text": (TextTower, DigitsTextEncoder, DIM),
    "audio": (ToneTower, ToneEncoder, AUDIO_DIM),
}


def load(
    modality: str,
    *,
    weights: str = "shipped",
    precision: str = "auto",
    device: str = "auto",
    seed: int = 0,
    **_: object,
) -> DigitsImageEncoder | DigitsTextEncoder | ToneEncoder | digit_views.RandomFeatures:
    """Load one of the three towers with the shipped weights, or with random ones (by name only, seeded), or
    the random features of a further view.

    Args:
        weights: "random", or anything that the other encoders default to ("openai", "shipped").

    Raises:
        EncoderError: a modality, weights or a precision that this encoder does not have.
    """
    _check(modality, weights, precision)
    if modality in digit_views.VIEWS:  # not trained at all, so there is nothing to ship
        return digit_views.load(modality, seed=seed if weights == "random" else 0)
    place = device_of(device)
    tower_class, encoder_class, dim = PARTS[modality]
    tensors = random_tensors(seed) if weights == "random" else load_file(WEIGHTS)
    tower = tower_class()
    prefix = f"{modality}."
    tower.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    spec = EncoderSpec(
        name="digits",
        weights="random" if weights == "random" else "shipped",
        weights_sha256=tensors_sha256(tensors),
        modality=modality,
        dim=dim,
        preprocessing=PREPROCESSING[modality],
        precision="float32",
        logit_scale=None if modality == "audio" else float(tensors["logit_scale"].exp()),
        synthetic=weights == "random",
    )
    return encoder_class(tower.requires_grad_(requires_grad=False).eval().to(place), spec)


def text_tower(
    *, weights: str = "shipped", precision: str = "auto", device: str = "auto", seed: int = 0, **_: object
) -> PromptTower:
    """The text tower for methods that send gradients through it. It looks both ways, so it runs whole.

    Raises:
        EncoderError: what `load` raises.
    """
    loaded: Any = load("text", weights=weights, precision=precision, device=device, seed=seed)
    tower = loaded.tower
    marks = Marks(START, END, PAD, ord("X"))
    sha256 = loaded.spec.weights_sha256
    return PromptTower(tower, tower, tower.embed, _bytes, marks, TEXT_BYTES, None, sha256)


def _bytes(text: str) -> list[int]:
    return list(text.encode())


def _check(modality: str, weights: str, precision: str) -> None:
    known = [*PARTS, *digit_views.VIEWS]
    if modality not in known:
        raise EncoderError(f"--encoder digits: no encoder for {modality}; expected {', '.join(known)}")
    if weights not in ("shipped", "openai", "random"):
        raise EncoderError(
            f"--pretrained {weights}: the digits encoder has only its own weights; "
            "expected shipped or random; leave --pretrained out"
        )
    if precision not in ("auto", "float32"):
        raise EncoderError(
            f"--precision {precision}: the digits encoder computes in float32; type `--precision auto`"
        )


def random_tensors(seed: int) -> dict[str, Tensor]:
    """Untrained weights of all three towers, and CLIP's initial logit scale of 1 / 0.07."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        towers = {modality: parts[0]().state_dict() for modality, parts in PARTS.items()}
    named = {
        f"{modality}.{name}": value for modality, state in towers.items() for name, value in state.items()
    }
    return named | {"logit_scale": torch.tensor(1 / 0.07).log()}


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the sorted tensors: name, type, shape and bytes, whatever the file format."""
    total = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode() + value.numpy().tobytes())
    return total.hexdigest()
