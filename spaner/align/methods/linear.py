"""A linear head in place of SPANER's attention: what is left when the prompt and the tokens are taken away.

    f = Proj(x)        one linear map, D -> E
    z = x              there are no tokens to pool, so the loss on z is a constant and has no slope

With the identity start and the blend of the recipe "anchored" this is a pair of linear heads that begin where
the encoder is: the rival that attention has to beat (`spaner ablate prompt`). It reads no prompt; `heads`,
`attend` and `pool` mean nothing to it.
"""

from jaxtyping import Float
from torch import Tensor, nn

from spaner.align.methods.identity import start_at_identity
from spaner.errors import RecipeError


class LinearAligner(nn.Module):
    """Maps embeddings of one modality into the shared space by one linear map.

    Args:
        dim: D, width of the embeddings.
        out_dim: E, width of the shared space.
        heads, attend, pool, project: of the other aligners; a value that asks for tokens is refused.

    Raises:
        RecipeError: an option that only an aligner with tokens has.
    """

    reads_prompt = False

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
        asked = {"attend": (attend, "all"), "pool": (pool, "output"), "project": (project, "residual")}
        for name, (value, only) in asked.items():
            if value != only:
                raise RecipeError(
                    f"{name} is {value!r} and the linear aligner has no tokens; expected {only!r}; "
                    f"use {name}={only} or aligner=attention"
                )
        self.proj = nn.Linear(dim, out_dim)

    def start_at_identity(self) -> None:
        """Set Proj = I, so that f = x. Needs E = D."""
        start_at_identity(self.proj)

    def forward(
        self, x: Float[Tensor, "B D"], prompt: Float[Tensor, "P D"]
    ) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B D"]]:
        """Proj(x), and x."""
        return self.proj(x), x
