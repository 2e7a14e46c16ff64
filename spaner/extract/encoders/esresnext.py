"""The ESResNeXt-fbsp audio encoder: sounds in, 2048 features or the head's output out.

`mode="eval"` is the default: 16-bit range as the network was trained with, running statistics, rows
independent of their neighbours. `mode="lin2023"` reproduces the features of Lin et al. (CVPR 2023,
arXiv:2301.06267): waveforms left in [-1, 1] (90 dB too quiet), batch statistics of ten clips in listing
order, AudioCLIP's 1024-d head. Such rows depend on their batch; the mode is in the spec, and comparisons
between modes are refused. Needs a published checkpoint, or weights asked for as "random". Downloads nothing,
normalises nothing.
"""

import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spaner.cache.manifest import EncoderSpec
from spaner.device import DTYPES, device_of, encoder_precision
from spaner.errors import EncoderError
from spaner.extract.datasets.audio import PREPARATION, RATE, waveform
from spaner.extract.encoders.clip_weights import weights_sha256
from spaner.extract.encoders.esresnext_fused import FusedTrunk
from spaner.extract.encoders.esresnext_network import ESResNeXtFBSP
from spaner.extract.encoders.esresnext_weights import PUBLISHED, load_esresnext

SCALES = {"int16": 32768.0, "unit": 1.0}
MODES = {"eval": ("pooled", "int16"), "lin2023": ("head", "unit")}  # mode -> feature and range
LIN_BATCH = 10
CLIPS_AT_ONCE = 4  # keeps the stem's activations (9 MB per clip) near the processor's cache


def load(
    modality: str,
    *,
    weights: str,
    precision: str = "auto",
    device: str = "auto",
    seed: int = 0,
    audio_feature: str | None = None,
    audio_seconds: float = 5.0,
    audio_mode: str = "eval",
    audio_range: str | None = None,
    **_: object,
) -> "AudioEncoder":
    """Load ESResNeXt-fbsp as an encoder.

    Args:
        weights: a checkpoint file, or "random" (seeded by `seed`, marked synthetic).
        precision: of the trunk; the front end stays in float32. "auto" is float32 on a CPU, where bfloat16
            moves features by 1 % of their length, and in mode lin2023, where it moves them by 5 %.
        audio_feature: "pooled" (2048) or "head"; None: what the mode says.
        audio_seconds: length that clips are cut or padded to.
        audio_mode: "eval" or "lin2023".
        audio_range: "int16" or "unit"; None: what the mode says.

    Raises:
        EncoderError: another modality, an option without meaning, or weights that are missing or do not fit.
    """
    if modality != "audio":
        raise EncoderError(
            f"--encoder esresnext: no encoder for {modality}; expected audio; type --modality audio"
        )
    choices = _choices(audio_mode, audio_feature, audio_range)
    if not (math.isfinite(audio_seconds) and round(audio_seconds * RATE) >= 1):
        raise EncoderError(f"--audio-seconds {audio_seconds}: expected more than 0; type `--audio-seconds 5`")
    place = device_of(device)
    exact = precision == "auto" and (place.type == "cpu" or audio_mode == "lin2023")
    arithmetic = "float32" if exact else encoder_precision(precision, place)
    model, label = _model(weights, seed)
    return AudioEncoder(
        model.to(place), describe(model, label, arithmetic, audio_mode, choices, audio_seconds)
    )


def describe(
    model: ESResNeXtFBSP, label: str, precision: str, mode: str, choices: tuple[str, str], seconds: float
) -> EncoderSpec:
    """The spec of a network used in `mode`; `choices` are feature and range, `label` names the weights."""
    feature, scale = choices
    preprocessing = {
        "rate": RATE,
        "seconds": float(seconds),
        "range": scale,
        "feature": feature,
        **PREPARATION,
    }
    if mode == "lin2023":
        preprocessing["batch"] = {"size": LIN_BATCH, "order": "as listed", "statistics": "of the batch"}
    return EncoderSpec(
        name="esresnext",
        weights=label,
        weights_sha256=weights_sha256(model),
        modality="audio",
        dim=model.fc.in_features if feature == "pooled" else model.fc.out_features,
        preprocessing=preprocessing,
        precision=precision,
        mode=mode,
        synthetic=label == "random",
    )


