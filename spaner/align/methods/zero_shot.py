"""Zero-shot CLIP: the class whose text is nearest, in the encoder's own space. Nothing is learned.

    logits = s * cos(x, t_k),   t_k = normalise(mean over templates of normalise(text))

Radford et al. 2021, section 3.1. Differs from the reference in: nothing. Needs an encoder whose modalities
share a space; refuses widths that differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from spaner.align.methods.state import check_shapes
from spaner.align.methods.task import Facts, Query, Task, Tools
from spaner.errors import Mismatch


@dataclass(frozen=True)
class Settings:
    """There is nothing to set."""


class ZeroShot:
    """The frozen encoder's own space."""

    Settings: ClassVar[type] = Settings
    training: ClassVar[Mapping[str, Any] | None] = None
    reads_query: ClassVar[bool] = True

    def __init__(self, logit_scale: float) -> None:
        self.logit_scale, self.history = logit_scale, []

    @classmethod
    def fit(cls, task: Task, settings: Any, tools: Tools) -> Self:
        """Check that there is a common space.

        Raises:
            Mismatch: the widths of the modalities differ.
        """
        if len(set(task.widths.values())) > 1:
            found = ", ".join(f"{modality} {width}" for modality, width in task.widths.items())
            raise Mismatch(
                f"zero_shot compares embeddings as they are, and their widths differ ({found}); "
                "expected one encoder for both; train method=spaner, which maps them into one space"
            )
        return cls(task.logit_scale)

    def embed(self, modality: str, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Every embedding as it is, at unit length."""
        return F.normalize(x, dim=1)

    def scores(self, x: Float[Tensor, "N D"], query: Query) -> Float[Tensor, "N C"]:
        """Scaled cosines."""
        return self.logit_scale * F.normalize(x, dim=1) @ query.texts.classes.T

    def state(self) -> dict[str, Tensor]:
        """Nothing was learned."""
        return {}

    @classmethod
    def restore(cls, state: Mapping[str, Tensor], settings: Any, facts: Facts) -> Self:
        """The inverse of `state`."""
        check_shapes({}, state)
        return cls(facts.logit_scale)
