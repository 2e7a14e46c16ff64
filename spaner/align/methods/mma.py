"""MMA, the multi-modal adapter: a bottleneck beside the MLP of the upper blocks, joined between the towers.

    x <- x + attn(n(x));   x <- x + mlp(n(x)) + s Up_k relu(Shared_k relu(Down_k n(x before)))

Yang et al., CVPR 2024, after ZjjConan/Multi-Modal-Adapter 547ee34: Down and Up are a tower's own, Shared (32
x 32) is the same in both, blocks 5 to 12, s = 0.001, Kaiming start (fan out), zero bias, "a photo of a {}.".
Its gradient is scaled by s on entering and by 1/s on leaving an adapter, so that what an adapter's weights
receive is 1/s of the true gradient, and what flows on is true. SGD 0.0015, five epochs, batches of 16
(ImageNet: 128).

Blocks below the first adapter never change: of texts they run once, of images their output is read as tokens
after block `start - 1`. Differs from the authors' code in: float32 instead of mixed precision; one of the
cached views an epoch; class vectors are those of the last step (theirs are kept from the first evaluation).
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
from spaner.align.methods.prompting import LearnedTexts
from spaner.align.methods.state import load_tensors, module_tensors
from spaner.align.methods.task import Facts, Task, Tools
from spaner.errors import RecipeError
from spaner.settings import check, option


@dataclass(frozen=True)
class Settings:
    """Settings of MMA."""

    words: str = option("a photo of a", "Words in front of the name.")
    start: int = option(5, "First block with an adapter, counted from 1.", low=1)
    end: int = option(12, "Last block with an adapter.", low=1)
    dim: int = option(32, "Width of the bottleneck.", low=1)
    strength: float = option(1e-3, "Share s of the adapters.", low=1e-9)
    block_rows: int = prompting.block_rows("everything")

    def __post_init__(self) -> None:
        check(self)
        if self.end < self.start:
            raise RecipeError(
                f"end={self.end} lies below start={self.start}; expected start <= end; use end={self.start}"
            )


class GradientScale(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        """`x` as it is."""
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The gradient, scaled."""
        return gradients[0] * ctx.factor, None


