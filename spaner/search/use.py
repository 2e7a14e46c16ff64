"""A run and new material, in memory: files or words to unit vectors, files to probabilities.

The way is extraction's own (decode ahead, batch, encode, failed rows with a reason), with memory in the place
of a table. For more rows than memory holds there is `embed`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from spaner.align.methods.task import Query, Texts
from spaner.align.train.run import Run
from spaner.cache.layout import ids_sha256
from spaner.cache.manifest import Manifest
from spaner.errors import DatasetError, RunError
from spaner.extract import pipeline, texts
from spaner.extract.datasets import images
from spaner.extract.datasets.dataset import VANILLA, Split
from spaner.extract.encoders.encoder import Encoder
from spaner.extract.templates import fill
from spaner.search.encoding import Files, Mapped, check_modality, own_encoder
from spaner.search.sources import Gathered, gather

CHUNK = 1024
BATCH = 64


@dataclass(frozen=True)
class Embedded:
    """New samples in a run's space.

    Attributes:
        ids: N paths relative to the folder that holds them all.
        modalities, labels: of each row; a label is "unlabelled" where none was given.
        z: (N, E) float32, unit length; zeros where the sample failed.
        failures: id -> reason.
    """

    ids: list[str]
    modalities: list[str]
    labels: list[str]
    z: Float[np.ndarray, "N E"]
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Classified:
    """Samples and their classes.

    Attributes:
        ids: N paths.
        class_names: C names.
        probabilities: (N, C); NaN where the sample failed.
        temperature: what the logits were divided by; None: nothing was fitted, and the method's own scale
            made the probabilities.
        failures: id -> reason.
    """

    ids: list[str]
    class_names: tuple[str, ...]
    probabilities: Float[np.ndarray, "N C"]
    temperature: float | None
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> list[str | None]:
        """The most probable class of each sample; None where it failed."""
        good = ~np.isnan(self.probabilities).any(axis=1)
        best = self.probabilities[good].argmax(axis=1)
        found: list[str | None] = [None] * len(self.ids)
        for row, label in zip(np.flatnonzero(good).tolist(), best.tolist(), strict=True):
            found[row] = self.class_names[label]
        return found


class MemoryRows:
    """Rows in memory, filled by `extract.pipeline`; reads like the writer of a table."""

    def __init__(self, split: Split, encoder: Encoder, modality: str) -> None:
        spec = encoder.spec
        self.manifest = Manifest(
            "memory", modality, "new", len(split), ("center",), spec.dim, "float32", CHUNK, spec, 0,
            ids_sha256(split.ids),
        )  # fmt: skip
        self.pending = list(range(self.manifest.chunks))
        self.x = np.zeros((len(split), spec.dim), np.float32)
        self.failures: dict[str, str] = {}
        self._ids = split.ids

    def rows(self, chunk: int, /) -> slice:
        """Row numbers of a chunk."""
        return self.manifest.rows_of(chunk)

    def write(self, chunk: int, features: np.ndarray, /, *, reasons: dict[int, str]) -> None:
        """Keep a chunk."""
        span = self.rows(chunk)
        self.x[span] = features[:, 0]
        self.failures |= {self._ids[int(span.start + row)]: why for row, why in reasons.items()}


def encoded(split: Split, encoder: Encoder, modality: str) -> MemoryRows:
    """All rows of a split through an encoder."""
    rows = MemoryRows(split, encoder, modality)
    if modality == "text":
        feed = texts.feed(split, encoder, BATCH, CHUNK, {})
    else:
        feed = pipeline.feed(split, encoder, 1, 0, pipeline.Pace(BATCH, workers=2))
    with images.quiet():
        pipeline.fill(rows, feed, lambda _: None)
    return rows


def embed_files(run: Run, paths: Sequence[str | Path], *, files: Files | None = None) -> Embedded:
    """Pictures and sounds, through the run's own encoders, as unit vectors of its space.

    Args:
        paths: files, folders, patterns, CSV lists, as `sources.gather` takes them.
        files: where weights lie that a name does not find.

    Raises:
        DatasetError: nothing there. RunError: a modality that the run does not know, or a method without a
        space. EncoderError, Mismatch: an encoder that is not here or differs from the run's.
    """
    return embed_source(run, gather(paths), files)


def embed_source(run: Run, source: Gathered, files: Files | None = None) -> Embedded:
    """Everything of a source, modality by modality."""
    for modality in source.dataset.splits:
        check_modality(run, modality)
    parts = []
    for modality, splits in source.dataset.splits.items():
        split = next(iter(splits.values()))
        rows = encoded(split, Mapped(own_encoder(run, modality, files), run), modality)
        parts.append((modality, split, rows))
    names = source.dataset.class_names
    return Embedded(
        ids=[key for _, split, _ in parts for key in split.ids],
        modalities=[modality for modality, split, _ in parts for _ in split.ids],
        labels=[names[label] for _, split, _ in parts for label in split.labels.tolist()],
        z=np.concatenate([rows.x for _, _, rows in parts]),
        failures={key: why for _, _, rows in parts for key, why in rows.failures.items()},
    )


def embed_text(run: Run, strings: Sequence[str], *, files: Files | None = None) -> Float[np.ndarray, "N E"]:
    """Strings as unit vectors of the run's space, in their order.

    Raises:
        DatasetError: no string, an empty or an endless one. Else as `embed_files`.
    """
    if isinstance(strings, str):
        raise DatasetError(f"embed_text: found one string, expected a list; type `embed_text([{strings!r}])`")
    return embed_source(run, gather(texts=strings), files).z


def classify(
    run: Run,
    paths: Sequence[str | Path],
    *,
    class_names: Sequence[str] | None = None,
    template: str = VANILLA,
    files: Files | None = None,
) -> Classified:
    """The probability of each class for pictures and sounds.

    Logits are divided by the run's temperature, which training fitted on validation rows, so that 0.8 is
    right in some 80 % of cases on data like those; without one they are as sure as the method was.

    Args:
        class_names: default the run's; a space may be asked about any others.
        template: what the class names are put into.

    Raises:
        Mismatch: a head is asked about classes that it was not fitted on. Else as `embed_files`.
    """
    names = tuple(class_names or run.class_names)
    source = gather(paths)
    query = class_query(run, names, template, files)
    ids, parts, failures = [], [], {}
    for modality, splits in source.dataset.splits.items():
        split = next(iter(splits.values()))
        if modality != run.modality:
            check_modality(run, modality)
        rows = encoded(split, own_encoder(run, modality, files), modality)
        p = _softmax(logits(run, modality, rows.x, query) / (run.temperature or 1.0))
        p[[key in rows.failures for key in split.ids]] = np.nan
        ids, parts, failures = [*ids, *split.ids], [*parts, p], failures | rows.failures
    return Classified(ids, names, np.concatenate(parts), run.temperature, failures)


def class_query(run: Run, names: Sequence[str], template: str, files: Files | None) -> Query:
    """Class names in a template, through the run's own text encoder."""
    strings = [fill(template, name) for name in names]
    encoder: Any = own_encoder(run, "text", files)
    x = torch.from_numpy(texts.encode(encoder, strings, BATCH))
    norms = x.norm(dim=1, keepdim=True)
    return Query("text", tuple(names), Texts((x / norms)[:, None], norms))


def logits(run: Run, modality: str, x: Float[np.ndarray, "N D"], query: Query) -> Float[np.ndarray, "N C"]:
    """The method's logits for the modality it was trained on; cosines at its scale for one that joined."""
    if modality == run.modality:
        return run.scores(modality, x, query) * run.model.logit_scale
    if not run.has_space:
        raise RunError(
            f"method {run.config.method!r} classifies {run.modality} alone, found {modality}; "
            "expected a method with a space; train a run with method=spaner"
        )
    classes = run.embed("text", query.texts.x[:, 0].numpy())
    return run.embed(modality, x) @ classes.T * run.model.logit_scale


def _softmax(values: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "N C"]:
    p = np.exp(values.astype(np.float64) - values.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)
