"""The frozen text tower of a cache's encoder, for methods that learn prompts: built here, handed to `align`.

`align` trains from a cache alone and never imports `extract`; a method that says `needs_tower` gets its tower
from the command. The weights are compared by hash before a step is taken (`align.methods.prompting`).
"""

from pathlib import Path
from typing import Any

from spaner.errors import EncoderError


def tower_beside(cache: Path, method: str, device: str, model: str | None, weights: str | None) -> Any:
    """The text tower of the cache's encoder if the method needs one, else None.

    Args:
        model, weights: where the encoder came from a config file or a checkpoint file.

    Raises:
        EncoderError: an encoder without such a tower, or a file that must be named.
    """
    from spaner import cache as caches
    from spaner.align.methods import method as methods

    if not getattr(methods.method(method), "needs_tower", False):
        return None
    from spaner.extract.encoders import encoder

    with caches.open(cache) as opened:
        table = next((name for name in opened.tables() if name.startswith("text/")), None)
        if table is None:
            raise EncoderError(f"{cache}: no table of texts; expected text/...; type `spaner extract`")
        manifest = opened.table(table).manifest
    spec = manifest.encoder
    registered, _, architecture = spec.name.partition("/")
    if "@" in architecture and model is None:
        raise EncoderError(
            f"{cache}: the model of its texts, {architecture.partition('@')[0]}, was a config file; "
            "type `--text-model PATH/TO/CONFIG.json`"
        )
    if spec.weights.startswith("file:") and weights is None:
        raise EncoderError(
            f"{cache}: its texts were embedded with the weights {spec.weights[5:]}; type `--text-weights "
            f"PATH/{spec.weights[5:]}`"
        )
    return encoder.text_tower(
        registered,
        model=model or architecture,
        weights=weights or spec.weights,
        device=device,
        seed=manifest.seed,
    )