class Adapters(nn.Module):
    """Down and Up of both towers and what they share, by block number from 1."""

    def __init__(self, text: int, image: int, blocks: range, dim: int, strength: float) -> None:
        super().__init__()
        self.strength, self.blocks = strength, blocks
        self.text_adapter = nn.ModuleDict({str(k): _around(text, dim) for k in blocks})
        self.visual_adapter = nn.ModuleDict({str(k): _around(image, dim) for k in blocks})
        self.shared_adapter = nn.ModuleDict(
            {str(k): nn.Sequential(nn.Linear(dim, dim), nn.ReLU()) for k in blocks}
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def image_rows(
        self, tower: ImageSide, tokens: Float[Tensor, "B T V"], *, recompute: bool = False
    ) -> Float[Tensor, "B D"]:
        """Tokens after block `start - 1` -> embeddings."""
        own = next(self.parameters())
        tokens = tokens.to(own.device, own.dtype)
        return tower(tokens, self.blocks[0] - 1, _Beside(self, self.visual_adapter), recompute=recompute)

    def class_rows(self, begun: Any) -> Float[Tensor, "C D"]:
        """Embeddings of names whose lower blocks have been run."""
        return begun(_Beside(self, self.text_adapter))


def _around(width: int, dim: int) -> nn.ModuleDict:
    down = nn.Sequential(nn.Linear(width, dim), nn.ReLU())
    return nn.ModuleDict({"down": down, "up": nn.Linear(dim, width)})


class _Beside:
    """The adapters of one tower, as what acts inside its blocks."""

    def __init__(self, adapters: Adapters, own: Any) -> None:
        self.shared, self.strength, self.own = adapters.shared_adapter, adapters.strength, own

    def enter(self, block: int, x: Tensor) -> Tensor:
        return x

    def beside(self, block: int, normed: Float[Tensor, "*N W"]) -> Float[Tensor, "*N W"] | None:
        number = str(block + 1)
        if number not in self.own:
            return None
        scaled: Any = GradientScale.apply
        hidden = self.own[number]["down"](scaled(normed, self.strength))
        out = self.own[number]["up"](self.shared[number](hidden))
        return self.strength * scaled(out, 1 / self.strength)


class Mma(LearnedTexts):
    """The adapters, and one unit vector per class that the text tower made with them."""

    Settings: ClassVar[type] = Settings
    name: ClassVar[str] = "mma"
    training: ClassVar[Mapping[str, Any] | None] = {
        "epochs": 5,
        "batch_size": 16,
        "lr": 1.5e-3,
        "weight_decay": 5e-4,
    }
    needs_tower: ClassVar[bool] = True
    needs_pictures: ClassVar[bool] = True

    def __init__(
        self, adapters: Adapters, text: Tensor, facts: Facts, pictures: Pictures | None = None
    ) -> None:
        super().__init__(text, facts)
        self.adapters, self.pictures = adapters, pictures
        self.block = adapters.blocks[0] - 1

    @classmethod
    def fit(cls, task: Task, settings: Any, tools: Tools) -> Self:
        """Train through both towers that `tools` hold.

        Raises:
            RunError: no tower, too few blocks, or a loss that is not finite. Mismatch: other weights.
        """
        tower, pictures = dual.sides_of(cls.name, task, tools, settings.end)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            adapters = _built(settings, tower.width, pictures.tower.width).to(tower.device)
        context = tower.context_of(settings.words.replace("_", " "))
        blocks = prompting.in_blocks(settings.block_rows)

        def begun_of(names: Sequence[str]) -> Any:
            prompted = tower.prompted(prompting.spoken(names), len(context), **blocks)
            return prompted.begun(context[None], settings.start - 1)

        begun = begun_of(task.class_names)
        image_rows = partial(adapters.image_rows, pictures.tower, recompute=blocks["recompute"])
        train = partial(dual.train_inside, adapters, image_rows, partial(adapters.class_rows, begun))
        pool = dual.TokenPool(pictures, task, settings.start - 1)
        history = descent.follow(train, task, settings, tools, device=tower.device, pool=pool)
        with torch.no_grad():
            text = nn.functional.normalize(adapters.class_rows(begun), dim=1).cpu()
        fitted = cls(adapters.requires_grad_(requires_grad=False), text, task.facts(), pictures)
        fitted.history = history
        fitted.speak = lambda names: nn.functional.normalize(adapters.class_rows(begun_of(names)), dim=1)
        return fitted

    def image_rows(self, tokens: Float[Tensor, "B T V"]) -> Float[Tensor, "B D"]:
        """Embeddings of the adapted image tower, not normalised.

        Raises:
            RunError: a loaded run without a tower.
        """
        return self.adapters.image_rows(dual.tower_beside(self.name, self.pictures), tokens)

    def state(self) -> dict[str, Tensor]:
        """Adapters and class vectors."""
        return module_tensors(self.adapters) | {"text": self.text}

    @classmethod
    def restore(cls, state: Mapping[str, Tensor], settings: Any, facts: Facts) -> Self:
        """The inverse of `state`, without towers."""
        first = [f"{side}_adapter.{settings.start}.down.0.weight" for side in ("text", "visual")]
        text, learned = prompting.apart(state, facts, *first)
        widths = [state[name].shape[1] for name in first]
        adapters = load_tensors(_built(settings, *widths), learned)
        return cls(adapters.requires_grad_(requires_grad=False), text, facts)


def _built(settings: Any, text: int, image: int) -> Adapters:
    blocks = range(settings.start, settings.end + 1)
    return Adapters(text, image, blocks, settings.dim, settings.strength)
