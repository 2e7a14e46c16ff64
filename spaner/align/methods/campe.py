"""CAMPE: K learned suffixes behind a caption, each read by itself, D / K numbers of each. A reconstruction.

    e_ki = tower([start] [name k] s_i1 ... s_iM . [end]),   t'_k = n([P_1 e_k1; ...; P_K e_kK]),
    logits = s x.t'_k

with M learned vectors and a map P_i (D -> D / K) per suffix; the loss is that of `campe_lite`, where the
negated form of a prompt is `[name k] [is not] s_i1 ... s_iM`. After Kim & Angelova (arXiv:2508.02762), as far
as it tells: there a language model is the text tower and one pass masks the prompts from each other. Here the
caption stands first, so that what a causal tower keeps of it serves all suffixes for ever, and each suffix is
a context of its own: it sees the caption and itself alone. Reconstruction: the paper's weights, K and code
are not public; words, maps, the place of the negative, optimiser and every default are ours.

Captions are the class names of a few-shot task; images come from the cache. Starts at the same words in all
suffixes and the identity's rows as maps: untrained, it is zero-shot with "[name] [words].".
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spaner.align.methods import prompting
from spaner.align.methods.campe_lite import BlockMaps, check_blocks, follow_blocks, joined
from spaner.align.methods.coop import start_context
from spaner.align.methods.prompting import LearnedTexts, Prompted, Tower
from spaner.align.methods.state import load_tensors, module_tensors
from spaner.align.methods.task import Facts, Task, Tools
from spaner.settings import check, option


@dataclass(frozen=True)
class Settings:
    """Settings of CAMPE."""

    blocks: int = option(4, "Prompts K, a divisor of the embedding's width: each fills D / K of it.", low=1)
    context: int = option(4, "Vectors M of a suffix, where no words give the start.", low=1)
    words: str = option("in a photo", 'Words that every suffix starts as, and M; "" starts at random.')
    div: float = option(0.1, "Weight of the blocks' mean squared cosine; 0: off.", low=0)
    neg: float = option(1.0, "Weight of the negated prompt as one more negative a row; 0: off.", low=0)
    negation: str = option("is not", "Words between a caption and a suffix that negate it.", axis=None)
    block_rows: int = prompting.block_rows("the rest")

    def __post_init__(self) -> None:
        check(self)


class SuffixPrompts(nn.Module):
    """K suffixes (K, M, W), and the maps of their blocks."""

    def __init__(self, suffixes: Float[Tensor, "K M W"], dim: int) -> None:
        super().__init__()
        self.suffixes = nn.Parameter(suffixes)
        self.heads = BlockMaps(len(suffixes), dim)

    def forward(
        self, prompted: Prompted, before: Float[Tensor, "n W"] | None = None
    ) -> Float[Tensor, "C K E"]:
        """Blocks of every caption; `before` are vectors between caption and suffix, for which `prompted` must
        have room."""
        context = self.suffixes
        if before is not None:
            context = torch.cat([before.to(context.dtype).expand(len(context), -1, -1), context], 1)
        return self.heads(prompted(context))


class CampePrompts:
    """Captions in a tower, and their negated forms: what `campe_lite.Asked` asks of both."""

    def __init__(
        self, learned: SuffixPrompts, tower: Tower, names: list[str], negation: str, block_rows: int
    ) -> None:
        self.learned, self.before = learned, tower.context_of(f" {negation}")
        blocks = prompting.in_blocks(block_rows)
        length = learned.suffixes.shape[1]
        self.prompted = tower.prompted(names, length, "front", **blocks)
        self.negated = tower.prompted(names, length + len(self.before), "front", **blocks)

    def __call__(self, *, negated: bool) -> tuple[Tensor, Tensor | None]:
        blocks = self.learned(self.prompted)
        return blocks, self.learned(self.negated, self.before) if negated else None


class Campe(LearnedTexts):
    """Suffixes and maps, and one unit vector per class that the tower made with them."""

    Settings: ClassVar[type] = Settings
    name: ClassVar[str] = "campe"
    training: ClassVar[Mapping[str, Any] | None] = {
        "epochs": 50,
        "batch_size": 32,
        "lr": 1e-3,
        "weight_decay": 0.0,
    }
    needs_tower: ClassVar[bool] = True

    def __init__(self, learned: SuffixPrompts, text: Tensor, facts: Facts) -> None:
        super().__init__(text, facts)
        self.learned = learned

    @classmethod
    def fit(cls, task: Task, settings: Any, tools: Tools) -> Self:
        """Train from the cache's images and the tower that `tools` hold.

        Raises:
            RunError: no tower, or a loss that is not finite. Mismatch: a tower of other weights, or see
                `campe_lite.check_blocks`.
        """
        tower = prompting.tower_of(cls.name, task, tools)
        dim = check_blocks(cls.name, settings.blocks, task)
        words = f" {settings.words}" if settings.words else ""
        start = start_context(
            tower, words=words, length=settings.context, classes=settings.blocks, seed=settings.seed
        )
        learned = SuffixPrompts(start.float(), dim).to(tower.device)
        names = prompting.spoken(task.class_names)
        asked = CampePrompts(learned, tower, names, settings.negation, settings.block_rows)
        history = follow_blocks(asked, learned, task, settings, tools, tower.device)
        with torch.no_grad():
            blocks_of, denied = asked(negated=True)
            text, negated = joined(blocks_of).cpu(), None if denied is None else joined(denied).cpu()
        there = deepcopy(learned.requires_grad_(requires_grad=False))
        fitted = cls(learned.cpu(), text, task.facts())
        fitted.history, fitted.negated = history, negated
        blocks = prompting.in_blocks(settings.block_rows)
        fitted.speak = lambda names: joined(
            there(tower.prompted(prompting.spoken(names), there.suffixes.shape[1], "front", **blocks))
        )
        return fitted

    def state(self) -> dict[str, Tensor]:
        """Suffixes, maps and class vectors."""
        return module_tensors(self.learned) | self.class_tensors()

    @classmethod
    def restore(cls, state: Mapping[str, Tensor], settings: Any, facts: Facts) -> Self:
        """The inverse of `state`, without a tower."""
        text, tensors = prompting.apart(state, facts, "suffixes", "heads.maps")
        learned = SuffixPrompts(torch.zeros_like(state["suffixes"]), facts.widths["text"])
        fitted = cls(load_tensors(learned, tensors).requires_grad_(requires_grad=False), text, facts)
        fitted.negated = state.get("negated")
        return fitted
