"""Hyena aligner: gated long convolutions over the sample and the shared prompt, in place of attention.

Paper: Poli et al. 2023, "Hyena Hierarchy", order N = 2 (def. 3.1 and sec. 3.3), over the L = P + 1 tokens u =
[x; S] of one modality (the fusion of the SPANER paper's Figure 6). Per channel, with * a convolution along
the tokens:

    v, g1, g2 = short(W_in u)                 short: a depthwise convolution over three neighbouring tokens
    [x'; S']  = W_out g2 (h2 * (g1 (h1 * v)))
    h(t)      = window(t) FFN(position(t))    implicit filter: sine network of the offset, exponential decay

then f = Proj(x' + x) and z = max over tokens, as in `attention` (eqs. 2 and 3 of SPANER).

Direction. A causal convolution over [x; S] would let x, the first token, see nothing but itself, and over [S;
x] would leave every prompt row blind to the sample, so that z could not depend on it but through x'. There is
no time axis here and nothing to predict: the filters are two-sided, h(t) for t = -P … P, and every token sees
every other one, which is what eq. 1 asks of the attention it replaces. Positions do count, unlike in
attention: x is token 0.

Differs from the reference in: two-sided filters; the D / H channels of a head share their filter (H = D gives
one each, as the paper has it); tokens enter multiplied by √D, because the reference feeds layer-normalised
tokens and a product of three numbers of size 1 / √D would vanish; the convolution is a product with an L x L
matrix, since a Fourier transform gains nothing at a few dozen tokens.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from spaner.align.methods.identity import start_at_identity
from spaner.errors import RecipeError

ORDER = 2
FREQUENCIES = 4
"""Sines and cosines by which the filter network knows an offset."""

WIDTH = 32
"""Hidden units of the filter network."""


class HyenaAligner(nn.Module):
    """Maps embeddings of one modality into the shared space; same contract as `attention.AttentionAligner`.

    Args:
        dim: D, width of embeddings and prompt. A multiple of `heads`.
        out_dim: E, width of the shared space.
        heads: H, number of different long filters.
        attend: only "all" has a meaning: a convolution cannot leave out a token's view of itself.
        pool: tokens under the maximum. "output": [x'; S']. "input": [x; S].
        project: what Proj reads. "residual": x' + x. "input": x.

    Raises:
        RecipeError: heads that do not divide D, or attend="prompt".
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
        if attend != "all":
            raise RecipeError(
                f"attend is {attend!r}; the hyena aligner knows only 'all'; "
                "use attend=all or aligner=attention"
            )
        if dim % heads:
            fits = max(h for h in range(1, heads + 1) if dim % h == 0)
            raise RecipeError(
                f"heads is {heads} and does not divide the embedding width {dim}; use heads={fits}"
            )
        self.heads, self.pool, self.project = heads, pool, project
        self.scale = math.sqrt(dim)
        self.inner = nn.Linear(dim, (ORDER + 1) * dim)
        self.short = nn.Parameter(torch.empty(3, (ORDER + 1) * dim).uniform_(-(3**-0.5), 3**-0.5))
        self.filters = ImplicitFilters(ORDER * heads)
        self.skip = nn.Parameter(torch.ones(ORDER, dim))
        self.outer = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, out_dim)

    def start_at_identity(self) -> None:
        """Set x' = 0 and Proj = I, so that f = x. Needs E = D."""
        start_at_identity(self.proj, self.outer.weight, self.outer.bias)

    def forward(
        self, x: Float[Tensor, "B D"], prompt: Float[Tensor, "P D"]
    ) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B D"]]:
        """Projected embeddings f and pooled tokens z, neither normalised."""
        residual = self.project == "residual"
        if self.pool == "output":
            tokens = self._out(self._mix(x, prompt))
            attended, z = tokens[:, 0], tokens.max(1).values
        else:
            attended = self._out(self._mix(x, prompt)[:, 0]) if residual else x
            z = torch.maximum(x, prompt.max(0).values)
        return self.proj(attended + x if residual else x), z

    def _mix(self, x: Float[Tensor, "B D"], prompt: Float[Tensor, "P D"]) -> Float[Tensor, "B P+1 D"]:
        """The recurrence of def. 3.1, before the output projection."""
        own, shared = (
            self.inner(self.scale * x),
            self.inner(self.scale * prompt),
        )  # S once for the whole batch
        tokens = torch.cat([own[:, None], shared.expand(len(x), -1, -1)], dim=1)
        left, right = F.pad(tokens, (0, 0, 1, 0))[:, :-1], F.pad(tokens, (0, 0, 0, 1))[:, 1:]
        tokens = left * self.short[0] + tokens * self.short[1] + right * self.short[2]
        v, *gates = tokens.chunk(ORDER + 1, dim=-1)
        filters = self.filters(len(prompt)).to(v.dtype).chunk(ORDER)
        for gate, taps, skip in zip(gates, filters, self.skip, strict=True):
            v = gate * (self._convolve(v, taps) + skip * v)
        return v

    def _convolve(self, v: Float[Tensor, "B L D"], taps: Float[Tensor, "H 2L-1"]) -> Float[Tensor, "B L D"]:
        """Along the tokens: out[i] = sum_j taps[i - j] v[j], taps shared within a head."""
        length = v.shape[1]
        matrix = taps.flip(-1).unfold(-1, length, 1).flip(1)  # (H, L, L), entry (i, j) = taps[i - j]
        mixed = torch.einsum("hij,bjhd->bihd", matrix, v.unflatten(-1, (self.heads, -1)))
        return mixed.flatten(-2)

    def _out(self, mixed: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return self.outer(mixed) / self.scale


class ImplicitFilters(nn.Module):
    """Filters as functions of the offset between two tokens (Poli et al. 2023, sec. 3.3).

    A network with sine activations reads an offset t as (t / P, cos, sin); its output is damped by exp(-decay
    |t|), where decays run from slow (filters that see the whole prompt) to fast (filters that see their
    neighbours).
    """

    decay: Tensor

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.first = nn.Linear(1 + 2 * FREQUENCIES, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, filters)
        self.register_buffer("decay", torch.logspace(-2, 0, filters)[:, None], persistent=False)

    def forward(self, reach: int) -> Float[Tensor, "F 2*reach+1"]:
        """Taps for the offsets -reach … reach."""
        t = torch.arange(-reach, reach + 1, device=self.decay.device, dtype=self.decay.dtype)
        angles = math.pi * torch.arange(1, FREQUENCIES + 1, device=t.device) * (t / reach)[:, None]
        position = torch.cat([(t / reach)[:, None], angles.cos(), angles.sin()], dim=1)
        taps = self.last(torch.sin(self.second(torch.sin(self.first(position)))))
        return taps.T * torch.exp(-self.decay * t.abs())
