"""What can be trained, by name: alignment methods and the aligners that SPANER is made of.

A registry entry is "module:attribute", the syntax of a Python entry point, and nothing is imported before it
is asked for. A package adds a method through the entry-point group `spaner.methods`, an aligner through
`spaner.aligners`. Names defined here win.
"""

import difflib
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from spaner.errors import RecipeError

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

METHODS = {"spaner": "spaner.align.methods.spaner:Spaner"}

ALIGNERS = {
    "attention": "spaner.align.methods.attention:AttentionAligner",
    "hyena": "spaner.align.methods.hyena:HyenaAligner",
}


@runtime_checkable
class Method(Protocol):
    """A `torch.nn.Module` that learns to align modalities; `align.train` minimises its loss.

    `build` is a classmethod that makes the untrained module from plain facts, so that a checkpoint can be
    rebuilt without its training data: the configuration, the embedding width of each modality, the scale of
    the logits.
    """

    @classmethod
    def build(cls, config: Any, widths: Mapping[str, int], logit_scale: float) -> Any: ...

    def loss(
        self, batch: "Mapping[str, Float[Tensor, 'B D']]", labels: "Int[Tensor, ' B']"
    ) -> "dict[str, Float[Tensor, '']]":
        """Named scalars of one batch; "loss" is the one to minimise, the others are recorded."""
        ...

    def embed(self, modality: str, x: "Float[Tensor, 'N D']") -> "Float[Tensor, 'N E']":
        """Embeddings of the frozen encoder -> unit vectors of the shared space."""
        ...


@runtime_checkable
class Aligner(Protocol):
    """A `torch.nn.Module` made by `(dim, out_dim, heads=8, *, attend, pool, project)` for one modality."""

    def forward(
        self, x: "Float[Tensor, 'B D']", prompt: "Float[Tensor, 'P D']"
    ) -> "tuple[Float[Tensor, 'B E'], Float[Tensor, 'B D']]":
        """Projected embeddings f (paper, eq. 2) and pooled tokens z (eq. 3), neither normalised."""
        ...

    def start_at_identity(self) -> None:
        """Set the parameters so that f = x; RecipeError where E differs from D."""
        ...


def method(name: str) -> Any:
    """The method of that name; RecipeError if there is none."""
    return _load(METHODS, "method", name)


def aligner(name: str) -> Any:
    """The aligner class of that name; RecipeError if there is none."""
    return _load(ALIGNERS, "aligner", name)


def check_name(kind: str, name: str) -> None:
    """RecipeError unless `name` is a registered `kind` ("method" or "aligner"); imports nothing."""
    names = sorted(_known(METHODS if kind == "method" else ALIGNERS, kind))
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=1, cutoff=0) or names
        raise RecipeError(
            f"{kind} is {name!r}; expected one of {', '.join(names)}; did you mean {kind}={near[0]}?"
        )


def _load(registry: dict[str, str], kind: str, name: str) -> Any:
    check_name(kind, name)
    module, attribute = _known(registry, kind)[name].split(":")
    return getattr(import_module(module), attribute)


def _known(registry: dict[str, str], kind: str) -> dict[str, str]:
    return {entry.name: entry.value for entry in entry_points(group=f"spaner.{kind}s")} | registry
