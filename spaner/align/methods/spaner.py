"""SPANER: one shared prompt, and an aligner per modality that reads it.

Paper: SPANER, eqs. 1-6 and Algorithms 1-2. For each modality i with embedding x_i and aligner A_i:

    f_i, z_i = A_i(x_i, S)                                   eqs. 1-3, see `align.attention`
    L = L_align(f_1, f_2) + lambda L_CA(z_1, z_2)            contrastive losses, see `align.losses`

Needs embeddings of frozen encoders; x is normalised to unit length here. Does not know any encoder, cache or
file.

Where the paper contradicts itself or is silent, the default is what measured best, and the other reading is
an option:

    what x attends to      [x; S] (eq. 1)                 attend="prompt": S alone, as the text says
    pooled tokens          [x'; S'] (Algorithm 2)         pool="input": [x; S] (eq. 3 as printed)
    projection input       x' + x (eq. 2)                 project="input": x (Algorithm 2 as printed)
    targets                diagonal (Algorithm 1)         targets="class": all pairs of a class
    loss direction         mean of both                   direction="image" or "text": who asks
    prompt                 N(0, 0.02^2)                   prompt_std; N(0, 1) collapses training
    logit scale            the encoder's own, fixed       any number

Differs from the reference in: `init="identity"` and `blend` (the recipe "anchored"), which are ours. With a
blend beta > 0, f <- normalise((1 - beta) normalise(f) + beta x) at inference; training never sees it.
"""

import copy
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from spaner.align.methods import method as methods
from spaner.align.methods import objective
from spaner.align.methods.loop import optimise, pairs_of
from spaner.align.methods.losses import collision_rate, pairs
from spaner.align.methods.prior import ClosedFormPrior, PriorSettings
from spaner.align.methods.state import load_tensors, module_tensors
from spaner.align.methods.task import Facts, Query, Task, Tools
from spaner.errors import RecipeError
from spaner.registry import check as check_name
from spaner.settings import check, option

TOGETHER = 1 << 15
"""Numbers of a modality's batch up to which aligners are run as one program (`benchmarks/modalities.py`)."""


@dataclass(frozen=True)
class Settings(PriorSettings):
    """SPANER's own settings; the letters are the paper's."""

    prompt: Literal["shared", "own", "frozen"] = option(
        "shared", "Whose prompt: one for all modalities, one for each, or the untrained start."
    )
    prompt_length: int = option(2, "Prompt tokens P; 0: attention of a sample with itself.", low=0)
    prompt_std: float = option(0.02, "Standard deviation of the initial prompt; 1 collapses training.", low=0)
    aligner: str = option("attention", "Aligner of each modality: attention, hyena or linear.")
    heads: int = option(8, "Attention heads H; must divide the embedding width.", low=1, axis="head_counts")
    out_dim: int | None = option(None, "Width E of the shared space; default: the embedding width.", low=1)
    attend: Literal["all", "prompt"] = option(
        "all", "What x attends to: itself and the prompt, or the prompt alone."
    )
    pool: Literal["output", "input"] = option(
        "output", "Tokens under the maximum (eq. 3): [x'; S'] or [x; S]."
    )
    project: Literal["residual", "input"] = option("residual", "What is projected (eq. 2): x' + x, or x.")
    init: Literal["random", "identity"] = option("random", "Initial aligners; identity starts at f = x.")
    blend: float = option(
        0.0,
        "Share of the frozen embedding in the result (beta), at inference only.",
        low=0,
        high=1,
        grid=(0.9, 0.75, 0.5),
        when=("prior", ("gda", "kernel", "gda+kernel")),
        start=0.9,
        stacks=True,
    )
    lam: float = option(1.0, "Weight of the loss on pooled tokens (lambda).", low=0, stacks=True)
    direction: str = option("both", "Who asks in the contrastive losses: both, or a modality by name.")
    targets: Literal["diagonal", "class"] = option(
        "diagonal", "Positives: the pair itself, or all of its class.", axis="target_kinds"
    )
    modalities: str = option(
        "image,text", "Modalities trained together; the first beside text decides the width D.", axis=None
    )
    pair: Literal["class", "id"] = option(
        "class", "What a further modality's row shares with its sample: the class, or the id.", axis=None
    )
    objective: str = option(
        "pairs", "Losses between modalities: pairs, gram, symile, pmrl, modgap, weighted."
    )
    compile: Literal["auto", "on", "off"] = option(
        "auto", "A step: auto records it as a CUDA graph on CUDA; on: torch.compile.", axis=None
    )

    def __post_init__(self) -> None:
        check(self)
        check_name(methods.ALIGNERS, "aligner", self.aligner, RecipeError)
        objective.weights(self.objective)


