"""What prompt learners share: the text tower they are handed, class vectors from a context, their scores.

`align` never imports `extract`: a tower arrives as an argument and is known by the protocol `Tower` alone.
All tensors of one call lie on one device and have one type. Nothing here is learned by itself.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from spaner.align.methods.state import check_shapes
from spaner.align.methods.task import Facts, Query, Task, Tools, check_classes
from spaner.errors import Mismatch, RunError
from spaner.settings import option


class Prompted(Protocol):
    """Names with room for M vectors: (B, M, W) -> (B, C, D); with `per_class`, context i belongs to name
    i."""

    def __call__(
        self, context: Float[Tensor, "B M W"], *, per_class: bool = False
    ) -> Float[Tensor, "B C D"]: ...


class Reached(Protocol):
    """Names in a tower whose blocks can be reached into."""

    def __call__(
        self, context: Float[Tensor, "B M W"], *, per_class: bool = False, touch: Any = None
    ) -> Float[Tensor, "B C D"]: ...

    def begun(self, context: Float[Tensor, "1 M W"], block: int) -> Any:
        """touch -> (C, D), with everything below the block run once."""
        ...


class Tower(Protocol):
    """A frozen text tower through which gradients go (`extract.encoders.text_tower.PromptTower`).

    Attributes:
        width: of a token's vector.
        depth: blocks that can be reached into; 0: none.
        sha256: of the encoder's weights.
    """

    @property
    def width(self) -> int: ...

    @property
    def depth(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    sha256: str

    def context_of(self, text: str) -> Float[Tensor, "M W"]:
        """The vectors of the words' tokens."""
        ...

    def prompted(
        self,
        names: Sequence[str],
        length: int,
        position: str = "end",
        *,
        block_rows: int | None = None,
        recompute: bool = False,
        cut: bool = False,
    ) -> Any:
        """Names with room for `length` vectors: `Prompted`, and `Reached` where the tower has a depth; `cut`:
        of names too long for the window the beginning."""
        ...


def spoken(names: Iterable[str]) -> list[str]:
    """Names as the published code writes them: underscores are spaces."""
    return [name.replace("_", " ") for name in names]


def block_rows(again: str) -> Any:
    """The setting `block_rows` of a method's dataclass; `again` names what is computed a second time."""
    told = f"Token rows of the text tower at once, {again} computed again for gradients; 0: all."
    return option(0, told, low=0, axis=None)


def in_blocks(rows: int) -> dict[str, Any]:
    """The setting `block_rows` as `Tower.prompted` takes it: 0 is all at once, and nothing computed again."""
    return {"block_rows": rows or None, "recompute": rows > 0}


def class_vectors(prompted: Prompted, context: Float[Tensor, "*C M W"]) -> Float[Tensor, "C D"]:
    """Unit vectors of all names in one context, or each in its own (three axes)."""
    own = context.ndim == 3
    return F.normalize(prompted(context if own else context[None], per_class=own)[0], dim=1)


def tower_of(method: str, task: Task, tools: Tools) -> Tower:
    """The tower that was handed in, if it is that of the task's texts.

    Raises:
        RunError: none was. Mismatch: it has other weights.
    """
    tower, spec = tools.text_tower, task.encoders["text"]
    if tower is None:
        raise RunError(
            f"method {method} needs a text tower beside the cache, and none was handed in; "
            f"expected that of {spec.name!r}; type `spaner train --method {method}`, "
            "or pass text_tower= to fit"
        )
    if tower.sha256 != spec.weights_sha256:
        raise Mismatch(
            f"the text tower's weights are {tower.sha256[:12]}, "
            f"the cache's texts were embedded with {spec.weights_sha256[:12]} ({spec.name}, {spec.weights}); "
            "hand in the tower of that encoder: `--text-model` and `--text-weights`"
        )
    return tower


Speak = Callable[[Sequence[str]], Float[Tensor, "C D"]]
"""Names -> unit class vectors in the learned prompt, through the tower."""


def asked(
    method: str,
    x: Float[Tensor, "N D"],
    query: Query,
    text: Float[Tensor, "C D"],
    facts: Facts,
    speak: Speak | None = None,
) -> Float[Tensor, "N C"]:
    """Scaled cosines: to the learned prompts' vectors where templates ask, to the query's own texts where raw
    names do (`semantic`), which nothing learned ever touched. Other names than were learned are put into the
    learned prompt by `speak`.

    Raises:
        Mismatch: templates ask about other classes than were learned, and there is no `speak`.
    """
    if query.kind == "semantic":
        return facts.logit_scale * x @ query.texts.classes.T
    if query.class_names != facts.class_names and speak is not None:
        with torch.no_grad():
            return facts.logit_scale * x @ speak(query.class_names).to(x.device).T
    check_classes(method, facts.class_names, query)
    return facts.logit_scale * x @ text.T


class LearnedTexts:
    """A method that leaves one unit vector per class: templates are answered with them, see `asked`.

    Attributes:
        speak: puts other names into the learned prompt; None in a loaded run, which has no tower.
        negated: unit vectors of the classes' negated forms, where the method makes some.
    """

    name: ClassVar[str]
    reads_query: ClassVar[bool] = True
    scores_cosines: ClassVar[bool] = True

    def __init__(self, text: Float[Tensor, "C D"], facts: Facts) -> None:
        self.text, self.facts = text, facts
        self.logit_scale = facts.logit_scale
        self.history: list[dict[str, float]] = []
        self.speak: Speak | None = None
        self.negated: Float[Tensor, "C D"] | None = None

    def class_tensors(self) -> dict[str, Tensor]:
        """The class vectors, as they are saved."""
        return {"text": self.text} | ({} if self.negated is None else {"negated": self.negated})

    def scores(self, x: Float[Tensor, "N D"], query: Query) -> Float[Tensor, "N C"]:
        """Scaled cosines, see `asked`.

        Raises:
            Mismatch: templates ask about other classes than were learned, and no tower is at hand.
        """
        return asked(self.name, x, query, self.text, self.facts, self.speak)


def apart(
    state: Mapping[str, Tensor], facts: Facts, *needed: str
) -> tuple[Float[Tensor, "C D"], dict[str, Tensor]]:
    """The class vectors of a saved method, and everything else; `needed` tensors tell the shapes of others.

    Raises:
        RunError: there are none, or of other classes; a needed one is missing.
    """
    if lost := [name for name in needed if name not in state]:
        raise RunError(f"tensor {lost[0]!r} is missing; expected it beside {len(state)} others")
    learned = {name: tensor for name, tensor in state.items() if name not in ("text", "negated")}
    shape = {"text": (len(facts.class_names), facts.widths["text"])}
    check_shapes(shape, {name: tensor for name, tensor in state.items() if name == "text"})
    return state["text"], learned
