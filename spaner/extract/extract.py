"""Stage 1: run frozen encoders over a data set once, into a sealed cache.

Every table is begun or continued, filled, checked and sealed, one after another. What was finished before is
not computed again. Nothing here knows how a file is read or a row is computed.
"""

import dataclasses
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spaner import registry
from spaner.cache import cache as caches
from spaner.cache.cache import Cache, Writer
from spaner.cache.manifest import Manifest
from spaner.errors import DatasetError, RecipeError
from spaner.extract import origins, pipeline, purity, texts
from spaner.extract.config import ExtractConfig
from spaner.extract.datasets import images
from spaner.extract.datasets.dataset import Dataset, Split, read
from spaner.extract.encoders import encoder as encoders
from spaner.extract.encoders.encoder import Encoder
from spaner.extract.origins import Noted, Watch
from spaner.extract.plan import TablePlan, destination, plan
from spaner.extract.repair import open_damaged
from spaner.extract.summary import Summary, TableSummary
from spaner.progress import Progress, no_progress


def extract(
    config: ExtractConfig | None = None,
    *,
    progress: Progress | None = None,
    beforehand: Callable[[list[TableSummary]], None] | None = None,
    **overrides: Any,
) -> Summary:
    """Extract what ``config`` asks for; ``overrides`` are fields of ``ExtractConfig``.

    Args:
        beforehand: is told rows and bytes of every table of tokens, which are large, before anything is
            loaded.

    Returns:
        What was done, table by table. An interrupted run is continued by the same call.

    Raises:
        DatasetError: missing or contradictory data, or more unreadable files than tolerated.
        EncoderError: a model that cannot be loaded, or whose rows depend on their batch.
        CacheError: what is there was made with other settings, another process writes it, the disk is full.
    """
    config = configured(config, overrides)
    dataset = read(
        config.dataset,
        config.data_root,
        holdout=config.holdout,
        seed=config.seed,
        allow_outside=config.allow_outside,
        modality_column=config.modality_column,
    )
    tables, path = plan(config, dataset), destination(config, dataset)
    if config.dry_run:
        return Summary(path, _sizes(config, dataset, tables), dry_run=True, left_out=dataset.left_out)
    if beforehand and config.tokens is not None:
        beforehand(_sizes(config, dataset, tables))
    done: list[TableSummary] = []
    with images.quiet():
        # every tower, tokenizer and string before the first image: what is missing shows at once
        modalities = list(dict.fromkeys(table.modality for table in tables))
        towers = {modality: load(config, dataset, modality) for modality in modalities}
        notes = _notes(dataset, tables, towers)
        for modality in modalities:
            run = Extraction(config, dataset, towers.pop(modality), progress or no_progress)
            with caches.create(path, dataset.name, dataset.class_names) as cache:
                done += [run.table(cache, table) for table in tables if table.modality == modality]
                notes += [*cache.notes, *run.notes]
    return Summary(path, done, left_out=dataset.left_out, notes=notes)


def configured(config: ExtractConfig | None, overrides: dict[str, Any]) -> ExtractConfig:
    """``config`` with ``overrides`` in place; paths may be strings.

    Raises:
        RecipeError: an override that is no field.
    """
    fields = [field.name for field in dataclasses.fields(ExtractConfig)]
    for name in overrides:
        if name not in fields:
            near = registry.nearest(name, fields, cutoff=0.6)
            hint = f"; did you mean {near}?" if near else ""
            raise RecipeError(f"extract: no setting {name!r}; expected one of {', '.join(fields)}{hint}")
    config = dataclasses.replace(config or ExtractConfig(), **overrides)
    given = config.draws_from
    several = (given,) if isinstance(given, str | Path) else given
    paths = {name: getattr(config, name) for name in ("data_root", "cache", "tokenizer")}
    return dataclasses.replace(
        config,
        draws_from=None if several is None else tuple(Path(path).expanduser() for path in several),
        **{name: Path(value).expanduser() for name, value in paths.items() if value is not None},
    )


def _notes(dataset: Dataset, tables: list[TablePlan], towers: dict[str, Encoder]) -> list[str]:
    """What is to be said of the encoders and of the texts that they cut, before any row is made."""
    told = list(dict.fromkeys(note for each in towers.values() if (note := getattr(each, "note", ""))))
    plans = [table for table in tables if table.modality == "text"]
    names = dataset.class_names
    cut = [texts.check_cut(towers["text"], names, plan.views, plan.name) for plan in plans]
    return told + [note for notes in cut for note in notes]


def load(config: ExtractConfig, dataset: Dataset, modality: str, precision: str | None = None) -> Encoder:
    """The encoder that the user, else the data set, wants for ``modality``."""
    modality = "image" if config.tokens is not None else modality
    name = config.encoder or dataset.encoders.get(modality, "open_clip")
    return encoders.load(
        name,
        modality,
        model=config.model,
        weights=config.pretrained,
        precision=precision or config.precision,
        device=config.device,
        seed=config.seed,
        **(_audio_options(config) if modality == "audio" else {}),
        **(_image_options(config, name) if modality == "image" else {}),
        **({"tokenizer": config.tokenizer} if modality == "text" and config.tokenizer else {}),
    )


def _image_options(config: ExtractConfig, encoder: str) -> dict[str, Any]:
    own = {"crop_scale": None, "feature": "projected", "tokens": None}
    said = {name: getattr(config, name) for name in own if getattr(config, name) != own[name]}
    if said and encoder != "open_clip":
        flag = "--" + next(iter(said)).replace("_", "-")
        raise RecipeError(f"{flag}: not for --encoder {encoder}; expected open_clip; leave {flag} out")
    return said


