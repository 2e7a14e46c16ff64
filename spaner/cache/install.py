"""Starting a table: is the listing sound, does it agree with what is there, and how it comes into being.

A table appears in one rename with its complete listing (ids, labels, draws) and no rows, or not at all. At
an address, where nothing can be renamed, its own metadata are written last and removed first: without them
the objects of a table are no table.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from spaner.cache import files, root
from spaner.cache.layout import ArraySpec, Store, drawn_sha256, encode, ids_sha256, pack, stored_layout
from spaner.cache.manifest import SCHEMA, SCHEMAS, Manifest
from spaner.cache.mending import layout_of
from spaner.cache.zarr_store import ZarrStore
from spaner.errors import CacheError, Mismatch

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
Draws = Mapping[str, Int[np.ndarray, " K"]]
ID_BYTES = 1_024
SPARSE = ("reason", "stat")  # a chunk of zeros is no file


def check_manifest(manifest: Manifest, dataset: str) -> None:
    """Raise CacheError unless the manifest can describe a table of this cache."""
    table = manifest.table
    for name in (manifest.modality, manifest.split, *manifest.draws):
        if not NAME.fullmatch(name):
            raise CacheError(
                f"{name!r} cannot name a part of a cache; use letters, digits, and _ . + - after the first"
            )
    if manifest.dataset != dataset:
        raise Mismatch(
            f"{table} is of dataset {manifest.dataset!r}, the cache of {dataset!r}; use another --cache"
        )
    if manifest.schema not in SCHEMAS:
        raise CacheError(f"{table} has schema {manifest.schema}, this spaner writes {SCHEMA}; upgrade spaner")
    manifest.check()
    if manifest.encoder.dim != manifest.dim:
        raise CacheError(
            f"{table} has dim {manifest.dim}, its encoder {manifest.encoder.dim}; make them equal"
        )


def check_listing(
    manifest: Manifest, ids: Sequence[str], labels: np.ndarray, draws: Draws, classes: int
) -> None:
    """Raise CacheError unless ids, labels and draws fit each other and the manifest."""
    table, rows = manifest.table, manifest.rows
    if not len(ids) == len(labels) == rows:
        raise CacheError(
            f"{table} has {rows} rows but {len(ids)} ids and {len(labels)} labels; give one per row"
        )
    _check_lengths(table, ids)
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise CacheError(f"{table} lists the id {name!r} twice; give every sample its own id")
        seen.add(name)
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        row = int(outside[0])
        raise CacheError(
            f"label {labels[row]} of {ids[row]!r} in {table} is outside 0 to {classes - 1}; "
            "give class_names one name for every label"
        )
    if ids_sha256(ids) != manifest.rows_sha256:
        raise CacheError(f"rows_sha256 of {table} is not that of its ids; set it to ids_sha256(ids)")
    _check_draws(manifest, ids, draws)


def _check_lengths(table: str, ids: Sequence[str]) -> None:
    size, longest = max((len(encode(name)), name) for name in ids)
    if size > ID_BYTES:
        raise CacheError(
            f"{table}: the id {longest[:40]!r} … has {size:,} bytes; expected at most {ID_BYTES:,}, since "
            "every row stores as many as the longest has; give it a shorter one"
        )


def _check_draws(manifest: Manifest, ids: Sequence[str], draws: Draws) -> None:
    table = manifest.table
    if set(draws) != set(manifest.draws):
        raise CacheError(
            f"{table} got draws {sorted(draws)}, its manifest lists {sorted(manifest.draws)}; make them equal"
        )
    for name, rows in draws.items():
        if len(rows) == 0 or not 0 <= np.min(rows) <= np.max(rows) < manifest.rows:
            raise CacheError(f"draw {name} of {table} is empty or outside rows 0 to {manifest.rows - 1}")
        if drawn_sha256(ids, rows) != manifest.draws[name]:
            raise CacheError(
                f"draw {name} of {table} differs from its hash in the manifest; use drawn_sha256"
            )


def agree(store: Store, manifest: Manifest) -> None:
    """Raise Mismatch, naming what differs, unless the stored table is the one that is asked for."""
    table = manifest.table
    stored = Manifest.from_json(store.attributes(table).get("manifest"))
    if differences := stored.differences(manifest):
        shown = ", ".join(
            f"{name} {_short(a)} there, {_short(b)} asked" for name, (a, b) in differences.items()
        )
        raise Mismatch(
            f"{table} of {store.path} was made with other settings: {shown}; "
            "choose another --cache, or replace it with --overwrite"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]} … {text[-16:]}"


def packed(ids: Sequence[str], labels: np.ndarray, draws: Draws) -> dict[str, np.ndarray]:
    """The listing as the arrays that are stored."""
    listing = {"ids": pack(ids), "labels": np.asarray(labels, np.int32)}
    return listing | {f"draws/{name}": np.asarray(rows, np.int64) for name, rows in draws.items()}


def create(store: ZarrStore, manifest: Manifest, listing: Mapping[str, np.ndarray]) -> None:
    """Bring a table without rows into being, replacing one of the same name."""
    arrays = layout_of(manifest, listing)
    with _installing(store, manifest.table, {"manifest": manifest.to_json()}) as folder:
        _start(store, folder, arrays)
        for array, rows in listing.items():
            _fill(store, folder, array, arrays[array], rows)
    root.enlist(store, manifest.table, manifest.sha256)


def copy(
    source: Store,
    target: ZarrStore,
    table: str,
    *,
    attributes: dict[str, Any],
    skip: Sequence[int] = (),
    listing: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Copy a table chunk by chunk, all but the done flags of the chunks in `skip`.

    Args:
        listing: labels, ids and draws to store instead of the source's.
    """
    manifest = Manifest.from_json(attributes["manifest"])
    arrays = layout_of(manifest, listing) if listing else stored_layout(source, table, manifest)
    with _installing(target, table, attributes) as folder:
        _start(target, folder, arrays)
        for array, spec in arrays.items():
            if listing and array in listing:
                _fill(target, folder, array, spec, listing[array])
                continue
            for index in range(spec.chunks):
                rows = source.read(table, array, index * spec.chunk, (index + 1) * spec.chunk)
                absent = array in SPARSE and not rows.any()
                if not absent and not (array == "done" and index in skip):
                    target.write_chunk(folder, array, index, rows)
    root.enlist(target, table, manifest.sha256)


