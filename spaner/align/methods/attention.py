"""SPANER's aligner: attention between a sample and the shared prompt, exact, at a cost that hardly grows with
the prompt.

Paper: SPANER, eqs. 1-3. For one modality, an embedding x (D), the prompt S (P, D) and H heads:

    [x'; S'] = Attn([x; S])        eq. 1   multi-head self-attention over the P + 1 tokens
    f = Proj(x' + x)               eq. 2
    z = max over tokens [x'; S']   eq. 3

It equals `torch.nn.MultiheadAttention` on the concatenated tokens, in values and gradients, and its state
dict loads into that and back. It does not normalise x, and it has no dropout, no norm and no positions.

S is the same for every sample of a batch. `align.closed_form` makes of that a cost that hardly grows with P:
4 D^2 multiplications a sample, plus O(P H D).

Differs from the reference in: nothing. Where the paper contradicts itself both readings are options, see
`AttentionAligner`.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spaner.align.methods.closed_form import closed_form
from spaner.align.methods.identity import start_at_identity
from spaner.errors import RecipeError


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
        attended, z = self._attend_and_pool(x, prompt)
        if self.pool == "input":
            strongest = prompt.max(0).values
            z = torch.where(strongest > x, strongest, x)
        return self.proj(attended + x if self.project == "residual" else x), z

    @staticmethod
    def together(
        aligners: "Sequence[AttentionAligner]", x: Float[Tensor, "M B D"], prompts: Float[Tensor, "M P D"]
    ) -> tuple[Float[Tensor, "M B E"], Float[Tensor, "M B D"]]:
        """Several aligners of one shape as one program, each on its own embeddings and prompt: batched
        products instead of a call for each, equal to them within rounding."""
        like, attn = aligners[0], [each.attn for each in aligners]
        weights = (
            torch.stack([each.in_proj_weight for each in attn]),
            torch.stack([each.in_proj_bias for each in attn]),
            torch.stack([each.out_proj.weight for each in attn]),
        )
        bias = torch.stack([each.out_proj.bias for each in attn])[:, None]
        attended, z = (each + bias for each in closed_form(x, prompts, *weights, like.heads, like.attend))
        if like.pool == "input":
            z = torch.maximum(prompts.max(1).values[:, None], x)
        project = torch.stack([each.proj.weight for each in aligners])
        offset = torch.stack([each.proj.bias for each in aligners])[:, None]
        return torch.baddbmm(offset, attended + x if like.project == "residual" else x, project.mT), z

    def _attend_and_pool(
        self, x: Float[Tensor, "B D"], prompt: Float[Tensor, "P D"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
        """x' and z."""
        attn = self.attn
        weights = (attn.in_proj_weight[None], attn.in_proj_bias[None], attn.out_proj.weight[None])
        attended, z = closed_form(x[None], prompt[None], *weights, self.heads, self.attend)
        return attended[0] + attn.out_proj.bias, z[0] + attn.out_proj.bias
