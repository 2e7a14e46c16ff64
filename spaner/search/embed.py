"""New samples, or tables that are cached already, in a run's space on disk: a cache, .npy or .parquet.

`embed` is extraction with another encoder (`encoding.Mapped`): what was done before is continued, failed
files are rows with a reason, and purity is measured. `embed_tables` maps cached rows, chunk by chunk. Plain
files are written from a finished cache beside them, which is then removed.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from spaner import cache as caches
from spaner.align.train.run import Run
from spaner.cache import files as disk
from spaner.errors import CacheError
from spaner.extract import plan
from spaner.extract.config import ExtractConfig
from spaner.extract.datasets import images
from spaner.extract.encoders.encoder import Encoder
from spaner.extract.extraction import Extraction
from spaner.extract.summary import TableSummary
from spaner.progress import Progress, no_progress
from spaner.search.encoding import Files, Mapped, check_modality, mapped_spec, own_encoder
from spaner.search.sources import Gathered

MAX_FAILED = 0.5
"""More unreadable files than this share, and the path was probably wrong."""


@dataclass(frozen=True)
class Options:
    """How to embed; nothing of it changes a row but `dtype`."""

    dtype: str = "float16"
    batch_size: int = 64
    workers: int | None = None
    max_failed: float = MAX_FAILED
    overwrite: bool = False


def embed(
    run: Run,
    source: Gathered,
    out: Path,
    options: Options | None = None,
    files: Files | None = None,
    progress: Progress | None = None,
) -> list[TableSummary]:
    """Encode a source, map it into the run's space, and keep it at `out`.

    Args:
        out: a cache; or a name ending in .npy or .parquet.

    Raises:
        RunError, EncoderError, Mismatch: see `encoding.own_encoder`. DatasetError: too many unreadable files.
        CacheError: another table is there, an extra is missing, the disk is full.
    """
    _check(out)
    place = _cache_of(out)
    done = fill(run, source, place, options, files, progress, lambda encoder: Mapped(encoder, run))
    _finish(place, out)
    return done


def fill(
    run: Run,
    source: Gathered,
    place: Path,
    options: Options | None,
    files: Files | None,
    progress: Progress | None,
    through: Callable[[Encoder], Encoder],
) -> list[TableSummary]:
    """Fill a cache with a source by the run's own encoders; `through` is what their rows go through."""
    options = options or Options()
    for modality in source.dataset.splits:
        check_modality(run, modality)
    config = ExtractConfig(
        dtype=options.dtype,  # pyright: ignore[reportArgumentType]
        batch_size=options.batch_size,
        workers=options.workers,
        max_failed=options.max_failed,
        overwrite=options.overwrite,
    )
    done = []
    with images.quiet(), caches.create(place, source.dataset.name, source.dataset.class_names) as cache:
        for modality, splits in source.dataset.splits.items():
            encoder = through(own_encoder(run, modality, files))
            work = Extraction(
                config,
                source.dataset,
                modality,
                progress or no_progress,
                encoder,
                exact=lambda name: through(own_encoder(run, name, files, precision="float32")),
            )
            done += [work.table(cache, _plan(modality, name, rows)) for name, rows in splits.items()]
    return done


def _plan(modality: str, split: str, rows: Any) -> plan.TablePlan:
    views = ("{}",) if modality == "text" else ("center",) if modality == "image" else ("whole",)
    return plan.TablePlan(modality, split, rows, views)


def embed_tables(
    run: Run,
    tables: Sequence[tuple[caches.Cache, str]],
    out: Path,
    options: Options | None = None,
    progress: Progress | None = None,
) -> list[TableSummary]:
    """Map cached tables into the run's space; of a text table the mean over its templates.

    Raises:
        RunError: a modality that the run does not know. Mismatch: made by another encoder than the run's.
        CacheError: tables of two caches with other classes, or a table that is there already.
    """
    options = options or Options()
    _check(out)
    first = tables[0][0]
    for cache, name in tables:
        if cache.class_names != first.class_names:
            raise CacheError(
                f"{cache.path} has other classes than {first.path}; expected caches of the same classes; "
                "embed them one after another, each into an --out of its own"
            )
        check_modality(run, cache.table(name).manifest.modality)
        run.check(cache.table(name).manifest)
    place = _cache_of(out)
    with caches.create(place, first.dataset, first.class_names) as target:
        done = [
            _map(run, cache.table(name), target, options, progress or no_progress) for cache, name in tables
        ]
    _finish(place, out)
    return done


