"""Images as tokens: what the first blocks of an open_clip image tower make of a picture.

A row is the activations after a block, the class token first, laid out flat: for ViT-B/16 197 x 768 numbers,
302,592 bytes a view in float16. Methods that learn inside the upper blocks read them instead of pixels. The
table of them is a table like any other, of a modality of its own: `image-block4/train`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spaner.cache.manifest import EncoderSpec
from spaner.errors import EncoderError
from spaner.extract.encoders.image_tower import BlockTower

PREFIX = "image-block"


def modality(block: int) -> str:
    """Of tables that hold tokens after a block."""
    return f"{PREFIX}{block}"


def block_of(spec: EncoderSpec) -> int | None:
    """The block after which a table's tokens were taken; None for embeddings."""
    told = spec.preprocessing.get("tokens")
    return int(told["after block"]) if isinstance(told, Mapping) else None  # of texts it names a tokenizer


class TokenEncoder:
    """Pictures -> (B, T * W).

    Args:
        images: open_clip's image encoder.
        block: after which block.

    Raises:
        EncoderError: an image tower of another kind, or a block that it does not have.
    """

    def __init__(self, images: Any, block: int) -> None:
        self.tower = BlockTower(images.tower, images.spec.name, images.spec.weights_sha256)
        if not 0 <= block < self.tower.depth:
            raise EncoderError(
                f"--tokens {block}: the image tower of {images.spec.name} has {self.tower.depth} blocks; "
                f"expected 0 to {self.tower.depth - 1}; MaPLe reads `--tokens 0`, MMA `--tokens 4`"
            )
        self.block, self.device = block, images.device
        self.prepare: Any = images.prepare
        told = {"after block": block, "tokens": self.tower.length, "width": self.tower.width}
        self.spec = replace(
            images.spec,
            dim=self.tower.length * self.tower.width,
            preprocessing=images.spec.preprocessing | {"tokens": told},
        )

    @torch.inference_mode()
    def encode(self, batch: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B D"]:
        """Rows in float32 on the CPU."""
        return self.tower.tokens(batch, self.block).flatten(1).float().cpu()
