"""What training may see: sealed tables in, one `Task` of tensors out.

Reads `<modality>/train` (few-shot draw, all views) and `text/<templates>`, and no other table: a method that
is given a Task cannot reach a test row. Rows whose extraction failed are dropped. Embeddings are normalised
to unit length here, once. Evaluation reads its own tables elsewhere.
"""

import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spaner import cache as caches
from spaner.align.config import TrainConfig
from spaner.cache.errors import CacheError, Corrupt, Mismatch, RecipeError


@dataclass(frozen=True)
class Draw:
    """Which training rows were used: enough to repeat the choice, and to prove it was the same.

    `sha256` is `cache.ids_sha256` of the drawn ids; `rows` of them were good and `failed` were dropped.
    `shots` is None where all rows were taken.
    """

    shots: int | None
    seed: int | None
    rows: int
    failed: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Task:
    """Training material: samples of one modality, and the texts of their classes. All vectors have unit
    length.

    `modality` names what `x` holds; its class i is described by `text[i]`, one vector per template.
    """

    dataset: str
    class_names: tuple[str, ...]
    modality: str
    x: Float[Tensor, "N V D"]
    labels: Int[Tensor, " N"]
    text: Float[Tensor, "C T M"]
    templates: str
    logit_scale: float
    draw: Draw
    encoders: dict[str, caches.EncoderSpec]
    tables: dict[str, str]
    """Identity (manifest hash) of every table that was read."""

    @property
    def widths(self) -> dict[str, int]:
        return {self.modality: self.x.shape[2], "text": self.text.shape[2]}


def task(cache: caches.Cache, config: TrainConfig, *, modality: str = "image") -> Task:
    """The training rows of `modality` and the texts of a template set, ready to train on.

    Raises:
        CacheError: a table, a draw or a class's text is missing. Unsealed: a table is not finished.
        Corrupt: an embedding is not finite. Mismatch: rows and texts come from different encoder weights.
        RecipeError: logit_scale=auto and the encoder has none of its own.
    """
    samples, texts = cache.table(f"{modality}/train"), cache.table(f"text/{config.templates}")
    _check_same_weights(samples.manifest, texts.manifest)
    rows, shots, seed = _drawn_rows(samples, config)
    good = rows[samples.ok[rows]]
    if not len(good):
        raise CacheError(
            f"{samples.name} has no usable row: all {len(rows):,} asked for failed in extraction; "
            f"see `spaner cache info {cache.path}`"
        )
    return Task(
        dataset=cache.dataset,
        class_names=tuple(cache.class_names),
        modality=modality,
        x=_unit_rows(samples, good),
        labels=torch.from_numpy(samples.labels[good].astype(np.int64)),
        text=_class_texts(texts, list(cache.class_names)),
        templates=config.templates,
        logit_scale=_logit_scale(config, samples.manifest, texts.manifest),
        draw=Draw(shots, seed, len(good), len(rows) - len(good), caches.drawn_sha256(samples.ids, rows)),
        encoders={modality: samples.manifest.encoder, "text": texts.manifest.encoder},
        tables={table.name: table.manifest.sha256 for table in (samples, texts)},
    )


def _drawn_rows(table: caches.Table, config: TrainConfig) -> tuple[np.ndarray, int | None, int | None]:
    """(rows, shots, seed): the asked draw; without one, every row, or the largest stored draw of a partial
    table."""
    shots = config.shots
    if shots is None and not table.manifest.complete:
        stored = [
            m for m in (re.fullmatch(r"(\d+)-shot-seed-(\d+)", name) for name in table.manifest.draws) if m
        ]
        shots = max((int(m[1]) for m in stored if int(m[2]) == config.draw_seed), default=None)
        if shots is None:
            known = ", ".join(table.manifest.draws) or "none"
            raise CacheError(
                f"{table.name} holds parts of its data set and no draw with seed {config.draw_seed}; "
                f"stored draws: {known}; choose one with --shots and --draw-seed"
            )
    if shots is None:
        return np.arange(table.rows), None, None
    return table.draw(shots, config.draw_seed), shots, config.draw_seed


def _unit_rows(table: caches.Table, rows: np.ndarray) -> Float[Tensor, "N V D"]:
    features = table.read(rows).astype(np.float32)
    norms = np.linalg.norm(features, axis=2, keepdims=True)
    bad = ~(np.isfinite(norms) & (norms > 0)).all(axis=(1, 2))
    if bad.any():
        first = str(table.ids[rows[bad.argmax()]])
        raise Corrupt(
            f"{table.name}: the embedding of {first!r} is not finite or is all zeros ({bad.sum():,} such rows); "
            f"expected finite numbers; see `spaner cache verify`, and extract the table again"
        )
    return torch.from_numpy(features / norms)


def _class_texts(table: caches.Table, class_names: list[str]) -> Float[Tensor, "C T M"]:
    """Texts in class order, whatever the order of the table's rows."""
    row_of = {int(label): row for row, label in enumerate(table.labels) if table.ok[row]}
    missing = [name for label, name in enumerate(class_names) if label not in row_of]
    if missing:
        raise CacheError(
            f"{table.name} has no text for class {missing[0]!r} ({len(missing):,} such classes); "
            f"expected one row per class; extract the text again"
        )
    return _unit_rows(table, np.array([row_of[label] for label in range(len(class_names))]))


def _check_same_weights(samples: caches.Manifest, texts: caches.Manifest) -> None:
    a, b = samples.encoder, texts.encoder
    for name in ("name", "weights_sha256"):
        found, other = getattr(a, name), getattr(b, name)
        if found != other:
            raise Mismatch(
                f"{samples.modality} and text were embedded by different encoders: "
                f"{name} is {found!r} and {other!r}; "
                f"expected one encoder; extract both modalities with the same --model and --pretrained"
            )


def _logit_scale(config: TrainConfig, samples: caches.Manifest, texts: caches.Manifest) -> float:
    if config.logit_scale != "auto":
        return config.logit_scale
    scale = samples.encoder.logit_scale or texts.encoder.logit_scale
    if scale is None:
        raise RecipeError(
            f"logit_scale is auto, and the encoder {samples.encoder.name!r} of the cache "
            f"has no scale of its own; "
            f"pass a number, for example --logit-scale 100"
        )
    return float(scale)
