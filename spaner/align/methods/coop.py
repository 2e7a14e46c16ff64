"""CoOp: learn the words around the class names; the encoder stays frozen.

    t_k = n(tower([start] v1 ... vM [name k] . [end])),   logits = s x.t_k,   cross entropy

Zhou et al. 2022 (arXiv:2109.01134), after KaiyangZhou/CoOp ff61507 with Dassl c61a1b5: the vectors stand
before the name, around it or behind it, shared by all classes or one set for each; they start as words
(which fix M) or as N(0, 0.02^2). SGD 0.002, momentum 0.9, decay 5e-4, a cosine stepped once an epoch after
one warm-up epoch.

Images come from the cache: a step is the text tower and one product. Differs from the authors' code in:
float32 instead of float16; an epoch's random crop is one of the cached views; the text tower computes only
what the result depends on (exact).
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from spaner.align.methods.prompting import Prompted, Tower, class_vectors, descend


def start_context(
    tower: Tower, *, words: str, length: int, classes: int | None, seed: int
) -> Float[Tensor, "*C M W"]:
    """The words' vectors, if there are words; else `length` random ones, for each class its own if
    `classes`."""
    if words:
        context = tower.context_of(words.replace("_", " "))
        return context if classes is None else context.expand(classes, -1, -1).clone()
    shape = (length, tower.width) if classes is None else (classes, length, tower.width)
    return 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def train_context(
    prompted: Prompted,
    context: Float[Tensor, "*C M W"],
    x: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    *,
    scale: float,
    rates: Iterable[float],
    batches: Iterable[Int[Tensor, " B"]],
    weight_decay: float = 5e-4,
    momentum: float = 0.9,
) -> Iterator[Float[Tensor, ""]]:
    """Train the context in place, a step for every loss that is taken; `x` has unit length."""

    def loss(rows: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        logits = scale * x[rows] @ class_vectors(prompted, context).T
        return F.cross_entropy(logits, labels[rows % len(labels)])

    return descend([context], loss, rates, batches, weight_decay=weight_decay, momentum=momentum)
