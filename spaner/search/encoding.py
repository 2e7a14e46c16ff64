"""A run by its name, its own encoders, checked, and each joined with it into one that maps into its space.

`Mapped` is an encoder like any other: extraction fills, checks, resumes and seals its tables, and measures
whether a row depends on its batch. Its spec names the encoder, the run and the hash of both, so that vectors
of two spaces never meet unnoticed.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from spaner.align.train.run import Run, load
from spaner.cache.manifest import EncoderSpec, digest
from spaner.errors import Mismatch, RunError
from spaner.extract.encoders.encoder import Encoder
from spaner.extract.encoders.rebuilt import rebuild

HUB = "hf:"
"""Begins the name of a run on the hub."""


def open_run(run: str | Path) -> Run:
    """The run in a folder, or hf:ORG/NAME, fetched into the hub client's cache and checked.

    Raises:
        RunError: no run there, one that is damaged, or a hub that does not answer.
    """
    if str(run).startswith(HUB):
        from spaner.search.share.hub import fetched  # slow to import

        return load(fetched(str(run).removeprefix(HUB)))
    return load(run)


@dataclass(frozen=True)
class Files:
    """Where encoders lie that a name does not find: model and weights by modality, "" for every other
    one; the folder of the text encoder's tokenizer."""

    models: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    tokenizer: Path | None = None
    device: str = "auto"
    seed: int = 0


def run_sha256(run: Run) -> str:
    """SHA-256 over names, types, shapes and bytes of the run's tensors, and what they are used with."""
    total = hashlib.sha256(digest([run.config.identity(), run.widths, run.logit_scale]).encode())
    for name, value in sorted(run.model.state().items()):
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(value.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def own_encoder(run: Run, modality: str, files: Files | None = None, precision: str = "auto") -> Encoder:
    """The frozen encoder that the run was trained on.

    Raises:
        RunError: the run does not know the modality. EncoderError: weights that are not here; the line says
        which file to bring. Mismatch: another encoder, model, weights or preprocessing; the line says which.
    """
    files = files or Files()
    _check_known(run, modality)
    spec = run.encoders[modality]
    return rebuild(
        spec,
        f"the run's {modality} encoder",
        model=files.models.get(modality, files.models.get("")),
        weights=files.weights.get(modality) or _for_all(spec, files),
        tokenizer=files.tokenizer,
        precision=precision,
        device=files.device,
        seed=files.seed,
    )


def _for_all(spec: EncoderSpec, files: Files) -> str | None:
    """A file that was given without a modality is for the encoders whose weights have its name or tag."""
    given = files.weights.get("", "")
    tag, _, file = given.partition("=")
    named = spec.weights == f"file:{Path(given).name}" or (file and spec.weights == tag)
    return given if named else None


def check_modality(run: Run, modality: str) -> None:
    """Raise RunError unless the run embeds the modality."""
    if not run.has_space:
        raise RunError(
            f"method {run.config.method!r} scores classes and has no space; expected a run that embeds; "
            "train one with `spaner train --method spaner`"
        )
    _check_known(run, modality)


def _check_known(run: Run, modality: str) -> None:
    if modality not in run.encoders:
        raise RunError(
            f"the run has no {modality}: it knows {', '.join(run.encoders)}; expected a run with {modality}; "
            f"let it join with `spaner extend --modality {modality}`"
        )


def mapped_spec(run: Run, spec: EncoderSpec) -> EncoderSpec:
    """The spec of vectors that left `spec`'s encoder and went through the run."""
    own = run_sha256(run)
    inner = {name: value for name, value in asdict(spec).items() if name not in ("weights", "precision")}
    return replace(
        spec,
        name=f"spaner/{run.config.title} of {spec.name}",
        weights_sha256=digest([own, spec.weights_sha256]),
        dim=space_width(run, spec.modality),
        preprocessing={"encoder": inner, "run": own},
        logit_scale=run.logit_scale,
    )


def space_width(run: Run, modality: str) -> int:
    """E, the width of the run's space."""
    return run.embed(modality, np.ones((1, run.widths[modality]), np.float32)).shape[1]


class Mapped:
    """A frozen encoder and the run behind it: payloads -> unit vectors (B, E)."""

    def __init__(self, encoder: Encoder, run: Run) -> None:
        self.encoder, self.run = encoder, run
        self.spec = mapped_spec(run, encoder.spec)
        self.fixed_batch = getattr(encoder, "fixed_batch", None)
        if self.fixed_batch:
            raise Mismatch(
                f"{encoder.spec.name} was used in mode {encoder.spec.mode}, "
                "in which a row depends on its batch: one file alone has no such row; expected mode eval; "
                "train a run with it"
            )

    def prepare(self, payload: Any, view: int, key: str, seed: int) -> Tensor:
        """The frozen encoder's own preparation."""
        return self.encoder.prepare(payload, view, key, seed)

    def encode(self, batch: Tensor) -> Float[Tensor, "B E"]:
        """Unit vectors of the run's space, float32 on the CPU."""
        rows = self.encoder.encode(batch).float().numpy()
        return torch.from_numpy(self.run.embed(self.encoder.spec.modality, rows))
