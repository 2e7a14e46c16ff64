"""A trained run: the model, where it came from, how to use it. Its folder on disk is the matter of
`run_folder`.

A run embeds and scores what its frozen encoders have made already. With new files and words it calls what
lies above this room, by name (`USES`), since the encoders are no business of `align`.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float

from spaner import cache as caches
from spaner import registry
from spaner.align.methods import method as methods
from spaner.align.methods.method import Prior, Space
from spaner.align.methods.state import model_on
from spaner.align.methods.task import Facts, Query
from spaner.align.train import run_folder
from spaner.align.train.config import TrainConfig
from spaner.device import fast_products
from spaner.errors import Mismatch, RunError

Array = TypeVar("Array", np.ndarray, torch.Tensor)

USES = {
    "classify": "spaner.search.use:classify",
    "embed_files": "spaner.search.use:embed_files",
    "embed_text": "spaner.search.use:embed_text",
}
"""What is done with a run and new material; it needs the run's encoders."""


@dataclass
class Run:
    """A trained model with everything needed to use it, to refuse the wrong input, and to repeat it.

    `draw` is `task.Draw` as JSON; `tables` maps every table that was read to its identity; `history` holds
    one entry per epoch; `selection` is the receipt of `train.select`; `seconds` is the time of training
    alone; `metrics` is the result of `evaluate`, once there is one; `extensions` tells of modalities that
    joined afterwards (`align.extend`). `cache` is where the run was scored, for `spaner report`; on disk it
    is relative to the run folder, so both can move together. `temperature` is what logits are divided by
    before they become probabilities, fitted on validation rows; None where there were none. `towers` can put
    an encoder's towers beside a loaded model that needs them to score (`towers.put_beside(run, cache,
    table)`); it is never saved. `device` is where the model is, the CPU unless `on` moved it.
    """

    config: TrainConfig
    model: Any
    dataset: str
    class_names: tuple[str, ...]
    widths: dict[str, int]
    logit_scale: float
    encoders: dict[str, caches.EncoderSpec]
    draw: dict[str, Any]
    tables: dict[str, str]
    history: list[dict[str, float]]
    seconds: float
    versions: dict[str, str]
    metrics: dict[str, Any] | None = None
    extensions: list[dict[str, Any]] = field(default_factory=list)
    cache: Path | None = None
    selection: dict[str, Any] = field(default_factory=dict)
    temperature: float | None = None
    towers: Any = field(default=None, compare=False)
    device: torch.device = field(default=torch.device("cpu"), compare=False)

    def embed_files(self, *paths: str | Path, **options: Any) -> Any:
        """Pictures and sounds -> unit vectors of the space: `search.use.embed_files`."""
        return _use("embed_files")(self, paths, **options)

    def embed_text(self, texts: Sequence[str], **options: Any) -> Any:
        """Strings -> unit vectors (N, E) of the space: `search.use.embed_text`."""
        return _use("embed_text")(self, texts, **options)

    def classify(self, *paths: str | Path, **options: Any) -> Any:
        """Pictures and sounds -> a probability for each class: `search.use.classify`."""
        return _use("classify")(self, paths, **options)

    def on(self, device: torch.device) -> "Run":
        """The run with its tensors on a device, to embed and score there; itself where they are there, and
        where the method goes where its tower is."""
        model = self.model if device == self.device else model_on(self.model, device)
        return self if model is self.model else replace(self, model=model, device=device)

    def embed(self, modality: str, features: Float[Array, "N D"]) -> Float[Array, "N E"]:
        """Embeddings of the frozen encoder, of any length -> unit vectors of the shared space, float32. An
        array gives an array, a tensor one on the run's device, here and in `scores` and `prior`.

        Raises:
            RunError: a modality the run does not know, or another width.
        """
        if not isinstance(self.model, Space):
            raise RunError(
                f"method {self.config.method!r} scores classes and embeds nothing; "
                "expected a method with a space; train a run with method=spaner"
            )
        if modality not in self.widths:
            raise RunError(f"the run has no aligner for {modality!r}; it knows {', '.join(self.widths)}")
        x = self._tensor(modality, features)
        with torch.inference_mode(), fast_products(x.device):
            return _alike(features, self.model.embed(modality, x))

    def scores(self, modality: str, features: Float[Array, "N D"], query: Query) -> Float[Array, "N C"]:
        """A score for each class of the query, in units of a cosine, float32.

        Raises:
            RunError: another width. Mismatch: a head is asked about classes that it was not fitted on.
        """
        x = torch.nn.functional.normalize(self._tensor(modality, features), dim=1)
        with torch.inference_mode(), fast_products(x.device):
            return _alike(features, (self.model.scores(x, query) / self.model.logit_scale).float())

    @property
    def has_space(self) -> bool:
        """Whether the method embeds: only then are there cosines, margins and retrieval between
        modalities."""
        return isinstance(self.model, Space)

    @property
    def has_prior(self) -> bool:
        """Whether something joins the cosines of the space in a decision."""
        return isinstance(self.model, Prior) and self.model.prior_weight > 0

    def prior(self, modality: str, features: Float[Array, "N D"], query: Query) -> Float[Array, "N C"]:
        """What the prior adds to the cosines, float32."""
        x = torch.nn.functional.normalize(self._tensor(modality, features), dim=1)
        with torch.inference_mode():
            return _alike(features, (self.model.prior_scores(x, query) / self.model.logit_scale).float())

    def _tensor(self, modality: str, features: Float[Array, "N D"]) -> torch.Tensor:
        if features.ndim != 2 or features.shape[1] != self.widths[modality]:
            raise RunError(
                f"{modality} embeddings have shape {features.shape}; "
                f"expected (rows, {self.widths[modality]}); "
                f"use the encoder that the run was trained on: {self.encoders[modality].name}"
            )
        if isinstance(features, torch.Tensor):
            return features.to(self.device, torch.float32)
        return torch.from_numpy(np.array(features, np.float32)).to(self.device)  # caches' maps are read-only

    @property
    def modality(self) -> str:
        """The modality whose rows the method learned from: the first that was named."""
        return next(iter(self.widths))

    @property
    def facts_of_method(self) -> Facts:
        """What the method is rebuilt from."""
        joined = tuple(extension["config"]["modality"] for extension in self.extensions)
        return Facts(self.class_names, self.modality, self.widths, self.logit_scale, joined)

    def check(self, manifest: caches.Manifest, modality: str | None = None) -> None:
        """Mismatch, naming what differs, unless the table comes from the encoder that the run was trained
        on; `modality` is as what the run takes it, default its own."""
        modality = modality or manifest.modality
        if modality not in self.encoders:
            raise Mismatch(
                f"{modality} was not part of the training; "
                f"the run knows {', '.join(self.encoders)}; "
                f"train a run with it, or score another table"
            )
        differing = self.encoders[modality].same_encoder(manifest.encoder)
        if differing:
            fields = "; ".join(f"{name}: run {a!r}, cache {b!r}" for name, (a, b) in differing.items())
            raise Mismatch(
                f"{manifest.modality}/{manifest.split} was made by another encoder than the run was trained "
                f"on ({fields}); extract it with the run's encoder"
            )

    @property
    def synthetic(self) -> bool:
        """Made from random weights or made-up vectors: never comparable with published numbers."""
        return any(spec.synthetic for spec in self.encoders.values())

    def facts(self) -> dict[str, Any]:
        """Where the run came from and what it took, as JSON types."""
        return {
            "dataset": self.dataset,
            "classes": len(self.class_names),
            "widths": self.widths,
            "logit_scale": self.logit_scale,
            "seed": self.config.seed,
            "draw": self.draw,
            "tables": self.tables,
            "encoders": {modality: asdict(spec) for modality, spec in self.encoders.items()},
            "synthetic": self.synthetic,
            "final": self.history[-1] if self.history else None,
            "seconds": self.seconds,
            "versions": self.versions,
        }

    @property
    def result(self) -> dict[str, Any]:
        """What result.json holds, besides the way to the cache."""
        return {
            "schema": run_folder.SCHEMA,
            "config": self.config.to_json(),
            **self.facts(),
            "class_names": list(self.class_names),
            "selection": self.selection,
            "temperature": self.temperature,
            "metrics": self.metrics,
            "extensions": self.extensions,
        }

    @property
    def name(self) -> str:
        """The recipe or method, and a hash of everything that decides the weights."""
        decided = json.dumps([self.config.identity(), self.tables, self.draw], sort_keys=True)
        return f"{self.config.title}-{hashlib.sha256(decided.encode()).hexdigest()[:8]}"

    def save(self, folder: str | Path) -> Path:
        """Write the run folder at once, replacing an older run of that name.

        Raises:
            RunError: the folder holds something that is not a run.
        """
        folder = Path(folder)
        result = self.result | run_folder.way_to(self.cache, folder) | {"history": self.history}
        run_folder.write(folder, self.model.state(), result)
        return folder


