"""Mend a cache: encode damaged chunks again, and only those, finish what a kill left unfinished, and write
metadata and listings anew.

The encoder is rebuilt from the table's manifest, its weights compared by hash before a byte is written. What
cannot be mended without the settings of the extraction is named: the same `spaner extract` mends that.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from spaner.cache import cache as caches
from spaner.cache.cache import Cache, Writer
from spaner.cache.manifest import Manifest
from spaner.cache.opening import whose
from spaner.cache.verification import Problem
from spaner.errors import Corrupt
from spaner.extract import pipeline, purity, texts
from spaner.extract.datasets import images
from spaner.extract.datasets.dataset import Split
from spaner.extract.encoders.encoder import Encoder
from spaner.extract.encoders.rebuilt import rebuild
from spaner.extract.listing import Listed, Origin, listed
from spaner.extract.origins import Noted, Watch, compare_table
from spaner.extract.summary import Summary, TableSummary
from spaner.progress import Progress, no_progress

BATCH = 64  # views per encoder call
Load = Callable[..., Encoder]


def repair(
    path: str | Path,
    *,
    dataset: str | None = None,
    data_root: Path | None = None,
    allow_outside: bool = False,
    model: str | None = None,
    pretrained: str | None = None,
    tokenizer: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Summary:
    """Verify a cache and mend it.

    Args:
        dataset: what was given to extract; needed where the cache's data set has no place of its own.
        allow_outside: let a list name files that lie outside its data root, as given to extract.
        model: the config JSON or folder, if the model came from one.
        pretrained: the checkpoint file, if the weights came from one.
        tokenizer: the folder of the text encoder's tokenizer, if it came from one.

    Raises:
        Corrupt: damage that only `spaner extract` can mend.
        DatasetError, EncoderError: samples or weights that are not there.
        Mismatch: weights other than the table's, or files that changed.
    """
    path, done, chunks = Path(path), [], 0
    name, class_names = whose(path)
    origin = Origin(dataset, data_root, allow_outside)

    def load(manifest: Manifest, precision: str | None = None) -> Encoder:
        files: dict[str, Any] = {"model": model, "weights": pretrained, "tokenizer": tokenizer}
        how: dict[str, Any] = {"precision": precision, "device": device, "seed": manifest.seed}
        return rebuild(manifest.encoder, manifest.table, **files, **how)

    with images.quiet(), caches.create(path, name, class_names) as cache:
        cache.mend()
        broken = _broken(cache)
        for table, problems in broken.items():
            again = [problem.chunk for problem in problems if problem.chunk is not None]
            manifest = cache.manifest(table)
            if any(problem.part != "listing" for problem in problems):
                load(manifest)  # what is missing for encoding is asked for before anything is written
            rows = listed(cache, manifest, origin)
            summary = _mend(cache, manifest, again, rows, load, progress or no_progress)
            chunks += -(-(summary.rows - summary.resumed) // manifest.chunk)
            done.append(summary)
        return Summary(path, done, repaired=chunks, notes=list(cache.notes))


def open_damaged(cache: Cache, writer: Writer) -> list[str]:
    """Look at every byte of a finished table, and let its writer write damaged chunks again; what to say.

    Raises:
        Corrupt: damage that encoding chunks again does not mend.
    """
    if not writer.sealed:
        return []
    table = writer.manifest.table
    problems = cache.verify([table])
    chunks = [problem.chunk for problem in problems if problem.chunk is not None]
    said = [problem.what for problem in problems if problem.part == "stray"]
    for problem in problems:
        if problem.chunk is None and problem.part != "stray":
            raise Corrupt(f"{problem.what.split(';')[0]}; replace the table with --overwrite")
    writer.reset(chunks)
    return said + ([f"{table}: {len(chunks):,} damaged chunks are encoded again"] if chunks else [])


def _broken(cache: Cache) -> dict[str, list[Problem]]:
    """Table -> what is wrong with it that encoding or the data set can mend."""
    found: dict[str, list[Problem]] = {}
    hopeless = []
    for problem in cache.verify():
        if problem.part in ("rows", "listing", "unfinished"):
            found.setdefault(problem.table, []).append(problem)
        elif problem.part == "stray":
            cache.notes.append(problem.what)
        elif problem.part != "file":
            hopeless.append(problem.what.split(";")[0])
    if hopeless:
        raise Corrupt(
            f"{cache.path}: {hopeless[0]} ({len(hopeless)} such), which the cache alone cannot mend; run the "
            "same `spaner extract` again, which does"
        )
    return found


def _mend(
    cache: Cache, manifest: Manifest, chunks: list[int], rows: Listed, load: Load, progress: Progress
) -> TableSummary:
    ids, labels = rows.source.ids, rows.source.labels
    with cache.begin(manifest, ids, labels, rows.draws) as writer:
        watch = Watch(rows.source, "stat")
        writer.reset(chunks)
        cache.notes += compare_table(cache, writer, watch)
        todo = sum(span.stop - span.start for span in map(writer.rows, writer.pending))
        if not writer.sealed:
            _finish(manifest, writer, watch, load, progress)
        failures = writer.failures() if chunks or todo else {}
    return TableSummary(manifest.table, manifest.rows, manifest.rows - todo, 0, failures)


def _finish(manifest: Manifest, writer: Writer, watch: Watch, load: Load, progress: Progress) -> None:
    """Encode what is pending and seal, with what was measured before; else it is measured now."""
    encoder = load(manifest)
    feed = _feed(manifest, encoder, watch.split)
    total, done = sum(span.stop - span.start for span in map(writer.rows, writer.pending)), 0

    def tick(rows: int) -> None:
        nonlocal done
        done += rows
        progress(done, total, manifest.table)

    pipeline.fill(Noted(writer, watch), feed, tick)
    measured = writer.measured
    if measured is None:
        failures = writer.failures()
        failed = [row for row, key in enumerate(watch.split.ids) if key in failures]
        twin = partial(load, manifest, precision="float32")
        measured = purity.of_table(encoder, twin, writer, feed.probe, failed, allow=False)
    writer.seal(measured)


def _feed(manifest: Manifest, encoder: Encoder, source: Split) -> pipeline.Feed:
    if manifest.modality == "text":
        return texts.feed(source, encoder, BATCH, manifest.chunk_rows, {})
    return pipeline.feed(source, encoder, len(manifest.views), manifest.seed, pipeline.Pace(BATCH, workers=2))
