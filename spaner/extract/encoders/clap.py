"""CLAP's audio tower as a second audio encoder, through transformers (open_clip carries no audio towers).

Needs the extra `spaner[clap]`. The clip is cut to `--audio-seconds`, never more than the model hears at
once, and then goes through the model's own feature extractor, which repeats short clips. Rows are the
projected embedding before normalisation; they depend on one clip only: the extractor's random crop and
random "longer" mark, which only clips beyond the model's length would need, never come into play.
Reads safetensors only. Carries no text tower.
"""

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spaner.cache.manifest import EncoderSpec
from spaner.device import DTYPES, device_of, encoder_precision
from spaner.errors import EncoderError
from spaner.extract.datasets.audio import PREPARATION, waveform
from spaner.extract.encoders.clip_weights import weights_sha256

EXAMPLE = "laion/clap-htsat-unfused"


def load(
    modality: str,
    *,
    model: str = "",
    weights: str,
    precision: str = "auto",
    device: str = "auto",
    seed: int = 0,
    audio_seconds: float = 5.0,
    **_: object,
) -> "ClapEncoder":
    """Load a CLAP audio tower.

    Args:
        model: with random weights, the folder whose config.json and preprocessor_config.json say what to
        build.
        weights: a folder as `save_pretrained` writes it, ORG/NAME on the hub, or "random" (seeded by `seed`).
        audio_seconds: length that clips are cut to.

    Raises:
        EncoderError: another modality, transformers missing, weights missing or unreadable, or more seconds
            than the model hears.
    """
    if modality != "audio":
        raise EncoderError(f"--encoder clap: none for {modality}; expected audio; type `--modality audio`")
    if find_spec("transformers") is None:
        raise EncoderError(
            "--encoder clap: transformers is not installed; expected the extra; type "
            '`pip install "spaner[clap]"`'
        )
    place = device_of(device)
    arithmetic = encoder_precision(precision, place)
    network, extractor, label = _read(model, weights, seed)
    heard = extractor.nb_max_samples / extractor.sampling_rate
    if not (math.isfinite(audio_seconds) and 0 < audio_seconds <= heard):
        raise EncoderError(
            f"--audio-seconds {audio_seconds:g}: this CLAP hears {heard:g} s; expected more than 0 and no "
            f"more than that; type `--audio-seconds {heard:g}`"
        )
    spec = EncoderSpec(
        name=f"clap/{network.config.audio_config.model_type}",
        weights=label,
        weights_sha256=weights_sha256(network),
        modality="audio",
        dim=network.config.projection_dim,
        preprocessing=_describe(extractor, audio_seconds),
        precision=arithmetic,
        logit_scale=round(float(network.logit_scale_a.detach().exp()), 4),
        synthetic=label == "random",
    )
    return ClapEncoder(network, extractor, spec, place)


def _read(model: str, weights: str, seed: int) -> tuple[Any, Any, str]:
    """The whole model, its feature extractor, and what to call the weights."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel  # type: ignore[import-not-found]

    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            source = _folder(model, "--model")
            network = ClapModel(ClapConfig.from_pretrained(source, local_files_only=True))
        label = "random"
    else:
        local = Path(weights).is_dir() or "/" not in weights
        source = _folder(weights, "--pretrained") if local else weights
        label = f"folder:{Path(weights).resolve().name}" if local else weights
        try:
            network = ClapModel.from_pretrained(source, use_safetensors=True, local_files_only=local)
        except Exception as error:  # the hub, the file and the model can each fail in any way
            raise EncoderError(
                f"--pretrained {weights}: no CLAP model in safetensors there: {_first_line(error)}; "
                "expected a folder "
                f"of save_pretrained() or a hub name such as {EXAMPLE}; type `--pretrained FOLDER`"
            ) from error
    extractor = ClapFeatureExtractor.from_pretrained(source)
    return network.eval().requires_grad_(False), extractor, label  # noqa: FBT003


def _folder(name: str, option: str) -> str:
    if not (Path(name) / "config.json").is_file():
        raise EncoderError(
            f"{option} {name}: no folder with config.json there; expected a CLAP model in the layout of "
            f"save_pretrained(), or a hub name such as {EXAMPLE}; type `--pretrained FOLDER`"
        )
    return name


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]


def _describe(extractor: Any, seconds: float) -> dict[str, Any]:
    """Everything between file and network, for the manifest."""
    own = {key: value for key, value in extractor.to_dict().items() if isinstance(value, int | float | str)}
    return {
        **PREPARATION,
        "length": "cut",
        "seconds": float(seconds),
        "rate": own["sampling_rate"],
        "clap": own,
    }


class ClapEncoder:
    """Mel spectrograms of one clip each -> (B, D)."""

    def __init__(self, network: Any, extractor: Any, spec: EncoderSpec, device: torch.device) -> None:
        self.spec, self.device, self.dtype = spec, device, DTYPES[spec.precision]
        self.extractor = extractor
        self.tower = network.audio_model.to(device, self.dtype)
        self.projection = network.audio_projection.to(device, self.dtype)

    def prepare(self, payload: Any, view: int, key: str, seed: int) -> Float[Tensor, "crops frames mels"]:
        """Mono at the model's rate, cut, then the model's own features; the same for every view.

        Raises:
            BadSound: see `audio.waveform`.
        """
        rate, seconds = self.extractor.sampling_rate, self.spec.preprocessing["seconds"]
        mono = waveform(payload, seconds, rate, pad=False)[0].numpy()
        return self.extractor(mono, sampling_rate=rate, return_tensors="pt")["input_features"][0].float()

    @torch.inference_mode()
    def encode(self, batch: Float[Tensor, "B crops frames mels"]) -> Float[Tensor, "B D"]:
        """Rows in float32 on the CPU, before normalisation."""
        longer = torch.zeros(len(batch), 1, dtype=torch.bool, device=self.device)
        pooled = self.tower(batch.to(self.device, self.dtype), is_longer=longer).pooler_output
        return self.projection(pooled).float().cpu()
