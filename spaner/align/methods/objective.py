"""Losses between any number of modalities by name, alone or weighted: `pairs`, `gram`, `pairs,modgap:0.3`.

Each loss lies in a file of its own and is a pure function; here they get one call and are added up. `pairs`
is SPANER's own and works at the run's logit scale, as does `symile`; the others keep the temperatures of
their papers. Knows no method and no batch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from spaner.align.methods import gram, modgap, pmrl, symile
from spaner.align.methods.losses import pairs
from spaner.errors import RecipeError
from spaner.registry import nearest

Scale = float | Float[Tensor, ""]
Loss = Callable[[list[Tensor], Scale, Tensor | None, Mapping[str, Any]], Tensor]

OBJECTIVES: dict[str, Loss] = {
    "pairs": lambda f, scale, present, options: pairs(f, scale, present, **options),
    "gram": lambda f, scale, present, _: gram.loss(_unit(f), present),
    "symile": lambda f, scale, present, _: symile.loss(
        _unit(f), present, scale=symile.scale_for(scale, f[0].shape[1], len(f))
    ),
    "pmrl": lambda f, scale, present, _: pmrl.loss(_unit(f), present),
    "modgap": lambda f, scale, present, _: modgap.loss(_unit(f), present),
}

FEWEST = {"gram": 3, "symile": 3}
"""Modalities that a loss needs, where two are not enough."""


def weights(text: str) -> dict[str, float]:
    """Name -> weight, of `pairs` or `pairs,gram:0.5`.

    Raises:
        RecipeError: an unknown name, a name twice, or a weight that is no number above 0.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition(":")
        if name not in OBJECTIVES:
            raise RecipeError(
                f"objective is {text!r}; expected {', '.join(sorted(OBJECTIVES))}, with commas and weights, "
                f"like pairs,gram:0.5; did you mean {nearest(name, OBJECTIVES)!r}?"
            )
        if name in found:
            raise RecipeError(f"objective {text!r} names {name} twice; expected once; give it one weight")
        found[name] = _weight(text, weight or "1")
    return found


def _weight(text: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise RecipeError(
            f"objective {text!r} has the weight {word!r}; expected a number above 0; "
            "write for example gram:0.5"
        )
    return value


def check_modalities(chosen: Mapping[str, float], modalities: Sequence[str]) -> None:
    """RecipeError, naming the loss, where one needs more modalities than there are."""
    for name, fewest in FEWEST.items():
        if name in chosen and len(modalities) < fewest:
            raise RecipeError(
                f"objective {name} needs {fewest} modalities and is given {len(modalities)}: "
                f"{', '.join(modalities)}; add one with --modalities, or use objective=pairs"
            )


def total(
    chosen: Mapping[str, float],
    vectors: list[Float[Tensor, "B E"]],
    scale: Scale,
    present: Bool[Tensor, "M B"] | None,
    options: Mapping[str, Any],
) -> Float[Tensor, ""]:
    """The weighted sum; `options` are those of `losses.contrastive`, for `pairs` alone."""
    terms = [
        _times(weight, OBJECTIVES[name](vectors, scale, present, options)) for name, weight in chosen.items()
    ]
    return sum(terms[1:], terms[0])


def _times(weight: float, term: Tensor) -> Tensor:
    return term if weight == 1 else weight * term


def _unit(vectors: list[Tensor]) -> list[Tensor]:
    return [F.normalize(each, dim=1) for each in vectors]
