"""The identity start that every aligner offers: x' = 0 and Proj = I, so that f = x."""

from torch import Tensor, nn

from spaner.errors import RecipeError


def start_at_identity(proj: nn.Linear, *zeros: Tensor) -> None:
    """Set `proj` to the identity and the parameters behind x' to zero.

    Raises:
        RecipeError: E differs from D.
    """
    out_dim, dim = proj.weight.shape
    if out_dim != dim:
        raise RecipeError(
            f"init=identity needs out_dim equal to the embedding width, found {out_dim} and {dim}; "
            f"use out_dim={dim} or init=random"
        )
    for zero in (*zeros, proj.bias):
        nn.init.zeros_(zero)
    nn.init.eye_(proj.weight)
