"""The aligner as one would write it first: `nn.MultiheadAttention` over [x; S] for every sample.

The tests hold `spaner.align.methods.attention` equal to it; the benchmarks measure against it.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ConcatenatedAligner(nn.Module):
    """Same parameters, names and options as `AttentionAligner`; (P + 1) tokens per sample."""

    def __init__(
        self,
        dim: int,
        out_dim: int,
        heads: int = 8,
        *,
        attend: str = "all",
        pool: str = "output",
        project: str = "residual",
    ) -> None:
        super().__init__()
        self.attend, self.pool, self.project = attend, pool, project
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.proj = nn.Linear(dim, out_dim)

    def forward(
        self, x: Float[Tensor, "B D"], prompt: Float[Tensor, "P D"]
    ) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B D"]]:
        tokens = torch.cat([x[:, None], prompt.expand(len(x), -1, -1)], dim=1)
        mask = None
        if self.attend == "prompt":
            mask = torch.zeros(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=x.device)
            mask[0, 0] = True
        attended, _ = self.attn(tokens, tokens, tokens, attn_mask=mask, need_weights=False)
        z = (attended if self.pool == "output" else tokens).max(dim=1).values
        return self.proj(x if self.project == "input" else attended[:, 0] + x), z