def _choices(mode: str, feature: str | None, scale: str | None) -> tuple[str, str]:
    """Feature and range, where the mode leaves a choice."""
    if mode not in MODES:
        raise EncoderError(f"--audio-mode {mode}: unknown; expected eval or lin2023; leave it out for eval")
    own_feature, own_scale = MODES[mode]
    for option, value, known, own in (
        ("--audio-feature", feature, ("pooled", "head"), own_feature),
        ("--audio-range", scale, tuple(SCALES), own_scale),
    ):
        if value is not None and value not in known:
            raise EncoderError(
                f"{option} {value}: unknown; expected {' or '.join(known)}; leave it out for {own}"
            )
        if mode == "lin2023" and value not in (None, own):
            raise EncoderError(
                f"{option} {value}: not with --audio-mode lin2023, which means {own}; leave one of the two "
                "out"
            )
    return feature or own_feature, scale or own_scale


def _model(weights: str, seed: int) -> tuple[ESResNeXtFBSP, str]:
    """The network, and what to call its weights."""
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return ESResNeXtFBSP().requires_grad_(requires_grad=False).eval(), "random"
    path = Path(weights)
    if not path.is_file():
        raise EncoderError(
            f"--pretrained {weights}: no such file, and audio weights are not downloaded; expected a "
            "published "
            f"checkpoint ({PUBLISHED}, from the releases of AudioCLIP and ESResNeXt-fbsp on GitHub); type "
            "`--pretrained FILE`, or `--pretrained random` for rows without meaning"
        )
    return load_esresnext(path).requires_grad_(requires_grad=False), f"file:{path.name}"


class AudioEncoder:
    """Waveforms of fixed length -> (B, D).

    Attributes:
        fixed_batch: rows that must be encoded together, in listing order; None where rows are independent.
    """

    def __init__(self, model: ESResNeXtFBSP, spec: EncoderSpec) -> None:
        self.model, self.spec = model, spec
        self.seconds: float = spec.preprocessing["seconds"]
        self.scale = SCALES[spec.preprocessing["range"]]
        self.head = spec.preprocessing["feature"] == "head"
        self.fixed_batch = LIN_BATCH if spec.mode == "lin2023" else None
        self.dtype = DTYPES[spec.precision]
        self.trunk = None if self.fixed_batch else FusedTrunk(model, self.dtype)

    def prepare(self, payload: Any, view: int, key: str, seed: int) -> Float[Tensor, "1 samples"]:
        """Mono at 44.1 kHz, cut or padded, in the range that the network is fed; the same for every view.

        Raises:
            BadSound: see `audio.waveform`.
        """
        return waveform(payload, self.seconds) * self.scale

    @torch.inference_mode()
    def encode(self, batch: Float[Tensor, "B 1 samples"]) -> Float[Tensor, "B D"]:
        """Rows in float32 on the CPU; in mode lin2023, ten at a time with the statistics of their batch.

        Raises:
            EncoderError: a batch of one clip in mode lin2023.
        """
        parts = batch.split(self.fixed_batch or CLIPS_AT_ONCE)
        features = torch.cat([self._features(part.to(self.model.window.device)) for part in parts])
        return (self.model.fc(features) if self.head else features).cpu()

    def _features(self, part: Float[Tensor, "B 1 samples"]) -> Float[Tensor, "B 2048"]:
        if self.trunk is not None:
            return self.trunk(self.model.image(part)[:, 0])
        if len(part) < 2:
            raise EncoderError(
                "--audio-mode lin2023: a batch of one clip has no statistics; expected batches of "
                f"{LIN_BATCH} with at least 2 clips in the last; leave the mode out, or add a clip"
            )
        self.model.train()
        with torch.autocast(part.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.model.features(part).float()
