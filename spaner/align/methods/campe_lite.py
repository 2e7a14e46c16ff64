"""CAMPE without a tower: K attention queries over the cached embeddings of many templates. A reconstruction.

    e_ki = sum_j softmax_j(sqrt(D) q_i.t_kj) t_kj,   t'_k = n([P_1 e_k1; ...; P_K e_kK]),   logits = s x.t'_k

with t_kj class k in template j, a query q_i (D) and a map P_i (D -> D / K) per block. The loss is

    cross entropy with w_neg s x.t-_y as one more negative in each row  +  w_div mean over i < j of cos^2

of the blocks; t-_y is the row's own class in negated templates. After Kim & Angelova (arXiv:2508.02762), as
far as it tells. Reconstruction: the paper's weights, K and code are not public; queries, maps, the place of
the negative, optimiser and every default are ours. It starts at q = 0 and with the identity's rows as maps,
which is the mean of the templates: untrained, it is zero-shot.

With `texts` "caption" images are trained beside their cached captions instead (`captioned`). A caption has
one wording, so that only the maps learn. Needs one width for both modalities, of which K is a divisor.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from spaner.align.methods import prompting
from spaner.align.methods.blocks import BlockMaps, check_blocks, follow_blocks, joined
from spaner.align.methods.captioned import follow_captions, learned_from
from spaner.align.methods.prompting import LearnedTexts
from spaner.align.methods.state import load_tensors, module_tensors
from spaner.align.methods.task import Captions, Facts, Task, Tools
from spaner.errors import RunError
from spaner.settings import check, option


@dataclass(frozen=True)
class Settings:
    """Settings of CAMPE-lite."""

    blocks: int = option(4, "Prompts K, a divisor of the embedding's width: each fills D / K of it.", low=1)
    div: float = option(0.1, "Weight of the blocks' mean squared cosine; 0: off.", low=0)
    neg: float = option(
        0.0, "Weight of the negated class or caption as one more negative a row; 0: off.", low=0
    )
    negated: str = option("negated", "Text table of negated templates, for `neg`.", axis=None)
    texts: Literal["class", "caption"] = learned_from()

    def __post_init__(self) -> None:
        check(self)


class TemplateQueries(nn.Module):
    """K queries (K, D) over a class's templates, and the maps of their blocks."""

    def __init__(self, blocks: int, dim: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(blocks, dim))
        self.heads = BlockMaps(blocks, dim)

    def forward(self, texts: Float[Tensor, "C T D"]) -> Float[Tensor, "C K E"]:
        """Blocks of every class from unit vectors of its templates, however many."""
        scale = math.sqrt(texts.shape[2])
        weights = torch.einsum("kd,ctd->kct", scale * self.queries, texts).softmax(2)
        return self.heads(torch.einsum("kct,ctd->kcd", weights, texts))


class CachedCaptions:
    """Captions and their negated forms from the cache, through the maps: what `captioned.Worded` asks."""

    def __init__(self, learned: TemplateQueries, captions: Captions, device: torch.device) -> None:
        self.learned, self.device = learned, device
        self.x, self.forms = captions.x.to(device), captions.negated.to(device)
        self.denied = captions.denied.to(device)

    def __call__(
        self, chosen: Int[Tensor, " B"], /, *, negated: bool
    ) -> tuple[Tensor, Tensor | None, Bool[Tensor, " B"]]:
        chosen = chosen.to(self.device)
        blocks, denied = self.learned(self.x[chosen][:, None]), self.denied[chosen]
        with torch.set_grad_enabled(negated):
            return blocks, self.learned(self.forms[chosen][:, None]), denied


class CampeLite(LearnedTexts):
    """Queries and maps, and one unit vector per class that they made of its templates."""

    Settings: ClassVar[type] = Settings
    name: ClassVar[str] = "campe_lite"
    training: ClassVar[Mapping[str, Any] | None] = {
        "epochs": 50,
        "batch_size": 32,
        "lr": 1e-3,
        "weight_decay": 0.0,
    }

    def __init__(self, learned: TemplateQueries, text: Tensor, facts: Facts) -> None:
        super().__init__(text, facts)
        self.learned = learned

    @classmethod
    def fit(cls, task: Task, settings: Any, tools: Tools) -> Self:
        """Every row once an epoch, in a random one of its views, among all classes or a batch's captions.

        Raises:
            Mismatch: see `check_blocks`. RunError: nothing negated, or a loss that is not finite.
        """
        dim = check_blocks(cls.name, settings.blocks, task)
        texts, denied = task.text.to(tools.device), negated_texts(task, settings)
        denied = None if denied is None else denied.to(tools.device)
        learned = TemplateQueries(settings.blocks, dim).to(tools.device)

        def asked(*, negated: bool) -> tuple[Tensor, Tensor | None]:
            return learned(texts), learned(denied) if negated and denied is not None else None

        if task.captions is None:
            history = follow_blocks(asked, learned, task, settings, tools, tools.device)
        else:
            check_negated(task.captions, settings)
            worded = CachedCaptions(learned, task.captions, tools.device)
            history = follow_captions(worded, learned, task, settings, tools, tools.device)
        with torch.no_grad():
            text = joined(learned(texts)).cpu()
            negated = None if denied is None else joined(learned(denied)).cpu()
        fitted = cls(learned.requires_grad_(requires_grad=False).cpu(), text, task.facts())
        fitted.history, fitted.negated = history, negated
        return fitted

    @torch.no_grad()
    def caption_rows(self, t: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """A caption has one wording, so that only the maps of the blocks change it."""
        return joined(self.learned(t[:, None]))

    def state(self) -> dict[str, Tensor]:
        """Queries, maps and class vectors."""
        return module_tensors(self.learned) | self.class_tensors()

    @classmethod
    def restore(cls, state: Mapping[str, Tensor], settings: Any, facts: Facts) -> Self:
        """The inverse of `state`."""
        text, tensors = prompting.apart(state, facts, "queries", "heads.maps")
        learned = load_tensors(TemplateQueries(settings.blocks, facts.widths["text"]), tensors)
        fitted = cls(learned.requires_grad_(requires_grad=False), text, facts)
        fitted.negated = state.get("negated")
        return fitted


def negated_texts(task: Task, settings: Any) -> Float[Tensor, "C T D"] | None:
    """The classes in negated templates, where the cache has them.

    Raises:
        RunError: it has none, and `neg` needs them.
    """
    if settings.negated in task.texts:
        return task.texts[settings.negated].x
    if settings.neg and task.captions is None:
        raise RunError(
            f"neg is {settings.neg:g}, and the cache has no text table {settings.negated!r}; expected one of "
            "negated templates; write lines such as `a photo without a {}.` into "
            f"{settings.negated}.txt and type `spaner extract --templates {settings.negated}.txt` for this "
            "cache, or use neg=0"
        )
    return None


def check_negated(captions: Captions, settings: Any) -> None:
    """RunError where `neg` needs negated captions and there are none."""
    if settings.neg and not captions.denied.any():
        raise RunError(
            f"neg is {settings.neg:g}, and no caption of the training rows has a negated form; expected some "
            "in negated/train; type `spaner extract --negated-column NAME` beside --caption-column, or "
            "use neg=0"
        )
