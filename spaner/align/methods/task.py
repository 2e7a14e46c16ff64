"""What a method may see, and what it is asked: tensors of a few-shot task, never a test row.

`train.task` fills a `Task` from a cache. All vectors have unit length; the lengths that the encoder gave them
are kept beside them, for methods that average raw vectors. Nothing here reads a file.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spaner.cache import EncoderSpec
from spaner.errors import Mismatch
from spaner.progress import Progress


@dataclass(frozen=True)
class Draw:
    """Which rows were used: enough to repeat the choice, and to prove it was the same.

    `sha256` is `cache.ids_sha256` of the drawn ids; `rows` of them were good and `failed` were dropped.
    `shots` is None where all rows were taken.
    """

    shots: int | None
    seed: int | None
    rows: int
    failed: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Samples:
    """The good rows of a draw: all views at unit length, their lengths before, and labels."""

    x: Float[Tensor, "N V D"]
    labels: Int[Tensor, " N"]
    draw: Draw
    norms: Float[Tensor, "N V"]

    @property
    def raw(self) -> Float[Tensor, "N V D"]:
        """The embeddings as the encoder gave them."""
        return self.x * self.norms[..., None]


@dataclass(frozen=True)
class Texts:
    """Every class in every template of a set, at unit length, and their lengths before."""

    x: Float[Tensor, "C T M"]
    norms: Float[Tensor, "C T"]

    @property
    def raw(self) -> Float[Tensor, "C T M"]:
        """The embeddings as the encoder gave them."""
        return self.x * self.norms[..., None]

    @property
    def classes(self) -> Float[Tensor, "C M"]:
        """One unit vector per class: the mean over templates of unit vectors."""
        return torch.nn.functional.normalize(self.x.mean(1), dim=1)


@dataclass(frozen=True)
class Query:
    """A question to a fitted method: which of these classes? `kind` is "text" or "semantic"."""

    kind: str
    class_names: tuple[str, ...]
    texts: Texts


@dataclass(frozen=True)
class Companion:
    """Rows of a further modality, for joint training.

    Training sample i has the rows `samples.x[start[i] : start[i] + count[i]]`, none where it lacks the
    modality; with `start` and `count` None it has every row of its class.
    """

    samples: Samples
    start: Int[Tensor, " N"] | None = None
    count: Int[Tensor, " N"] | None = None

    def of(self, rows: Int[Tensor, " n"]) -> "Companion":
        """The same for some of the training samples."""
        if self.start is None or self.count is None:
            return self
        return Companion(self.samples, self.start[rows], self.count[rows])


@dataclass(frozen=True)
class Captions:
    """Captions of the training samples.

    Sample i has the rows `start[i] : start[i] + count[i]`, none where it has no caption. `x` are the frozen
    encoder's unit vectors, `negated` those of their negated forms, zeros where there is none. `rows` are
    their places in the table `caption/train`, `forms` those of their negated forms in `negated/train`, -1
    where there is none.
    """

    x: Float[Tensor, "M D"]
    start: Int[Tensor, " N"]
    count: Int[Tensor, " N"]
    negated: Float[Tensor, "M D"]
    rows: Int[Tensor, " M"]
    forms: Int[Tensor, " M"]

    @property
    def denied(self) -> Bool[Tensor, " M"]:
        """Which have a negated form."""
        return self.forms >= 0


@dataclass(frozen=True)
class Task:
    """Training material: samples of one modality, and the texts of their classes.

    `modality` names what `x` holds; its class i is described by `text[i]`, one vector per template of the set
    `templates`; where text is not trained, it has no row, and there is no query. `texts` holds every set of
    the cache by name. `queries` names the set that asks, by kind.
    `validation` are rows that were not drawn for training, or None where the cache has none. `companions`
    are the modalities that are trained together with these two.
    """

    dataset: str
    class_names: tuple[str, ...]
    modality: str
    x: Float[Tensor, "N V D"]
    labels: Int[Tensor, " N"]
    text: Float[Tensor, "C T M"]
    templates: str
    logit_scale: float
    draw: Draw
    encoders: dict[str, EncoderSpec]
    tables: dict[str, str]
    """Identity (manifest hash) of every table that was read."""
    norms: Float[Tensor, "N V"] | None = None
    texts: dict[str, Texts] = field(default_factory=dict)
    queries: Mapping[str, str] = field(default_factory=dict)
    validation: Samples | None = None
    companions: Mapping[str, Companion] = field(default_factory=dict)
    captions: Captions | None = None
    """Of the samples, where a method is told to learn from them."""
    table_rows: Int[Tensor, " N"] | None = None
    """Where the training rows stand in their table."""

    @property
    def rows(self) -> Int[Tensor, " N"]:
        """Where the training rows stand in their table; in order where nobody says."""
        return torch.arange(len(self.labels)) if self.table_rows is None else self.table_rows

    @property
    def widths(self) -> dict[str, int]:
        further = {name: each.samples.x.shape[2] for name, each in self.companions.items()}
        text = {"text": self.text.shape[2]} if len(self.text) else {}
        return {self.modality: self.x.shape[2], **text, **further}

    @property
    def support(self) -> Samples:
        """The training rows as one thing."""
        norms = torch.ones(self.x.shape[:2]) if self.norms is None else self.norms
        return Samples(self.x, self.labels, self.draw, norms)

    def without(self, left_out: Bool[Tensor, " N"]) -> "Task":
        """The task of the other training rows; its validation rows are left out too."""
        keep = torch.nonzero(~left_out)[:, 0]
        return replace(
            self,
            x=self.x[keep],
            labels=self.labels[keep],
            norms=None if self.norms is None else self.norms[keep],
            validation=None,
            companions={name: each.of(keep) for name, each in self.companions.items()},
            table_rows=self.rows[keep],
        )

    def query(self, kind: str = "text") -> Query:
        """What evaluation will ask, with the texts of the training cache."""
        return Query(kind, self.class_names, self.texts[self.queries[kind]])

    def facts(self) -> "Facts":
        return Facts(self.class_names, self.modality, self.widths, self.logit_scale)


@dataclass(frozen=True)
class Facts:
    """What a fitted method is rebuilt from, beside its settings and its tensors."""

    class_names: tuple[str, ...]
    modality: str
    widths: Mapping[str, int]
    logit_scale: float
    newcomers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tools:
    """What a method may use beside its task: where to compute, who hears of progress, a text tower if one is
    at hand (prompt learners send gradients through it), the images as tokens of an image tower if that is,
    and the words of a table of captions (name -> a sentence for each row)."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    progress: Progress | None = None
    text_tower: Any = None
    pictures: Any = None
    sentences: Any = None


def check_classes(method: str, class_names: tuple[str, ...], query: Query) -> None:
    """Mismatch, naming the first difference, unless the query asks about the classes that were learned."""
    if query.class_names == class_names:
        return
    pairs = zip(class_names, query.class_names, strict=False)
    i, (a, b) = next(
        ((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1]),
        (min(len(class_names), len(query.class_names)), ("", "")),
    )
    differ = f"class {i} is {a!r} and {b!r}" if a or b else "one list is longer"
    raise Mismatch(
        f"{method} was fitted on {len(class_names):,} classes and is asked about {len(query.class_names):,} "
        f"({differ}); a head knows its training classes alone; "
        "score it on a cache of the same class list, or use method=spaner or zero_shot"
    )
