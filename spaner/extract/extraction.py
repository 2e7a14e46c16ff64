"""One modality's tables through one encoder: begin or continue, fill, check, seal.

A table is filled whole by this process, or in parts by many: then each process fills its own chunks, and one
that finds all of them written checks the whole and seals it.
"""

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from spaner.cache.cache import Cache, Writer
from spaner.cache.manifest import Manifest
from spaner.device import cores
from spaner.errors import DatasetError, Mismatch, RecipeError
from spaner.extract import origins, pipeline, purity, texts
from spaner.extract.config import ExtractConfig
from spaner.extract.datasets import captions
from spaner.extract.datasets.dataset import Dataset, Split
from spaner.extract.encoders import encoder as encoders
from spaner.extract.encoders.encoder import Encoder
from spaner.extract.origins import Noted, Watch
from spaner.extract.plan import TablePlan
from spaner.extract.repair import open_damaged
from spaner.extract.summary import TableSummary
from spaner.progress import Progress


def load(config: ExtractConfig, dataset: Dataset, modality: str, precision: str | None = None) -> Encoder:
    """The encoder that the user, else the data set, wants for `modality`."""
    modality = "image" if config.tokens is not None else modality
    modality = "text" if modality in captions.MODALITIES else modality
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


def notes_of(dataset: Dataset, tables: list[TablePlan], towers: dict[str, Encoder]) -> list[str]:
    """What is to be said of the encoders and of the texts that they cut, before any row is made."""
    told = list(dict.fromkeys(note for each in towers.values() if (note := getattr(each, "note", ""))))
    plans = [table for table in tables if table.modality == "text"]
    names = dataset.class_names
    cut = [texts.check_cut(towers["text"], names, plan.views, plan.name) for plan in plans]
    said = [table for table in tables if table.modality in captions.MODALITIES]
    cut += [texts.cut_captions(towers[plan.modality], plan.source, plan.name) for plan in said]
    return told + [note for notes in cut for note in notes]


