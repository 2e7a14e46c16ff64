"""Extract damaged chunks again, and only those, with the encoder that the table's manifest names.

The encoder is rebuilt and its weights are compared by hash before a byte is written. What no re-extraction
can mend (damaged metadata, ids or labels) is named; ``spaner extract --overwrite`` replaces such a table.
"""

from pathlib import Path
from typing import Any

from spaner import registry
from spaner.cache import cache as caches
from spaner.cache.cache import Cache
from spaner.cache.manifest import EncoderSpec, Manifest
from spaner.cache.table import Table
from spaner.errors import Corrupt, DatasetError, EncoderError, Mismatch, Unsealed
from spaner.extract import pipeline, texts
from spaner.extract.datasets import images
from spaner.extract.datasets.dataset import DATASETS, Split, read
from spaner.extract.encoders import encoder as encoders
from spaner.extract.encoders.encoder import Encoder
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
            encoder = _encoder(table.manifest, model, pretrained, device)
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


def _audio_options(spec: EncoderSpec) -> dict[str, Any]:
    """What ``spaner extract --audio-…`` said, read back from the spec."""
    if spec.modality == "image":
        return {
            name: spec.preprocessing[name] for name in ("crop_scale", "feature") if name in spec.preprocessing
        }
    said = {"audio_mode": spec.mode} if spec.modality == "audio" else {}
    names = ("feature", "seconds", "range") if said else ()
    return said | {f"audio_{name}": spec.preprocessing[name] for name in names if name in spec.preprocessing}


def _encoder(manifest: Manifest, model: str | None, pretrained: str | None, device: str) -> Encoder:
    """The table's encoder, rebuilt and compared."""
    spec = manifest.encoder
    registered, _, architecture = spec.name.partition("/")
    if registered not in encoders.names():
        raise EncoderError(
            f"{manifest.table}: its rows came from {spec.name!r}, which spaner cannot run; put your arrays "
            f"in again"
        )
    if "@" in architecture and model is None:
        raise EncoderError(
            f"{manifest.table}: its model {architecture.partition('@')[0]} was a config file; "
            "type `--model PATH/TO/CONFIG.json`"
        )
    if spec.weights.startswith("file:") and pretrained is None:
        raise EncoderError(
            f"{manifest.table}: its weights were the file {spec.weights[5:]}; type `--pretrained "
            f"PATH/{spec.weights[5:]}`"
        )
    encoder = encoders.load(
        registered,
        manifest.modality,
        model=model or architecture,
        weights=pretrained or spec.weights,
        precision=spec.precision,
        device=device,
        seed=manifest.seed,
        **_audio_options(spec),
    )
    different = spec.same_encoder(encoder.spec)
    if different:
        field, (there, here) = next(iter(different.items()))
        raise Mismatch(
            f"{manifest.table} was made by another encoder: {field} {there!r} there, {here!r} here; "
            "give the model and weights that made it"
        )
    return encoder