def _alike(given: np.ndarray | torch.Tensor, found: torch.Tensor) -> Any:
    """Tensors for tensors, arrays for arrays."""
    return found if isinstance(given, torch.Tensor) else found.cpu().numpy()


def _use(name: str) -> Callable[..., Any]:
    return registry.load(USES, "use", name, RunError)


#: What result.json holds as the run does.
PLAIN = (
    "dataset",
    "widths",
    "logit_scale",
    "draw",
    "tables",
    "seconds",
    "versions",
    "metrics",
    "extensions",
)


def load(folder: str | Path) -> Run:
    """Read a run folder.

    Raises:
        RunError: no such folder, not a run, unfinished, another schema, damaged or incomplete weights.
    """
    folder = Path(folder)
    result, state, history = run_folder.read(folder)
    run = Run(
        config=TrainConfig.from_json(result["config"]),
        model=None,
        class_names=tuple(result["class_names"]),
        encoders={
            modality: caches.EncoderSpec.from_json(spec) for modality, spec in result["encoders"].items()
        },
        history=history,
        cache=run_folder.way_back(result.get("cache"), folder),
        selection=result.get("selection", {}),
        temperature=result.get("temperature"),
        **{name: result[name] for name in PLAIN},
    )
    try:
        run.model = methods.method(run.config.method).restore(state, run.config, run.facts_of_method)
    except RunError as error:
        raise RunError(
            f"{folder / 'model.safetensors'}: {error}; use the version of spaner that wrote it"
        ) from None
    run.model.history = run.history
    return run
