"""CAMPE: K learned suffixes behind a caption, each read by itself, D / K numbers of each. A reconstruction.

    e_ki = tower([start] [name k] s_i1 ... s_iM . [end]),   t'_k = n([P_1 e_k1; ...; P_K e_kK]),
    logits = s x.t'_k

with M learned vectors and a map P_i (D -> D / K) per suffix; the loss is that of `campe_lite`, where the
negated form of a prompt is `[name k] [is not] s_i1 ... s_iM`. After Kim & Angelova (arXiv:2508.02762), as far
as it tells: there a language model is the text tower and one pass masks the prompts from each other. Here the
caption stands first, so that what a causal tower keeps of it serves all suffixes for ever, and each suffix is
a context of its own: it sees the caption and itself alone. Reconstruction: the paper's weights, K and code
are not public; words, maps, the place of the negative, optimiser and every default are ours.

Captions are the class names of a few-shot task, among all of them, or with `texts` "caption" the sentences of
a list, in the batch (`captioned`): a cache keeps no words, so `tools` must hold them, and what does not fit
the tower's window is cut off. Images come from the cache. Starts at the same words in all
suffixes and the identity's rows as maps: untrained, it is zero-shot with "[name] [words].".
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from spaner.align.methods import prompting
from spaner.align.methods.blocks import BlockMaps, check_blocks, follow_blocks, joined
from spaner.align.methods.captioned import follow_captions, learned_from
from spaner.align.methods.coop import start_context
from spaner.align.methods.prompting import LearnedTexts, Prompted, Tower
from spaner.align.methods.state import load_tensors, module_tensors
from spaner.align.methods.task import Captions, Facts, Task, Tools
from spaner.errors import RunError
from spaner.settings import check, option

AT_ONCE = 256
"""Sentences that are embedded at once where no gradient is taken."""


@dataclass(frozen=True)
class Settings:
    """Settings of CAMPE."""

    blocks: int = option(4, "Prompts K, a divisor of the embedding's width: each fills D / K of it.", low=1)
    context: int = option(4, "Vectors M of a suffix, where no words give the start.", low=1)
    words: str = option("in a photo", 'Words that every suffix starts as, and M; "" starts at random.')
    div: float = option(0.1, "Weight of the blocks' mean squared cosine; 0: off.", low=0)
    neg: float = option(1.0, "Weight of the negated prompt as one more negative a row; 0: off.", low=0)
    negation: str = option("is not", "Words between a caption and a suffix that negate it.", axis=None)
    texts: Literal["class", "caption"] = learned_from()
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


class SentencePrompts:
    """Sentences in a tower, and what negates them: what `captioned.Worded` asks of both.

    Args:
        forms: sentences that say the opposite, by place; of others words of negation stand behind them.
    """

    def __init__(
        self,
        learned: SuffixPrompts,
        tower: Tower,
        words: list[str],
        forms: Mapping[int, str],
        negation: str,
        block_rows: int,
    ) -> None:
        self.learned, self.tower, self.words, self.forms = learned, tower, words, forms
        self.negation, self.options = negation, prompting.in_blocks(block_rows)

    def __call__(
        self, chosen: Int[Tensor, " B"], /, *, negated: bool
    ) -> tuple[Tensor, Tensor | None, Bool[Tensor, " B"]]:
        places = chosen.tolist()
        denied = torch.full((len(places),), negated, device=self.tower.device)
        return self.blocks([self.words[i] for i in places]), self.denied(places) if negated else None, denied

    def denied(self, chosen: list[int]) -> Float[Tensor, "B K E"]:
        """Of the negated forms."""
        told = [n for n, i in enumerate(chosen) if i in self.forms]
        other = [n for n, i in enumerate(chosen) if i not in self.forms]
        before = self.tower.context_of(f" {self.negation}")
        parts = [self.blocks([self.forms[chosen[n]] for n in told])] if told else []
        parts += [self.blocks([self.words[chosen[n]] for n in other], before)] if other else []
        return torch.cat(parts)[torch.tensor(told + other).argsort()]

    def blocks(self, words: list[str], before: Float[Tensor, "n W"] | None = None) -> Float[Tensor, "C K E"]:
        """Of sentences, whose full stop goes behind the suffix."""
        length = self.learned.suffixes.shape[1] + (0 if before is None else len(before))
        names = [each.rstrip(" .") or each for each in words]
        return self.learned(self.tower.prompted(names, length, "front", cut=True, **self.options), before)


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
    reads_words: ClassVar[bool] = True
    tower: Tower | None = None
    sentences: Any = None

    def __init__(self, learned: SuffixPrompts, text: Tensor, facts: Facts) -> None:
        super().__init__(text, facts)
        self.learned = learned

    @classmethod
    def fit(cls, task: Task, settings: Any, tools: Tools) -> Self:
        """Train from the cache's images and the tower that `tools` hold.

        Raises:
            RunError: no tower, no words for captions, or a loss that is not finite. Mismatch: a tower of
                other weights, or see `blocks.check_blocks`.
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
        if task.captions is None:
            history = follow_blocks(asked, learned, task, settings, tools, tower.device)
        else:
            words = words_of(task.captions, tools)
            worded = SentencePrompts(learned, tower, *words, settings.negation, settings.block_rows)
            history = follow_captions(worded, learned, task, settings, tools, tower.device)
        with torch.no_grad():
            blocks_of, denied = asked(negated=True)
            text, negated = joined(blocks_of).cpu(), None if denied is None else joined(denied).cpu()
        there = deepcopy(learned.requires_grad_(requires_grad=False))
        fitted = cls(learned.cpu(), text, task.facts())
        fitted.history, fitted.negated = history, negated
        fitted.tower, fitted.sentences = tower, tools.sentences
        blocks = prompting.in_blocks(settings.block_rows)
        fitted.speak = lambda names: joined(
            there(tower.prompted(prompting.spoken(names), there.suffixes.shape[1], "front", **blocks))
        )
        return fitted

    @torch.no_grad()
    def word_rows(self, words: list[str]) -> Float[Tensor, "N D"]:
        """Unit vectors of sentences, through the tower that was put beside it."""
        assert self.tower is not None, "a loaded run is given its tower first"
        learned = deepcopy(self.learned).to(self.tower.device)
        prompts = SentencePrompts(learned, self.tower, words, {}, "", 0)
        parts = [prompts.blocks(words[start : start + AT_ONCE]) for start in range(0, len(words), AT_ONCE)]
        return joined(torch.cat(parts)).cpu()

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


def words_of(captions: Captions, tools: Tools) -> tuple[list[str], dict[int, str]]:
    """The sentences of a task's captions, and by place those that say the opposite of one.

    Raises:
        RunError: nobody knows them.
    """
    if tools.sentences is None:
        raise RunError(
            "campe reads captions as words, and a cache keeps none of caption/train; expected their list; "
            "type `spaner train --method campe --texts caption --pixels csv:FILE`, or pass sentences= to fit"
        )
    said = tools.sentences("caption/train")
    opposed = tools.sentences("negated/train") if captions.denied.any() else []
    forms = {i: opposed[row] for i, row in enumerate(captions.forms.tolist()) if row >= 0}
    return [said[row] for row in captions.rows.tolist()], forms