def _map(
    run: Run, table: caches.Table, target: caches.Cache, options: Options, progress: Progress
) -> TableSummary:
    spec, ids = mapped_spec(run, table.manifest.encoder), table.ids.tolist()
    manifest = caches.Manifest(
        dataset=target.dataset,
        modality=table.manifest.modality,
        split=table.manifest.split,
        rows=table.rows,
        views=("mean of templates",) if table.manifest.modality == "text" else table.views[:1],
        dim=spec.dim,
        dtype=options.dtype,
        chunk_rows=caches.default_chunk_rows(1, spec.dim, options.dtype),
        encoder=spec,
        seed=table.manifest.seed,
        rows_sha256=table.manifest.rows_sha256,
        complete=table.manifest.complete,
        options={"mapped from": table.manifest.sha256},
    )
    with target.begin(manifest, ids, table.labels, overwrite=options.overwrite) as writer:
        waiting, done = list(writer.pending), 0
        failures = table.failures()
        for chunk in waiting:
            span = writer.rows(chunk)
            z = mapped_rows(run, table, span)
            reasons = {row - span.start: failures[ids[row]] for row in _failed(table, span)}
            writer.write(chunk, z[:, None], reasons=reasons)
            done += len(z)
            progress(done, table.rows, table.name)
        if not writer.sealed:
            writer.seal({"mapped from": table.measured})
    size = table.rows * spec.dim * np.dtype(options.dtype).itemsize
    return TableSummary(table.name, table.rows, table.rows - done, size, failures)


def mapped_rows(run: Run, table: caches.Table, span: slice) -> Float[np.ndarray, "n E"]:
    """Rows of a cached table in the run's space: the first view, of texts the mean over templates; failed
    rows are whatever zeros become."""
    rows = table.read(span).astype(np.float32)
    modality = table.manifest.modality
    if modality != "text":
        return run.embed(modality, rows[:, 0])
    mean = np.mean([run.embed("text", rows[:, view]) for view in range(rows.shape[1])], axis=0)
    return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _failed(table: caches.Table, span: slice) -> Iterator[int]:
    yield from (span.start + np.flatnonzero(~table.ok[span])).tolist()


def _check(out: Path) -> None:
    beside = out.with_suffix(".csv")
    if out.suffix == ".npy" and beside.exists() and not (out.exists() or _cache_of(out).exists()):
        raise CacheError(
            f"{beside} exists already, where the list of the rows of {out.name} would go; expected no "
            "such file; choose another name with --out"
        )
    if out.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise CacheError(
            f'{out}: pyarrow is not installed; expected the extra; type `pip install "spaner[tables]"`, or '
            "choose a name ending in .npy"
        )


def _cache_of(out: Path) -> Path:
    """Where the table grows: the place itself, or a cache beside a plain file."""
    return out.with_name(f".{out.name}.cache") if out.suffix in (".npy", ".parquet") else out


def _finish(place: Path, out: Path) -> None:
    """Write the plain file from the finished cache and remove that."""
    if place == out:
        return
    with caches.open(place) as cache:
        vectors = [cache.table(name).read()[:, 0].astype(np.float32) for name in cache.tables()]
        columns = _columns(cache)
    with disk.writing(out):
        with disk.replacing(out) as part:
            if out.suffix == ".npy":
                with part.open("xb") as file:
                    np.save(file, np.concatenate(vectors))
                _write_csv(out.with_suffix(".csv"), columns)
            else:
                _write_parquet(part, columns, np.concatenate(vectors))
        shutil.rmtree(place)


def _columns(cache: caches.Cache) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {"id": [], "modality": [], "class": [], "ok": [], "reason": []}
    for name in cache.tables():
        table = cache.table(name)
        failures = table.failures()
        columns["id"] += table.ids.tolist()
        columns["modality"] += [table.manifest.modality] * table.rows
        columns["class"] += [cache.class_names[label] for label in table.labels.tolist()]
        columns["ok"] += table.ok.tolist()
        columns["reason"] += [failures.get(key, "") for key in table.ids.tolist()]
    return columns


def _write_csv(path: Path, columns: dict[str, list[Any]]) -> None:
    import csv

    with (
        disk.replacing(path) as part,
        part.open("x", newline="", encoding="utf-8", errors="surrogateescape") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _write_parquet(path: Path, columns: dict[str, list[Any]], vectors: np.ndarray) -> None:
    arrow: Any = import_module("pyarrow")
    flat = arrow.array(vectors.reshape(-1))
    listed = arrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    import_module("pyarrow.parquet").write_table(arrow.table(columns | {"vector": listed}), path)
