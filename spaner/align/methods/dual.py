"""Methods that learn inside both towers of an encoder: what they are handed, and how they are trained.

An image is not its cached embedding here but its *tokens*: what the first blocks made of it, read from a
token table of the cache where there is one, else computed from pixels. `align` never imports `extract`: both
towers arrive as arguments (`Tools`), known by the protocols `prompting.Tower` and `ImageSide` alone.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from spaner.align.methods import descent, prompting
from spaner.align.methods.task import Task, Tools
from spaner.errors import Mismatch, RunError


class ImageSide(Protocol):
    """A frozen image tower through which gradients go (`extract.encoders.image_tower.BlockTower`).

    Attributes:
        width: of a token. depth: number of blocks.
        sha256: of the encoder's weights.
    """

    @property
    def width(self) -> int: ...

    @property
    def depth(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    sha256: str

    def normed(self, vectors: Float[Tensor, "B M W"]) -> Float[Tensor, "B M W"]:
        """Vectors that join the tokens behind block 0."""
        ...

    def __call__(
        self, tokens: Float[Tensor, "B T W"], first: int = 0, touch: Any = None, *, recompute: bool = False
    ) -> Float[Tensor, "B D"]:
        """Embeddings of tokens after `first` blocks."""
        ...


class Pictures(Protocol):
    """A cache's images as tokens (`extract.pictures.CachedPictures`)."""

    tower: ImageSide

    def tokens(
        self, table: str, rows: Int[Tensor, " B"], views: Int[Tensor, " B"], block: int
    ) -> Float[Tensor, "B T W"]:
        """Tokens after `block` blocks of rows of a table, each in one of its views."""
        ...


class TokenPool:
    """The training images, numbered view * N + row, as tokens; read when a batch asks for them."""

    def __init__(self, pictures: Pictures, task: Task, block: int) -> None:
        self.pictures, self.table, self.block = pictures, f"{task.modality}/train", block
        self.rows = task.rows

    def __getitem__(self, numbers: Int[Tensor, " B"]) -> Float[Tensor, "B T W"]:
        numbers, count = numbers.cpu(), len(self.rows)
        return self.pictures.tokens(self.table, self.rows[numbers % count], numbers // count, self.block)


def sides_of(method: str, task: Task, tools: Tools, least: int) -> tuple[prompting.Tower, Pictures]:
    """Text tower and pictures that were handed in, if they are the cache's encoder and deep enough.

    Raises:
        RunError: one was not handed in, or has fewer blocks than `least`. Mismatch: other weights.
    """
    text, pictures = prompting.tower_of(method, task, tools), tools.pictures
    spec = task.encoders[task.modality]
    if pictures is None:
        raise RunError(
            f"method {method} needs the image tower beside the cache, and none was handed in; "
            f"expected that of {spec.name!r}; type `spaner train --method {method}`, or pass pictures= to fit"
        )
    if pictures.tower.sha256 != spec.weights_sha256:
        raise Mismatch(
            f"the image tower's weights are {pictures.tower.sha256[:12]}, "
            f"the cache's images were embedded with {spec.weights_sha256[:12]} ({spec.name}, "
            f"{spec.weights}); hand in the tower of that encoder: `--text-model` and `--text-weights`"
        )
    if not text.depth:
        raise RunError(
            f"method {method} learns inside causal blocks of the text tower, "
            f"and that of {spec.name!r} looks both ways or is of another kind; "
            "expected a text side such as that of ViT-B-16; use --method coop, which runs any tower whole"
        )
    for side, depth in (("text", text.depth), ("image", pictures.tower.depth)):
        if depth < least:
            raise RunError(
                f"method {method} reaches into {least} blocks, "
                f"and the {side} tower of {spec.name!r} has {depth}; expected at most {depth}; "
                "lower --depth, or --start and --end"
            )
    return text, pictures


def train_inside(
    learned: nn.Module,
    image_rows: Callable[[Float[Tensor, "B T W"]], Float[Tensor, "B D"]],
    class_rows: Callable[[], Float[Tensor, "C D"]],
    pool: Any,
    labels: Int[Tensor, " N"],
    *,
    scale: float,
    rates: Iterable[float],
    batches: Iterable[Int[Tensor, " B"]],
    weight_decay: float = 5e-4,
    momentum: float = 0.9,
) -> Iterator[Float[Tensor, ""]]:
    """Train the module in place, a step for every loss that is taken; `pool[rows]` are tokens."""
    parameters = learned.parameters()

    def logits(rows: Int[Tensor, " B"]) -> Float[Tensor, "B C"]:
        x = F.normalize(image_rows(pool[rows]), dim=1)
        return scale * x @ F.normalize(class_rows(), dim=1).T

    return descent.classify(
        parameters, logits, labels, rates=rates, batches=batches, weight_decay=weight_decay, momentum=momentum
    )


def tower_beside(method: str, pictures: Pictures | None) -> ImageSide:
    """The image tower of a run; RunError where it was loaded and nobody put one beside it."""
    if pictures is None:
        raise RunError(
            f"{method} changed the image tower and needs it to make image rows; a saved run has none; "
            "type `spaner eval --run RUN --cache CACHE`, or set run.model.pictures"
        )
    return pictures.tower
