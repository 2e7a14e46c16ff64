"""The encoder that a spec speaks of, built again and compared before a row is made with it.

A spec names the model and the weights, not where they lie: a configuration, weights file or tokenizer folder
is asked for by name. The weights are compared by hash, and so is every number of the preprocessing.
"""

from pathlib import Path
from typing import Any

from spaner.cache.manifest import EncoderSpec
from spaner.errors import EncoderError, Mismatch
from spaner.extract.encoders import encoder as encoders
from spaner.extract.encoders.encoder import Encoder
from spaner.extract.encoders.tokens import block_of


def rebuild(
    spec: EncoderSpec,
    what: str,
    *,
    model: str | None = None,
    weights: str | None = None,
    tokenizer: Path | None = None,
    precision: str | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Encoder:
    """Load the encoder of a spec.

    Args:
        what: begins every message: the table or run whose encoder it is.
        model, weights: where model or weights came from a file: that file.
        tokenizer: where a text encoder's tokenizer came from a folder: that folder.
        precision: default the spec's own.
        seed: of random weights.

    Raises:
        EncoderError: an encoder that spaner cannot run, or a file that must be named or does not exist.
        Mismatch: another encoder than the spec's; the line names the first field that differs.
    """
    registered, _, architecture = spec.name.partition("/")
    _check_named(spec, what, model, weights, tokenizer)
    encoder = encoders.load(
        registered,
        spec.modality,
        model=model or architecture,
        weights=weights or spec.weights,
        precision=precision or spec.precision,
        device=device,
        seed=seed,
        **_own_options(spec),
        **({"tokenizer": tokenizer} if tokenizer and spec.modality == "text" else {}),
    )
    for field, (there, here) in spec.same_encoder(encoder.spec).items():
        raise Mismatch(
            f"{what} was made by another encoder: {field} {there!r} there, {here!r} here; "
            "give the model and weights that made it"
        )
    return encoder


def _check_named(
    spec: EncoderSpec, what: str, model: str | None, weights: str | None, tokenizer: Path | None
) -> None:
    """Raise EncoderError for an encoder that is not ours, or where a file must be named and is not."""
    registered, _, architecture = spec.name.partition("/")
    if registered not in encoders.names():
        raise EncoderError(
            f"{what}: its rows came from {spec.name!r}, which spaner cannot run; expected one of "
            f"{', '.join(encoders.names())}; put your arrays in again"
        )
    if "@" in architecture and model is None:
        name = architecture.partition("@")[0]
        raise EncoderError(f"{what}: its model {name} was a config file; type `--model PATH/TO/CONFIG.json`")
    if spec.weights.startswith("file:") and weights is None:
        name = spec.weights.removeprefix("file:")
        raise EncoderError(f"{what}: its weights were the file {name}; type `--pretrained PATH/{name}`")
    if "tokenizer_sha256" in spec.preprocessing and tokenizer is None:
        raise EncoderError(f"{what}: its tokenizer was a folder; type `--tokenizer FOLDER`")


def _own_options(spec: EncoderSpec) -> dict[str, Any]:
    """What only some encoders are told, such as `--audio-seconds`, read back from the spec."""
    if spec.modality == "image":
        said = {n: spec.preprocessing[n] for n in ("crop_scale", "feature") if n in spec.preprocessing}
        return said | ({} if block_of(spec) is None else {"tokens": block_of(spec)})
    said = {"audio_mode": spec.mode} if spec.modality == "audio" else {}
    names = ("feature", "seconds", "range") if said else ()
    return said | {f"audio_{name}": spec.preprocessing[name] for name in names if name in spec.preprocessing}
