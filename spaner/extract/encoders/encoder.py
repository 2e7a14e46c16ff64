"""Encoders: what one must offer, and the registry that finds it by name.

An entry is "module:attr", a function `load(modality, *, model, weights, precision, device, seed, …) ->
Encoder`; it ignores what it does not need (`**_`). Packages add their own under the entry-point group
`spaner.encoders`. Built-in and foreign entries are loaded alike, when first asked for, and every one must
pass `tests/extract/test_encoder_contract.py`.
"""

from collections.abc import Callable
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from spaner import registry
from spaner.cache.manifest import EncoderSpec
from spaner.errors import EncoderError

ENCODERS: dict[str, str] = {
    "clap": "spaner.extract.encoders.clap:load",
    "digits": "spaner.extract.encoders.digits:load",
    "esresnext": "spaner.extract.encoders.esresnext:load",
    "open_clip": "spaner.extract.encoders.clip:load",
}

TEXT_TOWERS: dict[str, str] = {
    "digits": "spaner.extract.encoders.digits:text_tower",
    "open_clip": "spaner.extract.encoders.clip:text_tower",
}
"""Functions `text_tower(*, model, weights, precision, device, seed, …) -> PromptTower`; packages add theirs
under `spaner.text_towers`."""


class Encoder(Protocol):
    """A frozen encoder of one modality: a row depends on a payload and `spec`, never on its neighbours."""

    spec: EncoderSpec

    def prepare(self, payload: Any, view: int, key: str, seed: int) -> Tensor:
        """One view of one payload as a CPU tensor: pure in its arguments, called from many threads.

        Views above 0 are random; they draw from `key` (the sample's id), `view` and `seed` alone. A
        payload that cannot be used raises a plain exception, whose first line becomes the failed row's
        reason.
        """
        ...

    def encode(self, batch: Tensor) -> Float[Tensor, "B D"]:
        """Rows of a stacked batch, float32 on the CPU, not normalised."""
        ...


def names() -> list[str]:
    """Every registered encoder, built in or from an installed package."""
    return registry.names(ENCODERS, "encoder")


def load(
    name: str,
    modality: str,
    *,
    model: str = "ViT-B-16",
    weights: str = "openai",
    precision: str = "auto",
    device: str = "auto",
    seed: int = 0,
    **options: Any,
) -> Encoder:
    """Load the encoder `name` for `modality` ("image", "text", "audio").

    Args:
        weights: a pretrained tag, a checkpoint file, or "random" (seeded by `seed`).
        precision: auto, float32, bfloat16 or float16.
        options: what only some encoders know, e.g. `audio_seconds`.

    Raises:
        EncoderError: unknown name, model or weights, or nothing to load them from.
    """
    factory: Callable[..., Encoder] = registry.load(ENCODERS, "encoder", name, EncoderError)
    settings = {"model": model, "weights": weights, "precision": precision, "device": device, "seed": seed}
    return factory(modality, **settings, **options)


def text_tower(name: str, **options: Any) -> Any:
    """The text tower of the encoder `name`, frozen, through which gradients can go.

    Args:
        options: model, weights, precision, device and seed, as for `load`.

    Raises:
        EncoderError: an encoder whose text tower cannot be prompted, or what `load` raises.
    """
    return registry.load(TEXT_TOWERS, "text_tower", name, EncoderError)(**options)
