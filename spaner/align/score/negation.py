"""Negation: is a row nearer to its class's caption than to the negated form of it? Where images have captions
of their own, `captions` asks it of each of these.

Chance is 1/2, and a tie is no answer, so that an encoder to which "no cat" says what "a cat" says gets 0.
The negated forms are what the method made of them itself (`campe`, `campe_lite`), else the text table
`negated` in the method's space: the classes in templates such as "no {}". No negated form, no number.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

NEGATED = "text/negated"


def learned_forms(run: Any) -> tuple[Float[np.ndarray, "C D"], Float[np.ndarray, "C D"]] | None:
    """Unit vectors of the captions and of their negated forms that a method made; None where it made none."""
    model = getattr(run, "model", None)
    negated = getattr(model, "negated", None)
    return None if model is None or negated is None else (model.text.cpu().numpy(), negated.cpu().numpy())


def share_of(metrics: Mapping[str, Any]) -> float | None:
    """The share that a result of `evaluate` tells: of captions where these have negated forms, else of
    classes."""
    return (metrics.get("captions") or {}).get("negation", metrics.get("negation"))


def told_apart(
    rows: Float[np.ndarray, "N E"],
    labels: np.ndarray,
    captions: Float[np.ndarray, "C E"],
    negated: Float[np.ndarray, "C E"],
) -> Float[np.ndarray, " N"]:
    """1 for a row that is nearer to its caption than to the negated form, else 0; unit vectors."""
    return ((rows * (captions - negated)[labels]).sum(1) > 0).astype(np.float64)