def _audio_options(config: ExtractConfig) -> dict[str, Any]:
    names = ("audio_feature", "audio_seconds", "audio_range", "audio_mode")
    return {name: getattr(config, name) for name in names}


def _sizes(config: ExtractConfig, dataset: Dataset, tables: list[TablePlan]) -> list[TableSummary]:
    """Rows and bytes of every table, without loading open_clip's weights."""
    dims = {table.modality: 0 for table in tables}
    for modality in dims:
        name = config.encoder or dataset.encoders.get(modality.partition("-block")[0], "open_clip")
        if name == "open_clip":
            from spaner.extract.encoders.clip_weights import dimension

            feature = config.feature if modality == "image" else ""
            dims[modality] = dimension(config.model, feature, tokens=config.tokens is not None)
        else:
            dims[modality] = load(config, dataset, modality).spec.dim
    item = np.dtype(config.dtype).itemsize
    return [
        TableSummary(t.name, len(t.source), 0, len(t.source) * len(t.views) * dims[t.modality] * item)
        for t in tables
    ]


class Extraction:
    """One modality's tables through one encoder."""

    def __init__(
        self,
        config: ExtractConfig,
        dataset: Dataset,
        encoder: Encoder,
        progress: Progress,
        exact: Callable[[str], Encoder] | None = None,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.encoder = encoder
        self.progress = progress
        self.exact = exact or partial(load, config, dataset, precision="float32")
        self.reference: Encoder | None = None
        self.notes: list[str] = []

    def table(self, cache: Cache, table: TablePlan) -> TableSummary:
        """Begin or continue one table, fill it, check it and seal it."""
        manifest = table.manifest(self.dataset, self.encoder.spec, self.config)
        with cache.begin(
            manifest, table.source.ids, table.source.labels, table.draws, overwrite=self.config.overwrite
        ) as writer:
            watch = self._resume(cache, table, writer)
            if writer.sealed:
                sealed = cache.table(table.name)
                return self._summary(manifest, sealed.failures(), manifest.rows, None, sealed.measured)
            feed = self._feed(cache, table, manifest, watch.split)
            todo = _rows(writer)
            allow = self.config.allow_impure
            purity.check_early(self.encoder, writer, feed.probe, allow=allow)
            began = time.perf_counter()
            pipeline.fill(Noted(writer, watch), feed, self._tick(manifest, manifest.rows - todo))
            seconds = time.perf_counter() - began
            failures = writer.failures()
            self._check_failed(table, failures)
            failed = [row for row, key in enumerate(table.source.ids) if key in failures]
            twin = partial(self._twin, table.modality)
            measured = purity.of_table(self.encoder, twin, writer, feed.probe, failed, allow=allow)
            writer.seal(measured)
        return self._summary(
            manifest, failures, manifest.rows - todo, todo / seconds if todo else None, measured
        )

    def _resume(self, cache: Cache, table: TablePlan, writer: Writer) -> Watch:
        """Open again what is damaged, or half done and made of other files than are there now."""
        self.notes += open_damaged(cache, writer)
        watch = Watch(table.source, self.config.check)
        if self.config.check != "off":
            self.notes += origins.compare_table(cache, writer, watch)
        return watch

    def _feed(self, cache: Cache, table: TablePlan, manifest: Manifest, source: Split) -> pipeline.Feed:
        if table.is_text:
            known = texts.known_columns(cache, manifest)
            size = self.config.batch_size
            return texts.feed(table.source, self.encoder, size, manifest.chunk_rows, known)
        views = len(table.views)
        return pipeline.feed(source, self.encoder, views, self.config.seed, self._pace())

    def _tick(self, manifest: Manifest, done: int) -> Callable[[int], None]:
        def tick(rows: int) -> None:
            nonlocal done
            done += rows
            self.progress(done, manifest.rows, manifest.table)

        return tick

    def _pace(self) -> pipeline.Pace:
        cuda = getattr(getattr(self.encoder, "device", None), "type", "cpu") == "cuda"
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = self.config.workers or (min(16, cores) if cuda else max(1, cores // 2))
        return pipeline.Pace(self.config.batch_size, workers, pin=cuda)

    def _check_failed(self, table: TablePlan, failures: dict[str, str]) -> None:
        rows = len(table.source)
        share = len(failures) / rows
        if share > self.config.max_failed:
            first = "; ".join(f"{key}: {why}" for key, why in list(failures.items())[:3])
            raise DatasetError(
                f"{table.name}: {len(failures):,} of {rows:,} files failed ({100 * share:.3g} %), "
                f"tolerated {100 * self.config.max_failed:.3g} %; {first}; mend the files and type "
                f"`--overwrite`, or raise `--max-failed`"
            )

    def _twin(self, modality: str) -> Encoder:
        """The same encoder in float32, for measuring agreement; loaded once."""
        if self.reference is None:
            self.reference = self.exact(modality)
        return self.reference

    def _summary(
        self,
        manifest: Manifest,
        failures: dict[str, str],
        resumed: int,
        rate: float | None,
        measured: dict[str, Any],
    ) -> TableSummary:
        size = manifest.rows * len(manifest.views) * manifest.dim * np.dtype(manifest.dtype).itemsize
        return TableSummary(
            name=manifest.table,
            rows=manifest.rows,
            resumed=resumed,
            bytes=size,
            failures=failures,
            rows_per_second=rate,
            purity=measured.get("purity", {}).get("max_relative"),
            agreement=measured.get("agreement", {}).get("min_cosine"),
        )


def _rows(writer: Writer) -> int:
    """Rows that are still to be written."""
    spans = [writer.rows(chunk) for chunk in writer.pending]
    return sum(span.stop - span.start for span in spans)
