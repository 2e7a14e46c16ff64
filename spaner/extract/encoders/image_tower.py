"""A frozen image tower with gradients: pictures -> tokens after any block -> embeddings.

    tokens = tower.tokens(pictures, block=4)           (B, T, W), the class token first
    rows = tower(tokens, first=4, touch=adapters)      (B, D)

Tokens after block k are what k of open_clip's residual blocks made of a picture; after block 0 they are
patches with positions and the norm in front of the blocks, if there is one. A method reaches into the blocks
by a `Touch`: more tokens, other tokens, something beside the MLP. The last block computes what is pooled.

Needs a plain vision transformer of open_clip, frozen. Trains no weight of the tower, and knows no method.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spaner.errors import EncoderError
from spaner.extract.encoders.packed import Touch, finished


class BlockTower(nn.Module):
    """The image side of an open_clip model, block by block.

    Args:
        visual: open_clip's tower.
        name: of the encoder, for messages.
        sha256: of the encoder's weights: who trains from a cache compares it.

    Raises:
        EncoderError: not a plain vision transformer.
    """

    def __init__(self, visual: nn.Module, name: str, sha256: str) -> None:
        # six seconds of import, and whoever plans an extraction imports this file
        from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

        super().__init__()
        self.visual: Any = visual
        self.name, self.sha256 = name, sha256
        blocks = getattr(getattr(visual, "transformer", None), "resblocks", [None])
        if type(visual) is not VisionTransformer or any(
            type(b) is not ResidualAttentionBlock for b in blocks
        ):
            raise EncoderError(
                f"{name}: the blocks of its image tower, {type(visual).__name__}, cannot be entered; "
                "expected a plain vision transformer; extract with one, such as --model ViT-B-16"
            )

    @property
    def device(self) -> torch.device:
        return self.visual.conv1.weight.device

    @property
    def width(self) -> int:
        """Of a token."""
        return self.visual.class_embedding.shape[0]

    @property
    def depth(self) -> int:
        """How many blocks there are."""
        return len(self.visual.transformer.resblocks)

    @property
    def length(self) -> int:
        """Tokens of a picture: the class token and the patches."""
        return self.visual.positional_embedding.shape[0]

    @torch.no_grad()
    def tokens(self, pictures: Float[Tensor, "B 3 height width"], block: int) -> Float[Tensor, "B T W"]:
        """Activations after `block` blocks."""
        x = self.visual._embeds(pictures.to(self.device, self.visual.conv1.weight.dtype))
        return self.between(x, 0, block)

    def between(self, tokens: Float[Tensor, "B T W"], first: int, block: int) -> Float[Tensor, "B T W"]:
        """Tokens after `first` blocks -> tokens after `block` blocks, untouched."""
        x = tokens.to(self.device, self.visual.conv1.weight.dtype)
        for resblock in self.visual.transformer.resblocks[first:block]:
            x = resblock(x)
        return x

    def normed(self, vectors: Float[Tensor, "B M W"]) -> Float[Tensor, "B M W"]:
        """Vectors that join the tokens behind block 0, as the norm in front of the blocks leaves them."""
        return self.visual.ln_pre(vectors)

    def forward(
        self,
        tokens: Float[Tensor, "B T W"],
        first: int = 0,
        touch: Touch | None = None,
        *,
        recompute: bool = False,
    ) -> Float[Tensor, "B D"]:
        """Embeddings, not normalised, of tokens after `first` blocks.

        Args:
            recompute: keep a block's input alone for the gradient, and compute the block again.
        """
        x = tokens.to(self.device, self.visual.conv1.weight.dtype)
        blocks = self.visual.transformer.resblocks
        for number in range(first, len(blocks)):
            only = self._pools_first and number == len(blocks) - 1
            if recompute:
                x = checkpoint(_through, blocks[number], x, touch, number, only, use_reentrant=False)
            else:
                x = _through(blocks[number], x, touch, number, only)
        pooled, _ = self.visual._pool(x)
        return pooled if self.visual.proj is None else pooled @ self.visual.proj

    @property
    def _pools_first(self) -> bool:
        """Whether the embedding is made of the first token alone, so that the last block needs no other."""
        return self.visual.attn_pool is None and self.visual.pool_type == "tok"


def _through(
    block: Any,
    x: Float[Tensor, "B T W"],
    touch: Touch | None,
    number: int,
    only: bool,  # noqa: FBT001
) -> Float[Tensor, "B T W"]:
    """One residual block; of the first token alone with `only`."""
    if touch is not None:
        x = touch.enter(number, x)
    normed = block.ln_1(x)
    asking = normed[:, :1] if only else normed
    seen = block.attn(asking, normed, normed, need_weights=False)[0]
    rows = (x[:, :1] if only else x) + block.ls_1(seen)
    return finished(block, rows, asking, touch, number)
