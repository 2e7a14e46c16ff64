"""The listing of a table (ids, labels, draws) as its cache has it, or found again in its data set.

A manifest keeps the hash of the ids and of every draw, so that a listing that was read again is known to be
the one that was lost. A draw that was imported from a published file is not computed again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spaner import registry
from spaner.cache.cache import Cache
from spaner.cache.layout import drawn_sha256, ids_sha256
from spaner.cache.manifest import Manifest
from spaner.errors import Corrupt, DatasetError, Mismatch
from spaner.extract import texts
from spaner.extract.datasets import captions
from spaner.extract.datasets.dataset import DATASETS, Dataset, Split, read
from spaner.extract.draws import Draws, add_draw
from spaner.extract.encoders.tokens import block_of


@dataclass(frozen=True)
class Origin:
    """Where a table's data set lies, as given to extract; `dataset` None where it has a place of its own."""

    dataset: str | None = None
    root: Path | None = None
    allow_outside: bool = False

    def read(self, manifest: Manifest) -> Dataset:
        """The data set of a table.

        Raises:
            DatasetError: the cache does not say where it lies, or it is not there.
        """
        spec = self.dataset or manifest.dataset
        if spec.partition(":")[0] not in registry.names(DATASETS, "dataset"):
            raise DatasetError(
                f"{manifest.table}: the cache does not say where data set {spec!r} lies; expected what was "
                "given to extract; type for example `--dataset folder:PATH`"
            )
        columns: dict[str, Any] = {
            f"{name}_column": tuple(manifest.options[f"{name} column"].split(","))
            for name in captions.MODALITIES
            if f"{name} column" in manifest.options
        }
        return read(
            spec,
            self.root,
            seed=manifest.seed,
            allow_outside=self.allow_outside,
            modality_column=manifest.options.get("modality column"),
            **columns,
        )


@dataclass(frozen=True, eq=False)
class Listed:
    """Rows and draws of a table, and how its samples are opened."""

    source: Split
    draws: dict[str, np.ndarray]


def listed(cache: Cache, manifest: Manifest, origin: Origin) -> Listed:
    """The listing of a table, sound whatever is stored.

    Raises:
        Corrupt: it is damaged, and not found again in the data set.
        DatasetError: the data set is not there, or another one. Mismatch: its sentences are others.
    """
    stored = cache.listing(manifest.table)
    if manifest.modality == "text":
        classes = texts.split(cache.class_names, manifest.views)
        _check_ids(manifest, list(classes.ids))
        return Listed(classes, {})
    found = origin.read(manifest)
    of_images = block_of(manifest.encoder) is not None
    splits = found.splits.get("image" if of_images else manifest.modality, {})
    if stored is None:
        return _again(manifest, splits)
    ids, labels, draws = stored
    place = {key: split for split in splits.values() for key in split.ids}
    missing = [key for key in ids if key not in place]
    if missing:
        where = origin.dataset or found.name
        raise DatasetError(
            f"{manifest.table}: {len(missing):,} of {len(ids):,} ids are not in {where}, first "
            f"{missing[0]!r}; expected the data set that was extracted; check --dataset and --data-root"
        )
    together = _together(ids, labels, place)
    _check_words(manifest, together)
    return Listed(together, draws)


def _check_words(manifest: Manifest, said: Split) -> None:
    """Mismatch unless sentences are those that a table was made of."""
    known = manifest.options.get("words")
    if known is not None and texts.words_sha256(said) != known:
        raise Mismatch(
            f"{manifest.table} was made of other sentences than its list has now under the same ids; "
            "expected the same words; put the list back, or extract it again with --overwrite"
        )


def _together(ids: list[str], labels: np.ndarray, place: dict[str, Split]) -> Split:
    """One split of samples from any split of the data set."""
    first = next(iter(place.values()))
    where = {key: split.place for key, split in place.items()}

    def find(key: str) -> Path:
        at = where[key]
        assert at is not None, "asked only of files"
        return at(key)

    return Split(
        ids,
        labels,
        lambda key: place[key].open(key),
        lambda key: place[key].stat(key),
        find if first.place else None,
    )


def _again(manifest: Manifest, splits: dict[str, Split]) -> Listed:
    if manifest.split not in splits:
        raise DatasetError(
            f"{manifest.table}: its listing is damaged, and the data set has no such split; expected the "
            "data set that was extracted; check --dataset and --data-root"
        )
    draws: Draws = {"train": {}, "val": {}}
    if manifest.draws and "train" in splits:
        for shots, seed in sorted({_shots_and_seed(name) for name in manifest.draws}):
            add_draw(draws, splits, shots, seed)
    split, found = splits[manifest.split], draws.get(manifest.split, {})
    found = {name: rows for name, rows in found.items() if name in manifest.draws}
    if not manifest.complete and found:
        rows = np.unique(np.concatenate(list(found.values())))
        split, found = split.take(rows), {name: np.searchsorted(rows, kept) for name, kept in found.items()}
    _check_ids(manifest, list(split.ids))
    for name, sha256 in manifest.draws.items():
        if name not in found or drawn_sha256(split.ids, found[name]) != sha256:
            raise _lost(manifest, f"its draw {name}")
    return Listed(split, found)


def _check_ids(manifest: Manifest, ids: list[str]) -> None:
    if ids_sha256(ids) != manifest.rows_sha256:
        raise _lost(manifest, "its ids")


def _lost(manifest: Manifest, what: str) -> Corrupt:
    return Corrupt(
        f"{manifest.table}: its listing is damaged, and {what} cannot be found again from the data set "
        "alone; run the same `spaner extract` again, which mends it"
    )


def _shots_and_seed(draw: str) -> tuple[int, int]:
    """16 and 1 of "16-shot-seed-1" and of "16-shot-seed-1-equal"."""
    shots, _, rest = draw.partition("-shot-seed-")
    return int(shots), int(rest.partition("-")[0])
