"""MaPLe: prompts in the first blocks of both towers, those of the image made of those of the text.

    text, block 1:       [start] v1 ... vn [rest of the words] [name k] . [end]
    image, block 1:      [class] [patches] p1 ... pn,              p = A v + a
    blocks 2 ... depth:  the same places hold v^j and A_j v^j + a_j, whatever the block before left there

Khattak et al. 2023 (arXiv:2210.03117), after muzairkhattak/multimodal-prompt-learning 69bce21: n = 2 from
the first words of "a photo of a" (the other two stay frozen), depth 9, deeper prompts N(0, 0.02^2), a linear
map of its own for every depth; image prompts carry no position and go through the norm in front of the
blocks. SGD 0.0035, five epochs, batches of four.

Images are read as tokens after block 0. Differs from the authors' code in: float32, and prompts are not
rounded to float16 unless asked for; one of the cached views an epoch instead of a fresh crop; the text prefix
is run once for all names (exact).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spaner.align.methods import descent, dual, prompting
from spaner.align.methods.dual import ImageSide, Pictures
from spaner.align.methods.prompting import LearnedTexts, Reached, Tower
from spaner.align.methods.state import load_tensors, module_tensors
from spaner.align.methods.task import Facts, Task, Tools
from spaner.settings import check, option

BLOCK = 0
"""Images are read behind this block: the prompts join in front of the first."""


@dataclass(frozen=True)
class Settings:
    """Settings of MaPLe."""

    context: int = option(2, "Learned vectors n; more than there are words start at random.", low=1)
    words: str = option("a photo of a", "Words in front of the name; the first n are where learning starts.")
    depth: int = option(9, "Blocks that get prompts, the first included.", low=1)
    rounded: bool = option(
        default=False,
        help="Round prompts to float16 where they are put in, as the authors' code does.",
        axis=None,
    )
    block_rows: int = prompting.block_rows("everything")

    def __post_init__(self) -> None:
        check(self)


class DeepPrompts(nn.Module):
    """Prompts of every depth, and the maps from text to image prompts."""

    def __init__(
        self, context: Float[Tensor, "n W"], depth: int, image_width: int, *, rounded: bool = False
    ) -> None:
        super().__init__()
        self.rounded = rounded
        length, width = context.shape
        self.ctx = nn.Parameter(context)
        self.proj = nn.Linear(width, image_width)
        deeper = range(depth - 1)
        self.compound_prompts_text = nn.ParameterList(
            [nn.Parameter(0.02 * torch.randn(length, width)) for _ in deeper]
        )
        self.compound_prompt_projections = nn.ModuleList([nn.Linear(width, image_width) for _ in deeper])

    def image_rows(
        self, tower: ImageSide, tokens: Float[Tensor, "B T V"], *, recompute: bool = False
    ) -> Float[Tensor, "B D"]:
        """Tokens after block 0 -> embeddings, with the image prompts behind the patches."""
        tokens = tokens.to(self.ctx.device, self.ctx.dtype)
        first = tower.normed(self._put(self.proj(self.ctx))[None]).expand(len(tokens), -1, -1)
        deeper = [
            self._put(project(prompt))
            for project, prompt in zip(
                self.compound_prompt_projections, self.compound_prompts_text, strict=True
            )
        ]
        touch = _Replaced(deeper, slice(-len(self.ctx), None))
        return tower(torch.cat([tokens, first], 1), BLOCK, touch, recompute=recompute)

    def class_rows(self, prompted: Reached) -> Float[Tensor, "C D"]:
        """Embeddings of the names behind the text prompts."""
        deeper = [self._put(prompt) for prompt in self.compound_prompts_text]
        touch = _Replaced(deeper, slice(1, 1 + len(self.ctx)))
        return prompted(self.ctx[None], touch=touch)[0]

    def _put(self, prompt: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
        return prompt.half().to(prompt.dtype) if self.rounded else prompt


class _Replaced:
    """From the second block on, as long as there are prompts, some tokens are prompts again."""

    def __init__(self, prompts: list[Tensor], places: slice) -> None:
        self.prompts, self.places = prompts, places

    def enter(self, block: int, x: Float[Tensor, "B P W"]) -> Float[Tensor, "B P W"]:
        if not 1 <= block <= len(self.prompts):
            return x
        start, stop, _ = self.places.indices(x.shape[1])
        prompt = self.prompts[block - 1].expand(len(x), -1, -1)
        return torch.cat([x[:, :start], prompt, x[:, stop:]], 1)

    def beside(self, block: int, normed: Tensor) -> None:
        return None


def start_prompts(tower: Tower, words: str, length: int, seed: int) -> tuple[Float[Tensor, "n W"], str]:
    """The first n words' vectors, and the words that stay behind them; random ones, and no words, where n is
    larger."""
    spoken = words.replace("_", " ").split()
    if length > len(spoken):
        return 0.02 * torch.randn(length, tower.width, generator=torch.Generator().manual_seed(seed)), ""
    return tower.context_of(" ".join(spoken[:length])), " ".join(spoken[length:])


def names_behind(rest: str, names: Sequence[str]) -> list[str]:
    """Names as they follow the learned vectors."""
    return [f"{rest} {name}".strip() for name in prompting.spoken(names)]


class MaPLe(LearnedTexts):
    """The prompts, and one unit vector per class that the text tower made with them."""

    Settings: ClassVar[type] = Settings
    name: ClassVar[str] = "maple"
    training: ClassVar[Mapping[str, Any] | None] = {
        "epochs": 5,
        "batch_size": 4,
        "lr": 3.5e-3,
        "weight_decay": 5e-4,
    }
    needs_tower: ClassVar[bool] = True
    needs_pictures: ClassVar[bool] = True
    block: int = BLOCK

    def __init__(
        self, prompts: DeepPrompts, text: Tensor, facts: Facts, pictures: Pictures | None = None
    ) -> None:
        super().__init__(text, facts)
        self.prompts, self.pictures = prompts, pictures

    @classmethod
    def fit(cls, task: Task, settings: Any, tools: Tools) -> Self:
        """Train through both towers that `tools` hold.

        Raises:
            RunError: no tower, too few blocks, or a loss that is not finite. Mismatch: other weights.
        """
        tower, pictures = dual.sides_of(cls.name, task, tools, settings.depth)
        context, rest = start_prompts(tower, settings.words, settings.context, settings.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            prompts = DeepPrompts(
                context.cpu(), settings.depth, pictures.tower.width, rounded=settings.rounded
            ).to(tower.device)
        blocks = prompting.in_blocks(settings.block_rows)
        prompted = tower.prompted(names_behind(rest, task.class_names), len(context), **blocks)
        image_rows = partial(prompts.image_rows, pictures.tower, recompute=blocks["recompute"])
        train = partial(dual.train_inside, prompts, image_rows, partial(prompts.class_rows, prompted))
        pool = dual.TokenPool(pictures, task, BLOCK)
        history = descent.follow(train, task, settings, tools, device=tower.device, pool=pool)
        with torch.no_grad():
            text = nn.functional.normalize(prompts.class_rows(prompted), dim=1).cpu()
        fitted = cls(prompts.requires_grad_(requires_grad=False), text, task.facts(), pictures)
        fitted.history = history

        def speak(names: Sequence[str]) -> Float[Tensor, "C D"]:
            other = tower.prompted(names_behind(rest, names), len(context), **blocks)
            return nn.functional.normalize(prompts.class_rows(other), dim=1)

        fitted.speak = speak
        return fitted

    def image_rows(self, tokens: Float[Tensor, "B T V"]) -> Float[Tensor, "B D"]:
        """Embeddings of the adapted image tower, not normalised.

        Raises:
            RunError: a loaded run without a tower.
        """
        return self.prompts.image_rows(dual.tower_beside(self.name, self.pictures), tokens)

    def state(self) -> dict[str, Tensor]:
        """Prompts, maps and class vectors."""
        return module_tensors(self.prompts) | {"text": self.text}

    @classmethod
    def restore(cls, state: Mapping[str, Tensor], settings: Any, facts: Facts) -> Self:
        """The inverse of `state`, without towers."""
        text, learned = prompting.apart(state, facts, "ctx", "proj.bias")
        start, width = torch.zeros_like(state["ctx"]), len(state["proj.bias"])
        prompts = load_tensors(DeepPrompts(start, settings.depth, width, rounded=settings.rounded), learned)
        return cls(prompts.requires_grad_(requires_grad=False), text, facts)
