"""SPANER: one shared prompt, and an aligner per modality that reads it.

Paper: SPANER, eqs. 1-6 and Algorithms 1-2. For each modality i with embedding x_i and aligner A_i:

    f_i, z_i = A_i(x_i, S)                                   eqs. 1-3, see `align.attention`
    L = L_align(f_1, f_2) + lambda L_CA(z_1, z_2)            contrastive losses, see `align.losses`

Needs embeddings of frozen encoders; x is normalised to unit length here. Does not know any encoder, cache or
file.

Where the paper contradicts itself or is silent, the default is what measured best, and the other reading is
an option:

    what x attends to      [x; S] (eq. 1)                 attend="prompt": S alone ("each x attends only to
    S")
    pooled tokens          [x'; S'] (Algorithm 2)         pool="input": [x; S] (eq. 3 as printed)
    projection input       x' + x (eq. 2)                 project="input": x (Algorithm 2 as printed)
    targets                diagonal (Algorithm 1)         targets="class": all pairs of a class
    loss direction         mean of both                   direction="image" or "text"
    prompt                 N(0, 0.02^2)                   prompt_std; N(0, 1) collapses training
    logit scale            the encoder's own, fixed       any number

Differs from the reference in: `init="identity"` and `blend` (the recipe "anchored"), which are ours. With a
blend beta > 0, f <- normalise((1 - beta) normalise(f) + beta x) at inference; training never sees it.
"""

import inspect
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from spaner.align.methods import method as methods
from spaner.align.methods.losses import collision_rate, contrastive
from spaner.errors import RecipeError


class Spaner(nn.Module):
    """The trainable part: prompt S (P, D), aligners, and a linear map into D for modalities of another width.

    Args:
        widths: embedding width of each modality. The first decides D, the width of the prompt.
        logit_scale: 1 / temperature of both losses.
        seed: of the initial weights; torch's global generator is neither read nor moved.
        aligner: name of a registered aligner; `attend`, `pool`, `project` are handed to it.
        out_dim: E; default D.
        lam: weight lambda of L_CA.

    Raises:
        RecipeError: heads that do not divide D; identity start or blend with E != D.
    """

    NUMBERS = ("lam", "logit_scale")
    """What `loss` takes as tensors too, so that models which differ in it can be trained as one."""

    def __init__(
        self,
        widths: Mapping[str, int],
        *,
        logit_scale: float,
        seed: int = 1,
        prompt_length: int = 2,
        prompt_std: float = 0.02,
        aligner: str = "attention",
        heads: int = 8,
        out_dim: int | None = None,
        attend: Literal["all", "prompt"] = "all",
        pool: Literal["output", "input"] = "output",
        project: Literal["residual", "input"] = "residual",
        init: Literal["random", "identity"] = "random",
        blend: float = 0.0,
        lam: float = 1.0,
        direction: Literal["both", "image", "text"] = "both",
        targets: Literal["diagonal", "class"] = "diagonal",
    ) -> None:
        super().__init__()
        self.dim = next(iter(widths.values()))
        self.out_dim = self.dim if out_dim is None else out_dim
        if blend and self.out_dim != self.dim:
            raise RecipeError(
                f"blend={blend} mixes embeddings of width {self.dim} into a space of width {self.out_dim}; "
                f"use out_dim={self.dim} or blend=0"
            )
        self.logit_scale, self.blend, self.lam = logit_scale, blend, lam
        self.direction, self.targets, self.init = direction, targets, init
        self._aligner = aligner, {"heads": heads, "attend": attend, "pool": pool, "project": project}
        with _own_randomness(seed, "prompt"):
            self.prompt = nn.Parameter(torch.randn(prompt_length, self.dim) * prompt_std)
        self.aligners, self.inputs = nn.ModuleDict(), nn.ModuleDict()
        self.newcomers: set[str] = set()
        for modality, width in widths.items():
            self._add(modality, width, seed)

    @classmethod
    def build(cls, config: Any, widths: Mapping[str, int], logit_scale: float) -> "Spaner":
        """From a `TrainConfig` and facts of the data (see `methods.Method`)."""
        names = set(inspect.signature(cls).parameters) - {"widths", "logit_scale"}
        return cls(widths, logit_scale=logit_scale, **{name: getattr(config, name) for name in names})

    def join(self, modality: str, width: int, seed: int) -> None:
        """Let a modality join the trained core. Its embeddings mean nothing in the core's frozen space, so it
        neither starts at the identity nor is it blended."""
        self.newcomers.add(modality)
        self._add(modality, width, seed)

    def _add(self, modality: str, width: int, seed: int) -> None:
        """Give a modality its aligner, and a map from `width` into D where they differ."""
        name, options = self._aligner
        with _own_randomness(seed, modality):
            aligner = methods.aligner(name)(self.dim, self.out_dim, **options)
            if self.init == "identity" and modality not in self.newcomers:
                aligner.start_at_identity()
            self.aligners[modality] = aligner
            if width != self.dim:
                self.inputs[modality] = nn.Linear(width, self.dim)

    def tokens(self, modality: str, x: Float[Tensor, "B M"]) -> Float[Tensor, "B D"]:
        """Embeddings as the aligner reads them: mapped into D where the widths differ, of unit length."""
        if modality in self.inputs:
            x = self.inputs[modality](F.normalize(x, dim=1))
        return F.normalize(x, dim=1)

    def forward(
        self, modality: str, x: Float[Tensor, "B M"]
    ) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B D"]]:
        """f (eq. 2) and z (eq. 3), neither normalised."""
        return self.aligners[modality](self.tokens(modality, x), self.prompt)

    def loss(
        self,
        batch: Mapping[str, Float[Tensor, "B M"]],
        labels: Int[Tensor, " B"],
        **numbers: Float[Tensor, ""],
    ) -> dict[str, Float[Tensor, ""]]:
        """L, its two terms, and the share of samples whose class occurs twice. `batch` holds two modalities.

        `numbers` replace those of `NUMBERS` by tensors: models that are trained as one have each their own.
        """
        lam, scale = numbers.get("lam", self.lam), numbers.get("logit_scale", self.logit_scale)
        (f1, z1), (f2, z2) = (self(modality, x) for modality, x in batch.items())
        exact = torch.promote_types(f1.dtype, torch.float32)  # bfloat16 would round cosines to 1/256
        with torch.autocast(f1.device.type, enabled=False):
            positives = labels if self.targets == "class" else None
            options = {"direction": self.direction, "labels": positives}
            align = contrastive(f1.to(exact), f2.to(exact), scale, **options)
            pooled = contrastive(z1.to(exact), z2.to(exact), scale, **options)
        return {
            "loss": align + lam * pooled,
            "align": align,
            "ca": pooled,
            "collision_rate": collision_rate(labels),
        }

    def embed(self, modality: str, x: Float[Tensor, "N M"]) -> Float[Tensor, "N E"]:
        """Unit vectors of the shared space, the frozen embedding of the core's modalities blended in."""
        x = self.tokens(modality, x)
        f = F.normalize(self.aligners[modality](x, self.prompt)[0], dim=1)
        if not self.blend or modality in self.newcomers:
            return f
        return F.normalize((1 - self.blend) * f + self.blend * x, dim=1)


@contextmanager
def _own_randomness(seed: int, part: str) -> Iterator[None]:
    """Draws inside depend on seed and part alone, and leave torch's global generator where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{seed}/{part}".encode()))
        yield
