"""What training may see: sealed tables in, one `Task` of tensors out.

Reads `<modality>/train` (few-shot draw, all views) and `text/<templates>`, and no other table: a method that
is given a Task cannot reach a test row. Rows whose extraction failed are dropped. Embeddings are normalised
to unit length here, once. Evaluation reads its own tables elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from spaner import cache as caches
from spaner.align.train.config import TrainConfig
from spaner.align.train.rows import Draw, drawn_samples, unit_rows
from spaner.errors import CacheError, Mismatch, RecipeError


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
    drawn = drawn_samples(samples, config.shots, config.draw_seed)
    encoders = {modality: samples.manifest.encoder, "text": texts.manifest.encoder}
    return Task(
        dataset=cache.dataset,
        class_names=tuple(cache.class_names),
        modality=modality,
        x=drawn.x,
        labels=drawn.labels,
        text=_class_texts(texts, list(cache.class_names)),
        templates=config.templates,
        logit_scale=scale_of(config, encoders),
        draw=drawn.draw,
        encoders=encoders,
        tables={table.name: table.manifest.sha256 for table in (samples, texts)},
    )


def _class_texts(table: caches.Table, class_names: list[str]) -> Float[Tensor, "C T M"]:
    """Texts in class order, whatever the order of the table's rows."""
    row_of = {int(label): row for row, label in enumerate(table.labels) if table.ok[row]}
    missing = [name for label, name in enumerate(class_names) if label not in row_of]
    if missing:
        raise CacheError(
            f"{table.name} has no text for class {missing[0]!r} ({len(missing):,} such classes); "
            f"expected one row per class; extract the text again"
        )
    return unit_rows(table, np.array([row_of[label] for label in range(len(class_names))]))


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


def scale_of(config: TrainConfig, encoders: Mapping[str, caches.EncoderSpec]) -> float:
    """The logit scale of a configuration; "auto" is that of the encoders.

    Raises:
        RecipeError: auto, and the encoders have none.
    """
    if config.logit_scale != "auto":
        return config.logit_scale
    scale = next((spec.logit_scale for spec in encoders.values() if spec.logit_scale), None)
    if scale is None:
        raise RecipeError(
            f"logit_scale is auto, and the encoder {next(iter(encoders.values())).name!r} of the cache "
            f"has no scale of its own; "
            f"pass a number, for example --logit-scale 100"
        )
    return float(scale)
