"""Extract damaged chunks again, and only those, with the encoder that the table's manifest names.

The encoder is rebuilt and its weights are compared by hash before a byte is written. What no re-extraction
can mend (damaged metadata, ids or labels) is named; ``spaner extract --overwrite`` replaces such a table.
"""

from pathlib import Path

from spaner import registry
from spaner.cache import cache as caches
from spaner.cache.cache import Cache
from spaner.cache.table import Table
from spaner.errors import Corrupt, DatasetError, Unsealed
from spaner.extract import pipeline, texts
from spaner.extract.datasets import images
from spaner.extract.datasets.dataset import DATASETS, Split, read
from spaner.extract.encoders.rebuilt import rebuild
from spaner.extract.summary import Summary, TableSummary
from spaner.progress import Progress, no_progress

BATCH = 64  # views per encoder call


def repair(
    path: str | Path,
    *,
    dataset: str | None = None,
    data_root: Path | None = None,
    allow_outside: bool = False,
    model: str | None = None,
    pretrained: str | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Summary:
    """Verify a cache and extract its damaged chunks again.

    Args:
        dataset: what was given to extract; needed where the cache's data set has no place of its own.
        allow_outside: let a list name files that lie outside its data root, as given to extract.
        model: the config JSON or folder, if the model came from one.
        pretrained: the checkpoint file, if the weights came from one.

    Raises:
        Corrupt: damage that re-extraction cannot mend.
        DatasetError, EncoderError: samples or weights that are not there.
        Mismatch: weights other than the table's.
    """
    path = Path(path)
    with caches.open(path) as cache:
        broken = _broken(cache)
        if not broken and (unsealed := cache.unsealed()):
            raise Unsealed(f"nothing to repair, but {cache.progress(unsealed[0])}")
        name, class_names = cache.dataset, cache.class_names
    done: list[TableSummary] = []
    with images.quiet(), caches.create(path, name, class_names) as cache:
        for table in (cache.table(which) for which in broken):
            encoder = rebuild(
                table.manifest.encoder,
                table.name,
                model=model,
                weights=pretrained,
                device=device,
                seed=table.manifest.seed,
            )
            again = broken[table.name]
            if table.manifest.modality == "text":
                classes = texts.split(class_names, table.views)
                feed = texts.feed(classes, encoder, BATCH, table.manifest.chunk_rows, {})
            else:
                source = _source(table, dataset, data_root, allow_outside=allow_outside)
                pace = pipeline.Pace(BATCH, workers=2)
                feed = pipeline.feed(source, encoder, len(table.views), table.manifest.seed, pace)
            done.append(_mend(cache, table, again, feed, progress or no_progress))
    return Summary(path, done, repaired=sum(map(len, broken.values())))


def _broken(cache: Cache) -> dict[str, list[int]]:
    """Table -> chunks to extract again."""
    found: dict[str, list[int]] = {}
    problems = cache.verify()
    hopeless = [problem.what for problem in problems if problem.chunk is None]
    if hopeless:
        raise Corrupt(
            f"{cache.path}: {hopeless[0]} ({len(hopeless)} such); chunks alone cannot mend it; "
            "replace the table with `spaner extract --overwrite`"
        )
    for problem in problems:
        if problem.chunk is not None:
            found.setdefault(problem.table, []).append(problem.chunk)
    return found


def _mend(
    cache: Cache,
    table: Table,
    chunks: list[int],
    feed: pipeline.Feed,
    progress: Progress,
) -> TableSummary:
    manifest, measured = table.manifest, table.measured
    ids, labels = table.ids.tolist(), table.labels
    draws = {name: table.draw(*_shots_and_seed(name)) for name in manifest.draws}
    done = 0

    def tick(rows: int) -> None:
        nonlocal done
        done += rows
        progress(done, sum(map(_length, map(writer.rows, chunks))), table.name)

    with cache.begin(manifest, ids, labels, draws) as writer:
        writer.reset(chunks)
        pipeline.fill(writer, feed, tick)
        writer.seal(measured)
        failures = writer.failures()
    return TableSummary(table.name, manifest.rows, manifest.rows - done, 0, failures)


def _length(rows: slice) -> int:
    return rows.stop - rows.start


def _shots_and_seed(draw: str) -> tuple[int, int, str]:
    """The parts of "16-shot-seed-1" and "16-shot-seed-1-equal"."""
    shots, _, rest = draw.partition("-shot-seed-")
    seed, _, kind = rest.partition("-")
    return int(shots), int(seed), kind


def _source(table: Table, dataset: str | None, root: Path | None, *, allow_outside: bool) -> Split:
    """Where the table's samples come from, found by their ids in any split of the data set."""
    manifest, ids = table.manifest, table.ids.tolist()
    spec = dataset or manifest.dataset
    if spec.partition(":")[0] not in registry.names(DATASETS, "dataset"):
        raise DatasetError(
            f"{manifest.table}: the cache does not say where data set {spec!r} lies; expected what was given "
            "to extract; type for example `--dataset folder:PATH`"
        )
    column = manifest.options.get("modality column")
    found = read(spec, root, seed=manifest.seed, allow_outside=allow_outside, modality_column=column)
    splits = found.splits.get(manifest.modality, {})
    place = {key: split.open for split in splits.values() for key in split.ids}
    missing = [key for key in ids if key not in place]
    if missing:
        raise DatasetError(
            f"{manifest.table}: {len(missing):,} of {len(ids):,} ids are not in {spec}, first "
            f"{missing[0]!r}; expected the data set that was extracted; check --dataset and --data-root"
        )
    return Split(ids, table.labels, lambda key: place[key](key))
