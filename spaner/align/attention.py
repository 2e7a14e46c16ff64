"""SPANER's aligner: attention between a sample and the shared prompt, exact, at a cost that hardly grows with
the prompt.

Paper: SPANER, eqs. 1-3. For one modality, an embedding x (D), the prompt S (P, D) and H heads:

    [x'; S'] = Attn([x; S])        eq. 1   multi-head self-attention over the P + 1 tokens
    f = Proj(x' + x)               eq. 2
    z = max over tokens [x'; S']   eq. 3

It equals `torch.nn.MultiheadAttention` on the concatenated tokens, in values and gradients, and its state
dict loads into that and back. It does not normalise x, and it has no dropout, no norm and no positions.

S is the same for every sample of a batch, so its queries, keys and values are computed once a step. What is
left per sample has a closed form. Write, per head h, V[k,h] = W_o^h v_k^h for the prompt's values pushed
through the output projection and U[b,h] = W_o^h v_x^h for the sample's, l for scaled scores and w = softmax
over prompt keys alone. Then

    C[j,h]   = sum_k w[h,j,k] V[k,h]                               what prompt row j would be without the
    sample
    g[b,j,h] = sigmoid(l[b,h,j,x] - logsumexp_k l[h,j,k])          the weight of x among [x; S], as row j sees
    it S'[b,j]  = bias + sum_h (1 - g[b,j,h]) C[j,h] + g[b,j,h] U[b,h]
    x'[b]    = bias + sum_h a[b,x,h] U[b,h] + sum_k a[b,k,h] V[k,h]     a = softmax over the keys [x; S]

which is 4 D^2 multiplications a sample for U and the projections of x, plus O(P H D). The maximum over tokens
keeps only its winners, so the backward pass reads one number per (sample, feature) instead of a (B, P, D)
tensor.

Differs from the reference in: nothing. Where the paper contradicts itself both readings are options, see
`AttentionAligner`.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spaner.align.identity import start_at_identity
from spaner.cache.errors import RecipeError

# Tokens are built for this many numbers at a time, and pooled while they are in the processor's cache.
TOKEN_BLOCK = 1 << 18


class AttentionAligner(nn.Module):
    """Maps embeddings of one modality into the shared space (eqs. 1-3).

    Args:
        dim: D, width of embeddings and prompt. A multiple of `heads`.
        out_dim: E, width of the shared space.
        heads: H.
        attend: what x may look at. "all": itself and the prompt (eq. 1). "prompt": the prompt alone (the
            text's "each x attends only to S"); prompt rows still see x.
        pool: tokens under the maximum of eq. 3. "output": [x'; S'] (Algorithm 2). "input": [x; S] (as eq. 3
        is printed).
        project: what Proj reads. "residual": x' + x (eq. 2). "input": x (as Algorithm 2 is printed).

    Where several tokens share the maximum, the gradient goes to the first of [x'; S'], as with
    `torch.max(dim=...)`. This matters once: at the identity start every token is equal.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        heads: int = 8,
        *,
        attend: Literal["all", "prompt"] = "all",
        pool: Literal["output", "input"] = "output",
        project: Literal["residual", "input"] = "residual",
    ) -> None:
        super().__init__()
        if dim % heads:
            fits = max(h for h in range(1, heads + 1) if dim % h == 0)
            raise RecipeError(
                f"heads is {heads} and does not divide the embedding width {dim}; use heads={fits}"
            )
        self.heads, self.attend, self.pool, self.project = heads, attend, pool, project
        # Only holds the parameters: same names, same initialisation as the module it replaces. Never called.
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.proj = nn.Linear(dim, out_dim)

    def start_at_identity(self) -> None:
        """Set x' = 0 and Proj = I, so that f = x: the aligner starts from what the encoder knows. Needs E =
        D."""
        start_at_identity(self.proj, self.attn.out_proj.weight, self.attn.out_proj.bias)

    def forward(
        self, x: Float[Tensor, "B D"], prompt: Float[Tensor, "P D"]
    ) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B D"]]:
        """Projected embeddings f (eq. 2) and pooled tokens z (eq. 3), neither normalised."""
        if self.pool == "output":
            attended, z = self._attend_and_pool(x, prompt)
        else:
            strongest = prompt.max(0).values
            z = torch.where(strongest > x, strongest, x)
            attended = self._attend(x, prompt) if self.project == "residual" else x
        return self.proj(attended + x if self.project == "residual" else x), z

    def _attend(self, x: Float[Tensor, "B D"], prompt: Float[Tensor, "P D"]) -> Float[Tensor, "B D"]:
        """x' alone, when the rows S' are not asked for."""
        (q, k, v), (_, keys, values) = self._project(x), self._project(prompt)
        on_x, on_prompt = self._weights_of_sample(q, k, keys)
        mixed = on_x * v + on_prompt @ values  # (H, B, D/H)
        return F.linear(mixed.transpose(0, 1).flatten(1), self.attn.out_proj.weight, self.attn.out_proj.bias)

    def _attend_and_pool(
        self, x: Float[Tensor, "B D"], prompt: Float[Tensor, "P D"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
        """x' and z, by the closed form of the module docstring. Letters as there."""
        (q, k, v), (queries, keys, values) = self._project(x), self._project(prompt)
        out = self.attn.out_proj
        w_o = out.weight.unflatten(1, (self.heads, -1)).permute(1, 2, 0)  # (H, D/H, D)
        u, v_prompt = v @ w_o, values @ w_o  # (H, B, D), (H, P, D)

        scores = queries @ keys.mT  # (H, P, P)
        c = scores.softmax(-1) @ v_prompt  # (H, P, D)
        g = torch.sigmoid(queries @ k.mT - scores.logsumexp(-1, keepdim=True))  # (H, P, B)

        on_x, on_prompt = self._weights_of_sample(q, k, keys)
        from_prompt = on_prompt.transpose(0, 1).flatten(1) @ v_prompt.flatten(0, 1)  # (B, H P) @ (H P, D)
        gates = torch.cat([on_x.permute(1, 2, 0), g.permute(2, 1, 0)], dim=1)  # (B, P + 1, H)
        attended, z, _ = _MaxOverTokens.apply(
            gates.to(u.dtype), u.transpose(0, 1), from_prompt.to(u.dtype), c.transpose(0, 1).to(u.dtype)
        )
        return attended + out.bias, z + out.bias

    def _project(self, tokens: Float[Tensor, "N D"]) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries, keys and values, (H, N, D/H) each."""
        qkv = F.linear(tokens, self.attn.in_proj_weight, self.attn.in_proj_bias)
        q, k, v = qkv.unflatten(1, (3, self.heads, -1)).permute(1, 2, 0, 3)
        return q / math.sqrt(q.shape[-1]), k, v

    def _weights_of_sample(
        self, q: Float[Tensor, "H B d"], k: Float[Tensor, "H B d"], keys: Float[Tensor, "H P d"]
    ) -> tuple[Float[Tensor, "H B 1"], Float[Tensor, "H B P"]]:
        """The weights that x gives to itself and to the prompt."""
        to_prompt = q @ keys.mT
        if self.attend == "prompt":
            return torch.zeros_like(to_prompt[..., :1]), to_prompt.softmax(-1)
        to_itself = (q * k).sum(-1, keepdim=True)
        weights = torch.cat([to_itself, to_prompt], dim=-1).softmax(-1)
        return weights[..., :1], weights[..., 1:]


class _MaxOverTokens(torch.autograd.Function):
    """First token and maximum over tokens, of tokens that are built block by block and never kept.

        token[b,0] = first[b] + sum_h gates[b,0,h] u[b,h]
        token[b,j] = sum_h (1 - gates[b,j,h]) c[j,h] + gates[b,j,h] u[b,h]        j = 1 ... P

    Only the index of the winner is saved. In the backward pass the gradient of a token is zero except where
    it won, so each block is scattered into zeros, multiplied back, and dropped. Under `torch.vmap`, which
    trains several models as one, tokens are built whole and kept.
    """

    @staticmethod
    def forward(
        gates: Float[Tensor, "B P+1 H"],
        u: Float[Tensor, "B H D"],
        first: Float[Tensor, "B D"],
        c: Float[Tensor, "P H D"],
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"], Int[Tensor, "B D"]]:
        attended, pooled = torch.empty_like(first), torch.empty_like(first)
        winner, rest = torch.empty_like(first, dtype=torch.int64), 1 - gates[:, 1:].transpose(0, 1)
        for block, tokens, rows in _blocks(gates, u):
            tokens[:, 0] = first[block]
            tokens[:, 1:] = torch.bmm(rest[:, block], c, out=rows).transpose(0, 1)
            tokens.baddbmm_(gates[block], u[block])
            attended[block] = tokens[:, 0]
            pooled[block], winner[block] = _first_max(tokens)
        return attended, pooled, winner

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        gates, u, _, c = inputs
        ctx.save_for_backward(gates, u, c, output[2])
        ctx.mark_non_differentiable(output[2])

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, int, int]]:
        whole = [
            x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(inputs, in_dims, strict=True)
        ]
        return _max_over_whole_tokens(*whole), (0, 0, 0)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_attended: Tensor, d_pooled: Tensor, _d_winner: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gates, u, c, winner = ctx.saved_tensors
        rest = 1 - gates[:, 1:].transpose(0, 1)
        d_first, d_c = u.new_empty(winner.shape), u.new_zeros(c.shape)
        d_u, d_gates = u.new_empty(u.shape), u.new_empty(gates.mT.shape)
        for block, d_tokens, _ in _blocks(gates, u):
            d_tokens.zero_().scatter_(1, winner[block, None], d_pooled[block, None])
            d_tokens[:, 0] += d_attended[block]
            d_rows = d_tokens[:, 1:].transpose(0, 1)
            d_first[block] = d_tokens[:, 0]
            torch.bmm(gates[block].mT, d_tokens, out=d_u[block])
            torch.bmm(u[block], d_tokens.mT, out=d_gates[block])
            d_gates[block, :, 1:] -= (c @ d_rows.mT).permute(2, 1, 0)
            d_c.baddbmm_(rest[:, block].mT, d_rows)
        return d_gates.mT, d_u, d_first, d_c


def _max_over_whole_tokens(
    gates: Float[Tensor, "K B P+1 H"],
    u: Float[Tensor, "K B H D"],
    first: Float[Tensor, "K B D"],
    c: Float[Tensor, "K P H D"],
) -> tuple[Float[Tensor, "K B D"], Float[Tensor, "K B D"], Int[Tensor, "K B D"]]:
    """`_MaxOverTokens` for K models at once, in operations that autograd knows."""
    rows = ((1 - gates[:, :, 1:]).transpose(1, 2) @ c).transpose(1, 2)
    tokens = torch.cat([first[:, :, None], rows], dim=2) + gates @ u  # (K, B, P + 1, D)
    pooled, winner = _first_max(tokens.flatten(0, 1))
    return tokens[:, :, 0], pooled.view_as(first), winner.view_as(first)


def _blocks(gates: Tensor, u: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Parts of the batch, with room for their tokens (block, P + 1, D) and for prompt rows (P, block, D).

    It is the same memory for every part: asking the system for new pages costs several times the arithmetic.
    """
    batch, tokens, dim = len(gates), gates.shape[1], u.shape[2]
    step = max(1, min(batch, TOKEN_BLOCK // (tokens * dim)))
    room, rows = u.new_empty(step * tokens * dim), u.new_empty((tokens - 1) * step * dim)
    for start in range(0, batch, step):
        size = min(step, batch - start)
        yield (
            slice(start, start + size),
            room[: size * tokens * dim].view(size, tokens, dim),
            rows[: (tokens - 1) * size * dim].view(tokens - 1, size, dim),
        )


def _first_max(tokens: Float[Tensor, "B T D"]) -> tuple[Float[Tensor, "B D"], Tensor]:
    """`tokens.max(dim=1)` by way of max pooling, whose kernel is vectorised over the last axis (3 times
    faster on CPU)."""
    image = tokens[:, :, None].permute(0, 3, 1, 2)  # (B, D, T, 1), channels last in memory: no copy
    values, indices = F.max_pool2d(image, (tokens.shape[1], 1), return_indices=True)
    return values.flatten(1), indices.flatten(1)
