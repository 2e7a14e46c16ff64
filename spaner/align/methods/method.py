"""The seam of methods: what each must offer, what it may offer, and the registry that finds it by name.

A method is one class in one file and one line in `METHODS`. The class is what fitting returns: it has a
frozen dataclass `Settings` (see `spaner.settings`), is fitted from a `Task`, answers a `Query` with scores,
and comes back from its tensors without its training data. What only some can do is a protocol of its own,
which callers ask for with isinstance: `Space`, `Prior`, `Adapted`, `Tunable`, `Extendable`, `Stackable`. A
package adds a method through the entry-point group `spaner.methods`, an aligner through `spaner.aligners`.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

from spaner import registry
from spaner.errors import RecipeError

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from spaner.align.methods.task import Facts, Query, Task, Tools

METHODS = {
    "campe": "spaner.align.methods.campe:Campe",
    "campe_lite": "spaner.align.methods.campe_lite:CampeLite",
    "clap": "spaner.align.methods.clap:Clap",
    "clip_adapter": "spaner.align.methods.clip_adapter:ClipAdapter",
    "cocoop": "spaner.align.methods.cocoop:CoCoOp",
    "coop": "spaner.align.methods.coop:CoOp",
    "cross_modal": "spaner.align.methods.cross_modal:CrossModal",
    "gda": "spaner.align.methods.gda:Gda",
    "linear_probe": "spaner.align.methods.linear_probe:LinearProbe",
    "lp_plus_plus": "spaner.align.methods.lp_plus_plus:LpPlusPlus",
    "maple": "spaner.align.methods.maple:MaPLe",
    "mma": "spaner.align.methods.mma:Mma",
    "proker": "spaner.align.methods.proker:ProKeR",
    "rla": "spaner.align.methods.rla:Rla",
    "spaner": "spaner.align.methods.spaner:Spaner",
    "task_res": "spaner.align.methods.task_res:TaskRes",
    "tip_adapter": "spaner.align.methods.tip_adapter:TipAdapter",
    "tip_adapter_f": "spaner.align.methods.tip_adapter:TipAdapterF",
    "zero_shot": "spaner.align.methods.zero_shot:ZeroShot",
    "zs_lp": "spaner.align.methods.clap:ZsLp",
}

ALIGNERS = {
    "attention": "spaner.align.methods.attention:AttentionAligner",
    "hyena": "spaner.align.methods.hyena:HyenaAligner",
    "linear": "spaner.align.methods.linear:LinearAligner",
}


@runtime_checkable
class Fitted(Protocol):
    """A fitted method, and how to make one.

    Attributes:
        Settings: the method's own settings, a frozen dataclass of `settings.option` fields.
        training: defaults of the loop's settings (`loop.Loop`) that differ; None: the method has no loop.
        reads_query: False for a head that answers the same whatever it is asked: it has no semantic score.
        logit_scale: how many units of `scores` one unit of cosine is; ties are judged in cosines.
        needs_tower: (optional) True: `tools` must hold a text tower.
        needs_pictures: (optional) True: and the images as tokens of the image tower.
        scores_cosines: (optional) True: scores are cosines, though the method embeds no text (no `Space`).
        history: what `fit` recorded, an entry per epoch; empty for a closed form.
    """

    Settings: ClassVar[type]
    training: ClassVar[Mapping[str, Any] | None]
    reads_query: ClassVar[bool]
    logit_scale: float
    history: list[dict[str, float]]

    @classmethod
    def fit(cls, task: "Task", settings: Any, tools: "Tools") -> Self:
        """Learn from the task. `settings` has the fields of `Settings`, `Loop` and `config.Common`."""
        ...

    def scores(self, x: "Float[Tensor, 'N D']", query: "Query") -> "Float[Tensor, 'N C']":
        """A score for each class of the query; `x` are unit vectors of the frozen encoder."""
        ...

    def state(self) -> "dict[str, Tensor]":
        """Everything that was learned, as tensors by name."""
        ...

    @classmethod
    def restore(cls, state: "Mapping[str, Tensor]", settings: Any, facts: "Facts") -> Self:
        """The inverse of `state`; RunError if a tensor is missing, too many, or of another shape."""
        ...


@runtime_checkable
class Space(Protocol):
    """Embeds modalities into one space: only then are there cosines, margins, curves and retrieval."""

    def embed(self, modality: str, x: "Float[Tensor, 'N D']") -> "Float[Tensor, 'N E']":
        """Embeddings of the frozen encoder -> unit vectors of the shared space."""
        ...


@runtime_checkable
class Prior(Protocol):
    """A space whose scores are more than cosines: a head on the frozen embeddings joins them."""

    prior_weight: float
    """0 where nothing is added."""

    def prior_scores(self, x: "Float[Tensor, 'N D']", query: "Query") -> "Float[Tensor, 'N C']":
        """What is added to `logit_scale` times the cosine."""
        ...


@runtime_checkable
class Adapted(Protocol):
    """Changed the image tower inside: `scores` takes unit rows of that tower, not those of the cache.

    Attributes:
        block: image tokens are read after that block.
        pictures: the tower, and the images as its tokens (`dual.Pictures`); None in a loaded run.
    """

    block: int
    pictures: Any

    def image_rows(self, tokens: "Float[Tensor, 'B T W']") -> "Float[Tensor, 'B D']":
        """Embeddings of the changed tower, not normalised."""
        ...


@runtime_checkable
class Tunable(Protocol):
    """Settings that can be changed after fitting: choosing them costs no refit."""

    tuned: ClassVar[tuple[str, ...]]
    """Settings with a grid that `tune` tries; the others are refitted for every value."""

    def tune(
        self, x: "Float[Tensor, 'N D']", query: "Query", grids: Mapping[str, tuple[Any, ...]]
    ) -> "Iterator[tuple[dict[str, Any], Float[Tensor, 'N C']]]":
        """Every combination of the grids, and the scores that it would give."""
        ...

    def tuned_to(self, choice: Mapping[str, Any]) -> Self:
        """The same fit with other values of `tuned`."""
        ...


@runtime_checkable
class Extendable(Protocol):
    """A modality can join without moving what was trained."""

    def joined(self, modality: str, width: int, seed: int) -> Self:
        """A copy with one more modality (trained anew where it is known), whose parameters alone take a
        gradient."""
        ...


@runtime_checkable
class Stackable(Protocol):
    """Models that differ in numbers alone can be trained as one tensor program (`train.stack`)."""

    @classmethod
    def build(cls, settings: Any, facts: "Facts") -> Self:
        """The untrained model."""
        ...

    def stacked_numbers(self) -> dict[str, float]:
        """Keyword arguments of `loss` in which the models may differ."""
        ...

    def loss(
        self, batch: "Mapping[str, Float[Tensor, 'B D']]", labels: "Int[Tensor, ' B']", **numbers: Any
    ) -> "dict[str, Float[Tensor, '']]":
        """Named scalars of one batch; "loss" is the one to minimise."""
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
    return registry.load(METHODS, "method", name, RecipeError)


def aligner(name: str) -> Any:
    """The aligner class of that name; RecipeError if there is none."""
    return registry.load(ALIGNERS, "aligner", name, RecipeError)
