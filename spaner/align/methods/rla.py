"""RLA: one linear map of the image embedding, held to the identity.

    logits = s n(x A').t_k,   loss = CE + lambda |A - I|^2,   A = I at the start

Fahes et al. 2024 (ProLIP), its regularised linear adapter; code astra-vision/ProLIP b43e795. Adam (eps
1e-4), the whole batch at once, 300 iterations on a cosine to zero, iteration i on view (i + 1) mod V. With
lambda = 1 / shots and the rate 1e-5 nothing is chosen by anybody.

Differs from the reference in: float32 where it runs in float16; rows are of unit length, which leaves
function and gradient as they are. Kept from the released code: view 0 comes last. The result is a space:
texts stay where they were, and classes that were never seen can be asked for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from spaner.align.methods import descent
from spaner.align.methods.state import check_shapes
from spaner.align.methods.support import require_one_width, shots, trained_texts
from spaner.align.methods.task import Facts, Query, Task, Tools
from spaner.settings import check, option


@dataclass(frozen=True)
class Settings:
    """Settings of RLA."""

    lam: float | None = option(None, "Weight of |A - I|^2; default: 1 / shots.", low=0)
    iterations: int = option(300, "Full-batch steps.", low=1)
    lr: float = option(1e-5, "Adam's initial rate; falls to zero along a cosine.", low=1e-12)

    def __post_init__(self) -> None:
        check(self)


def terms(
    matrix: Float[Tensor, "D D"],
    x: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    text: Float[Tensor, "K D"],
    scale: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross entropy, and the squared distance from the identity."""
    logits = scale * F.normalize(x @ matrix.T, dim=1) @ text.T
    away = matrix - torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return F.cross_entropy(logits, labels), away.square().sum()


def train_map(
    matrix: Float[Tensor, "D D"],
    views: Float[Tensor, "V N D"],
    labels: Int[Tensor, " N"],
    text: Float[Tensor, "K D"],
    *,
    scale: float,
    lam: float,
    rates: list[float],
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-4,
) -> Iterator[tuple[Float[Tensor, ""], Float[Tensor, ""]]]:
    """Train the map in place; both terms before every step."""
    optimizer = torch.optim.Adam([matrix], lr=0.0, betas=betas, eps=eps)
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        entropy, away = terms(matrix, views[(step + 1) % len(views)], labels, text, scale)
        optimizer.zero_grad()
        (entropy + lam * away).backward()
        optimizer.step()
        yield entropy.detach(), away.detach()


class Rla:
    """A (D, D)."""

    Settings: ClassVar[type] = Settings
    training: ClassVar[Mapping[str, Any] | None] = None
    reads_query: ClassVar[bool] = True

    def __init__(self, matrix: Tensor, facts: Facts) -> None:
        self.matrix, self.facts = matrix, facts
        self.logit_scale = facts.logit_scale
        self.history: list[dict[str, float]] = []

    @classmethod
    def fit(cls, task: Task, settings: Any, tools: Tools) -> Self:
        """Every row at every step.

        Raises:
            RunError: the loss is not finite. Mismatch: images and texts have different widths.
        """
        require_one_width("rla", task)
        device, rates = tools.device, descent.cosine(settings.lr, settings.iterations)
        matrix = torch.eye(task.x.shape[2], device=device).requires_grad_()
        lam = 1 / shots(task) if settings.lam is None else settings.lam
        steps = train_map(
            matrix,
            task.x.transpose(0, 1).contiguous().to(device),
            task.labels.to(device),
            trained_texts(task).classes.to(device),
            scale=task.logit_scale,
            lam=lam,
            rates=rates,
        )
        losses = (entropy + lam * away for entropy, away in steps)
        history = list(descent.by_epoch(losses, rates, 1, tools.progress))
        fitted = cls(matrix.detach().cpu(), task.facts())
        fitted.history = history
        return fitted

    def embed(self, modality: str, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Rows of the trained modality through A, all others as they are; unit length."""
        return F.normalize(x @ self.matrix.T if modality == self.facts.modality else x, dim=1)

    def scores(self, x: Float[Tensor, "N D"], query: Query) -> Float[Tensor, "N C"]:
        """Scaled cosines to the query's texts."""
        return self.logit_scale * self.embed(self.facts.modality, x) @ query.texts.classes.T

    def state(self) -> dict[str, Tensor]:
        """The map."""
        return {"matrix": self.matrix}

    @classmethod
    def restore(cls, state: Mapping[str, Tensor], settings: Any, facts: Facts) -> Self:
        """The inverse of `state`."""
        width = facts.widths[facts.modality]
        check_shapes({"matrix": (width, width)}, state)
        return cls(state["matrix"], facts)