class Spaner(nn.Module):
    """The trainable part: prompt S (P, D), aligners, and a linear map into D for modalities of another width.

    Args:
        widths: embedding width of each modality. The first decides D, the width of the prompt.
        logit_scale: 1 / temperature of both losses.
        seed: of the initial weights; torch's global generator is neither read nor moved.
        newcomers: modalities that joined a trained core. Their embeddings mean nothing in the core's frozen
            space, so they neither start at the identity nor are blended; neither do those beside text and the
            first, which come from encoders of their own.
        **options: fields of `Settings`.

    Raises:
        RecipeError: heads that do not divide D; identity start or blend with E != D.
    """

    Settings: ClassVar[type] = Settings
    training: ClassVar[Mapping[str, Any] | None] = {}
    reads_query: ClassVar[bool] = True
    tuned: ClassVar[tuple[str, ...]] = ("blend", "prior_weight", "shrinkage", "kernel_beta", "kernel_lam")

    def __init__(
        self,
        widths: Mapping[str, int],
        *,
        logit_scale: float,
        seed: int = 1,
        newcomers: tuple[str, ...] = (),
        class_names: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        super().__init__()
        self.own, self.logit_scale = Settings(**options), logit_scale
        self.newcomers = {*newcomers, *(name for name in list(widths)[1:] if name != "text")}
        self.objective = objective.weights(self.own.objective)
        objective.check_modalities(self.objective, list(widths))
        self.history: list[dict[str, float]] = []
        self.dim = next(iter(widths.values()))
        self.out_dim = self.own.out_dim or self.dim
        if self.own.blend and self.out_dim != self.dim:
            raise RecipeError(
                f"blend={self.own.blend} mixes embeddings of width {self.dim} into a space of width "
                f"{self.out_dim}; use out_dim={self.dim} or blend=0"
            )
        if not self.own.prompt_length and (self.own.attend == "prompt" or self.own.aligner == "hyena"):
            raise RecipeError(
                f"prompt_length is 0, and aligner={self.own.aligner} with attend={self.own.attend} looks at "
                "a prompt; expected 1 or more; use prompt_length=2"
            )
        self.prompts = nn.ParameterDict()
        if self.own.prompt != "own":
            self.prompt = self._drawn_prompt("prompt", seed, trained=self.own.prompt == "shared")
        self.aligners, self.inputs = nn.ModuleDict(), nn.ModuleDict()
        for modality, width in widths.items():
            self._add(modality, width, seed)
        self.prior: ClosedFormPrior | None = None
        if self.own.prior != "none" and "text" not in widths:
            raise RecipeError(
                f"prior is {self.own.prior!r}, a head that answers class names, and no text is trained; "
                "expected text among the modalities; write for example --modalities image,text,audio, "
                "or --prior none"
            )
        if self.own.prior != "none":
            self.prior = ClosedFormPrior(self.own, self.dim, class_names)

    @classmethod
    def build(cls, settings: Any, facts: Facts) -> Self:
        """The untrained model of a configuration."""
        own = {name: getattr(settings, name) for name in Settings.__dataclass_fields__}
        return cls(
            facts.widths,
            logit_scale=facts.logit_scale,
            seed=settings.seed,
            newcomers=facts.newcomers,
            class_names=facts.class_names,
            **own,
        )

    @classmethod
    def fit(cls, task: Task, settings: Any, tools: Tools) -> Self:
        """Every sample and view once an epoch, each with a text of its class in a random template."""
        model = cls.build(settings, task.facts()).to(tools.device)
        model.history = optimise(model, pairs_of(task), settings, tools.device, tools.progress)
        return model.cpu().eval().with_prior(task)

    def with_prior(self, task: Task) -> Self:
        """The model itself, its prior fitted where it has one."""
        if self.prior is not None:
            self.prior.fit(task)
        return self

    def state(self) -> dict[str, Tensor]:
        """Prompt, aligners, projections and input maps."""
        return module_tensors(self)

    @classmethod
    def restore(cls, state: Mapping[str, Tensor], settings: Any, facts: Facts) -> Self:
        """The inverse of `state`."""
        model = cls.build(settings, facts)
        if model.prior is not None:
            model.prior.sized(state)
        return load_tensors(model, state).eval()

    def joined(self, modality: str, width: int, seed: int) -> Self:
        """A copy that one modality joins; nothing but its aligner and input map takes a gradient."""
        model = copy.deepcopy(self).train()
        model.requires_grad_(requires_grad=False)
        for parts in (model.aligners, model.inputs, model.prompts):
            if modality in parts:
                del parts[modality]
        model.newcomers.add(modality)
        model._add(modality, width, seed)
        return model

    def _drawn_prompt(self, part: str, seed: int, *, trained: bool = True) -> nn.Parameter:
        with _own_randomness(seed, part):
            start = torch.randn(self.own.prompt_length, self.dim) * self.own.prompt_std
        return nn.Parameter(start, requires_grad=trained)

    def prompt_of(self, modality: str) -> Float[Tensor, "P D"]:
        """S, or the modality's own."""
        return self.prompts[modality] if self.own.prompt == "own" else self.prompt

    def _add(self, modality: str, width: int, seed: int) -> None:
        """Give a modality its aligner, a map from `width` into D where they differ, and its prompt where
        each has one."""
        own = self.own
        if own.prompt == "own":
            self.prompts[modality] = self._drawn_prompt(f"prompt/{modality}", seed)
        with _own_randomness(seed, modality):
            aligner = methods.aligner(own.aligner)(
                self.dim, self.out_dim, heads=own.heads, attend=own.attend, pool=own.pool, project=own.project
            )
            if own.init == "identity" and modality not in self.newcomers:
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
        return self.aligners[modality](self.tokens(modality, x), self.prompt_of(modality))

    def stacked_numbers(self) -> dict[str, float]:
        """What `loss` takes as tensors too, so that models which differ in it can be trained as one."""
        return {"lam": self.own.lam, "logit_scale": self.logit_scale}

    def loss(
        self,
        batch: Mapping[str, Float[Tensor, "B M"]],
        labels: Int[Tensor, " B"],
        **numbers: Float[Tensor, ""],
    ) -> dict[str, Float[Tensor, ""]]:
        """L, its two terms, and the share of samples whose class occurs twice.

        `batch` holds two modalities or more; with pair="id" a row of zeros is a row that is missing.
        `numbers` replace those of `stacked_numbers` by tensors: models trained as one have each their own.
        """
        lam, scale = numbers.get("lam", self.own.lam), numbers.get("logit_scale", self.logit_scale)
        found = self._aligned(batch)
        exact = torch.promote_types(found[0][0].dtype, torch.float32)  # bfloat16 rounds cosines to 1/256
        whole = self.own.pair == "class" or (len(batch) == 2 and "text" in batch)
        present = None if whole else torch.stack([(x != 0).any(1) for x in batch.values()])
        with torch.autocast(found[0][0].device.type, enabled=False):
            positives = labels if self.own.targets == "class" else None
            options = {"direction": self._asks(list(batch)), "labels": positives}
            f, z = [f.to(exact) for f, _ in found], [z.to(exact) for _, z in found]
            align = objective.total(self.objective, f, scale, present, options)
            pooled = pairs(z, scale, present, **options)
        return {
            "loss": align + lam * pooled,
            "align": align,
            "ca": pooled,
            "collision_rate": collision_rate(labels),
        }

    def _aligned(self, batch: Mapping[str, Float[Tensor, "B M"]]) -> list[tuple[Tensor, Tensor]]:
        """f and z of every modality; of three and more in one program where the aligner offers it and calls
        cost more than copying its weights beside each other."""
        aligners = [self.aligners[modality] for modality in batch]
        together = getattr(aligners[0], "together", None)
        numbers = len(next(iter(batch.values()))) * self.dim
        if together is None or len(batch) < 3 or numbers > TOGETHER:
            return [self(modality, x) for modality, x in batch.items()]
        x = torch.stack([self.tokens(modality, rows) for modality, rows in batch.items()])
        f, z = together(aligners, x, torch.stack([self.prompt_of(modality) for modality in batch]))
        return list(zip(f.unbind(), z.unbind(), strict=True))

    def _asks(self, modalities: list[str]) -> Literal["both", "first", "second"]:
        """Which side of a pair asks. A modality named by `direction` that is not in the pair asks nothing, so
        both sides do: what joins later is trained like the rest."""
        wanted = self.own.direction
        if wanted == "both" or (wanted not in modalities and wanted in self.aligners):
            return "both"
        if len(modalities) > 2:
            raise RecipeError(
                f"direction is {wanted!r} and {len(modalities)} modalities are trained together; "
                "expected both; use direction=both"
            )
        if wanted not in modalities:
            raise RecipeError(
                f"direction is {wanted!r}, and the run knows {', '.join(self.aligners)}; "
                "expected both or one of them; use direction=both"
            )
        return "first" if wanted == modalities[0] else "second"

    def embed(self, modality: str, x: Float[Tensor, "N M"]) -> Float[Tensor, "N E"]:
        """Unit vectors of the shared space, the frozen embedding of the core's modalities blended in."""
        x = self.tokens(modality, x)
        f = F.normalize(self.aligners[modality](x, self.prompt_of(modality))[0], dim=1)
        if not self.own.blend or modality in self.newcomers:
            return f
        return F.normalize((1 - self.own.blend) * f + self.own.blend * x, dim=1)

    def scores(self, x: Float[Tensor, "N M"], query: Query) -> Float[Tensor, "N C"]:
        """Scaled cosines to the class vectors, the mean over templates of the embedded texts."""
        modality = next(iter(self.aligners))
        classes = torch.stack([self.embed("text", t) for t in query.texts.x.unbind(1)]).mean(0)
        cosines = self.embed(modality, x) @ F.normalize(classes, dim=1).T
        logits = self.logit_scale * cosines
        return logits if self.prior is None else logits + self.prior(x, query)

    @property
    def prior_weight(self) -> float:
        """The larger weight of a head that joins the scores; 0 without one."""
        return 0.0 if self.prior is None else self.prior.weight

    def prior_scores(self, x: Float[Tensor, "N M"], query: Query) -> Float[Tensor, "N C"]:
        """What joins the scaled cosines."""
        assert self.prior is not None  # `prior_weight` says so
        return self.prior(x, query)

    def tune(
        self, x: Float[Tensor, "N M"], query: Query, grids: Mapping[str, tuple[Any, ...]]
    ) -> Iterator[tuple[dict[str, Any], Float[Tensor, "N C"]]]:
        """Every blend, and all numbers of the prior: a solve for each of its heads, no training."""
        if self.prior is None:
            return
        spaces = []
        for blend in grids.get("blend", (self.own.blend,)):
            model = copy.copy(self)
            model._modules = self._modules | {"prior": None}
            model.own = replace(self.own, blend=blend)
            spaces.append(({"blend": blend} if "blend" in grids else {}, model.scores(x, query)))
        for choice, more in self.prior.tune(x, query, grids):
            for blend, alone in spaces:
                yield {**blend, **choice}, alone + more

    def tuned_to(self, choice: Mapping[str, Any]) -> Self:
        """The same space with another prior."""
        model = copy.copy(self)
        model._modules = dict(self._modules)
        model.own = replace(self.own, **choice)
        if self.prior is not None:
            model.prior = self.prior.with_settings(model.own)
        return model


@contextmanager
def _own_randomness(seed: int, part: str) -> Iterator[None]:
    """Draws inside depend on seed and part alone, and leave torch's global generator where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{seed}/{part}".encode()))
        yield