def _start(store: ZarrStore, folder: str, arrays: Mapping[str, ArraySpec]) -> None:
    if any(array.startswith("draws/") for array in arrays):
        store.set_attributes(f"{folder}/draws", {}, durable=False)
    for array, spec in arrays.items():
        store.create_array(folder, array, spec)


def _fill(store: ZarrStore, folder: str, array: str, spec: ArraySpec, rows: np.ndarray) -> None:
    for index in range(spec.chunks):
        store.write_chunk(folder, array, index, rows[index * spec.chunk : (index + 1) * spec.chunk])


@contextmanager
def _installing(store: ZarrStore, table: str, attributes: dict[str, Any]) -> Iterator[str]:
    """Yield a hidden folder to fill; on success it takes the table's place for good, on failure it goes.

    A kill leaves at most hidden folders, which the next attempt removes.
    """
    if store.far:
        with _installing_objects(store, table, attributes):
            yield table
        return
    final = store.path / table
    hidden = store.path / table.replace("/", "=")
    new, old = files.temporary(hidden, "new"), files.temporary(hidden, "old")
    with files.writing(final):
        files.clear(store.path)
        files.clear(final.parent)  # the group of a modality whose first table never came
        try:
            yield new.name
            store.set_attributes(new.name, attributes, durable=False)
            files.settle_folder(new)
            _start_modality(store, final.parent)
            if final.exists():
                final.rename(old)
            new.rename(final)
            files.settle([final, final.parent, store.path])
        finally:
            files.remove(new)
            files.remove(old)
            store.close()  # forget the layout of what was there


@contextmanager
def _installing_objects(store: ZarrStore, table: str, attributes: dict[str, Any]) -> Iterator[None]:
    """Objects in their own place, of which nothing is a table until the last one is written."""
    final = store.path / table
    (final / "zarr.json").unlink(missing_ok=True)
    files.remove(final)
    store.close()
    yield
    _start_modality(store, final.parent)
    store.set_attributes(table, attributes)


def _start_modality(store: ZarrStore, group: Path) -> None:
    if not (group / "zarr.json").is_file():
        store.set_attributes(group.name, root.copy_of(store.attributes()))


def discard(store: ZarrStore, table: str) -> None:
    """Remove a table in one step."""
    old = files.temporary(store.path / table.replace("/", "="), "old")
    with files.writing(store.path / table):
        (store.path / table).rename(old)
        files.remove(old)
    root.enlist(store, table, None)
    store.close()