class Extraction:
    """One modality's tables through one encoder."""

    def __init__(
        self,
        config: ExtractConfig,
        dataset: Dataset,
        modality: str,
        progress: Progress,
        encoder: Encoder | None = None,
        exact: Callable[[str], Encoder] | None = None,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.modality = modality
        self.progress = progress
        self.exact = exact or partial(load, config, dataset, precision="float32")
        self.reference: Encoder | None = None
        self._encoder = encoder
        self.notes: list[str] = []

    @property
    def encoder(self) -> Encoder:
        """Loaded when it is first needed: who has nothing left to encode needs none."""
        if self._encoder is None:
            self._encoder = load(self.config, self.dataset, self.modality)
        return self._encoder

    def table(self, cache: Cache, table: TablePlan) -> TableSummary:
        """Begin or continue one table, fill it, check it and seal it."""
        manifest = table.manifest(self.dataset, self.encoder.spec, self.config)
        with cache.begin(
            manifest, table.source.ids, table.source.labels, table.draws, overwrite=self.config.overwrite
        ) as writer:
            return self._fill(cache, table, writer, whole=True)

    def part(self, cache: Cache, table: TablePlan, writer: Writer) -> TableSummary:
        """Fill a share of a table that was begun elsewhere; check the whole and seal it if all is written.

        Raises:
            Mismatch: this process has another encoder than the table.
        """
        if writer.pending or (writer.complete and not writer.sealed):
            differences = writer.manifest.encoder.differences(self.encoder.spec)
            if differences:
                shown = ", ".join(f"{k} {a!r} there, {b!r} here" for k, (a, b) in differences.items())
                raise Mismatch(
                    f"{table.name} of {cache.path} is being filled by another encoder: {shown}; give every "
                    "part the same weights and precision"
                )
        return self._fill(cache, table, writer, whole=False)

    def _fill(self, cache: Cache, table: TablePlan, writer: Writer, *, whole: bool) -> TableSummary:
        manifest = writer.manifest
        watch = self._resume(cache, table, writer, whole=whole)
        if writer.sealed:
            sealed = cache.table(table.name)
            return self._summary(manifest, sealed.failures(), manifest.rows, None, sealed.measured)
        mine, todo = writer.mine, _rows(writer, writer.pending)
        rows = manifest.rows if whole else _rows(writer, mine)
        if not (todo or writer.complete):  # others have still to write
            return self._summary(manifest, writer.failures(mine), rows, None, {}, rows)
        feed = self._feed(cache, table, manifest, watch.split)
        purity.check_early(self.encoder, writer, feed.probe, allow=self.config.allow_impure)
        began = time.perf_counter()
        pipeline.fill(Noted(writer, watch), feed, self._tick(table.name, rows, rows - todo))
        seconds = time.perf_counter() - began
        measured = self._finish(table, writer, feed) if whole or writer.complete else {}
        rate = todo / seconds if todo else None
        return self._summary(manifest, writer.failures(mine), rows - todo, rate, measured, rows)

    def _resume(self, cache: Cache, table: TablePlan, writer: Writer, *, whole: bool) -> Watch:
        """Open again what is damaged, or half done and made of other files than are there now.

        Of a finished table that a part joins nothing is read again.
        """
        watch = Watch(table.source, self.config.check)
        if whole or not writer.sealed:
            self.notes += open_damaged(cache, writer)
            if self.config.check != "off":
                self.notes += origins.compare_table(cache, writer, watch)
        return watch

    def _finish(self, table: TablePlan, writer: Writer, feed: pipeline.Feed) -> dict[str, Any]:
        """Check the whole table and seal it; what was measured."""
        failed = writer.failed()
        self._check_failed(table, writer, len(failed))
        twin = self._twin
        allow = self.config.allow_impure
        measured = purity.of_table(self.encoder, twin, writer, feed.probe, failed, allow=allow)
        writer.seal(measured)
        return measured

    def _feed(self, cache: Cache, table: TablePlan, manifest: Manifest, source: Split) -> pipeline.Feed:
        if table.is_text:
            known = texts.known_columns(cache, manifest)
            size = self.config.batch_size
            return texts.feed(table.source, self.encoder, size, manifest.chunk_rows, known)
        views = len(table.views)
        return pipeline.feed(source, self.encoder, views, self.config.seed, self._pace())

    def _tick(self, table: str, total: int, done: int) -> Callable[[int], None]:
        def tick(rows: int) -> None:
            nonlocal done
            done += rows
            self.progress(done, total, table)

        return tick

    def _pace(self) -> pipeline.Pace:
        device = getattr(self.encoder, "device", None)
        card = device if device is not None and device.type == "cuda" else None
        workers = self.config.workers or (min(16, cores()) if card else max(1, cores() // 2))
        return pipeline.Pace(self.config.batch_size, workers, card)

    def _check_failed(self, table: TablePlan, writer: Writer, failed: int) -> None:
        rows = writer.manifest.rows
        share = failed / rows
        if share > self.config.max_failed:
            first = "; ".join(f"{key}: {why}" for key, why in list(writer.failures().items())[:3])
            raise DatasetError(
                f"{table.name}: {failed:,} of {rows:,} files failed ({100 * share:.3g} %), "
                f"tolerated {100 * self.config.max_failed:.3g} %; {first}; mend the files and type "
                f"`--overwrite`, or raise `--max-failed`"
            )

    def _twin(self) -> Encoder:
        """The same encoder in float32, for measuring agreement; loaded once."""
        if self.reference is None:
            self.reference = self.exact(self.modality)
        return self.reference

    def _summary(
        self,
        manifest: Manifest,
        failures: dict[str, str],
        resumed: int,
        rate: float | None,
        measured: dict[str, Any],
        rows: int | None = None,
    ) -> TableSummary:
        rows = manifest.rows if rows is None else rows
        size = rows * len(manifest.views) * manifest.dim * np.dtype(manifest.dtype).itemsize
        return TableSummary(
            name=manifest.table,
            rows=rows,
            resumed=resumed,
            bytes=size,
            failures=failures,
            rows_per_second=rate,
            purity=measured.get("purity", {}).get("max_relative"),
            agreement=measured.get("agreement", {}).get("min_cosine"),
        )


def _rows(writer: Writer, chunks: Iterable[int]) -> int:
    """Rows in these chunks."""
    return sum(span.stop - span.start for span in map(writer.rows, chunks))
