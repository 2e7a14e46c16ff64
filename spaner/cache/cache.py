"""A cache as a user holds it: open one, look at its tables, begin or continue a table.

An HDF5 cache that is being written has a Zarr cache beside it, `<name>.parts`: tables are filled there and
published into the file when the cache is closed. A table in the parts stands before one of the same name in
the file, so that a repair or a replacement that was cut short is seen as unfinished and never as finished.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Float, Int

from spaner.cache import arrays, hdf5_store, install, mending, root, verification
from spaner.cache.address import place
from spaner.cache.claim import Claim
from spaner.cache.layout import Store
from spaner.cache.lock import Lock
from spaner.cache.manifest import SCHEMA, SCHEMAS, EncoderSpec, Manifest
from spaner.cache.opening import parts_of, stores_at
from spaner.cache.publish import alone, publish, root_lock, table_lock
from spaner.cache.root import Attributes
from spaner.cache.table import Table
from spaner.cache.verification import Problem
from spaner.cache.writer import Writer
from spaner.cache.zarr_store import ZarrStore
from spaner.errors import CacheError, Corrupt, Unsealed


def open(path: str | Path) -> "Cache":
    """Open a cache for reading; costs milliseconds whatever its size.

    Raises:
        CacheError: nothing there, no cache, another schema, or no table yet.
        Unsealed: it holds only tables whose extraction has not finished.
        Corrupt: its metadata are damaged or the file is truncated.
    """
    path = place(path)
    stores = stores_at(path)
    cache = Cache(path, stores, stores[0].attributes())
    if not cache.tables():
        with cache:
            if unfinished := cache.unsealed():
                raise Unsealed(cache.progress(unfinished[0]))
        raise CacheError(f"{path} holds no table yet; fill it with `spaner extract --cache {path}`")
    return cache


def create(path: str | Path, dataset: str, class_names: Sequence[str], *, schema: str = SCHEMA) -> "Cache":
    """Open a cache for writing, making it if it is not there. A name ending in .h5 or .hdf5 asks for HDF5.

    A cache of an earlier schema is continued in that schema, whatever `schema` a new one is to have. Damaged
    metadata of the cache itself are made anew; its `notes` say so.

    Raises:
        Mismatch: a cache of another dataset or other classes is there.
        CacheError: something else is there, or the place cannot be written.
    """
    path, names = place(path), list(class_names)
    hdf5 = hdf5_store.is_hdf5(path)
    if path.exists() and path.is_dir() == hdf5:
        raise CacheError(
            f"{path} is a {'folder' if hdf5 else 'file'}, which its name does not say; "
            "give --cache a name ending in .h5 for HDF5, and no such ending for a folder"
        )
    staging = ZarrStore(parts_of(path) if hdf5 else path)
    with root_lock(path):
        started = not hdf5 or staging.path.is_dir()
        notes = root.ensure(staging, dataset, names, schema) if started else []
        stores = stores_at(path) if started or path.exists() else []
    for store in stores:
        root.refuse_other(store, dataset, names)
    others: list[Store] = [store for store in stores if store.path != staging.path]
    attributes = stores[0].attributes() if stores else root.attributes(schema, dataset, names)
    cache = Cache(path, [staging, *others], attributes, staging)
    cache.notes += notes
    return cache


class Cache:
    """Tables of embeddings of one dataset. Made by `open` and `create`; use it as a context manager.

    Attributes:
        path: where it lies.
        dataset: name of the dataset.
        class_names: one per label.
        notes: what was damaged and has been made anew, a line each.
    """

    def __init__(
        self, path: Path, stores: list[Store], attributes: Attributes, staging: ZarrStore | None = None
    ) -> None:
        self.path = path
        self.dataset: str = attributes["dataset"]
        self.class_names: list[str] = attributes["class_names"]
        self.notes: list[str] = []
        self._attributes = attributes
        self._again = False  # an HDF5 file whose own bytes are damaged is written again from its tables
        self._stores = stores
        self._staging = staging  # where new tables go; None when open for reading
        self._kept: dict[str, list[Lock | Claim]] = {}  # being written; in HDF5, until they are published

    # -- reading ---------------------------------------------------------------------------------

    @property
    def schema(self) -> str:
        """Of the format, e.g. "spaner-cache/2"."""
        return self._attributes["schema"]

    def tables(self) -> list[str]:
        """Names "modality/split" of the sealed tables (and of damaged ones, which `table` refuses)."""
        return sorted(name for name, store in self._located().items() if not _is_unsealed(store, name))

    def unsealed(self) -> list[str]:
        """Names of the tables whose extraction has not finished."""
        return sorted(name for name, store in self._located().items() if _is_unsealed(store, name))

    def has(self, name: str) -> bool:
        """Whether a sealed table of this name is here."""
        store = self._located().get(name)
        return store is not None and not _is_unsealed(store, name)

    def table(self, name: str) -> Table:
        """A sealed table.

        Raises:
            Unsealed: its extraction has not finished.
            Corrupt: its metadata differ from its seal.
            CacheError: there is none of this name; the message says which there are.
        """
        store = self._located().get(name)
        if store is None:
            there = ", ".join(self.tables()) or "no table"
            modality = name.split("/")[0]
            raise CacheError(
                f"{self.path} has no table {name}, only {there}; "
                f"make it with `spaner extract --modality {modality} --cache {self.path}`"
            )
        if _is_unsealed(store, name):
            raise Unsealed(self.progress(name))
        return Table(store, name, f"{name} of {self.path}")

    def progress(self, name: str) -> str:
        """One line on how far an unsealed table is and how to continue it."""
        return verification.progress(self.store(name), name, self.path)

    def verify(self, tables: Iterable[str] | None = None) -> list[Problem]:
        """Everything that is damaged, missing, unfinished or strange; reads every byte once.

        Empty when the cache is sound: all of its tables are there, finished, and as they were sealed.

        Args:
            tables: look at these only.
        """
        if tables is not None:
            return [each for name in tables for each in verification.verify(self.store(name), [name])]
        stores = [store for store in self._stores if store.path.exists()]
        return [problem for store in stores for problem in verification.verify(store)]

    def manifest(self, name: str) -> Manifest:
        """What a table is, finished or not."""
        return Manifest.from_json(self.store(name).attributes(name).get("manifest"))

    def listing(self, name: str) -> mending.Found | None:
        """Ids, labels and draws of a table; None where they are damaged, or it is unfinished, so that nothing
        vouches for its labels."""
        return mending.found_listing(self.store(name), self.manifest(name))

    def mend(self) -> None:
        """Write anew what the cache alone can restore: metadata of its tables, an HDF5 file's own bytes.
        What was done is added to the notes."""
        staging = self._writable()
        with alone(self.path, staging):
            for name in staging.tables():
                if not mending.is_lost(staging, name):
                    manifest = self.manifest(name)
                    self.notes += mending.mend_metadata(staging, manifest, None)
                    root.enlist(staging, name, manifest.sha256)
        for store in self._stores:
            if store is not staging and store.damage():
                self._again = True
                self.notes.append(f"{store.path} is written again from its tables")

    # -- writing ---------------------------------------------------------------------------------

    def begin(
        self,
        manifest: Manifest,
        ids: Sequence[str],
        labels: Int[np.ndarray, " N"],
        draws: Mapping[str, Int[np.ndarray, " K"]] | None = None,
        *,
        overwrite: bool = False,
        worker: tuple[int, int] = (0, 1),
    ) -> Writer:
        """Start a table, or continue it where it stopped.

        Args:
            manifest: its identity; `ids_sha256(ids)` as rows_sha256, and the hash of every draw.
            ids: one per row, unique, stable, relative.
            labels: class of each row.
            draws: few-shot draws to store, by name; row numbers.
            overwrite: replace a table of this name, finished or not.
            worker: (r, W) to share the table with other processes: this one fills chunks r, r + W, …

        Raises:
            Mismatch: a table of this name was made with other settings; the message names them.
            Busy: another live process is writing it.
            CacheError: the listing contradicts itself, or the disk is full.
        """
        staging, draws = self._writable(), draws or {}
        if manifest.schema in SCHEMAS:
            manifest = replace(manifest, schema=self._attributes["schema"])
        ids = arrays.as_ids(manifest.table, ids)
        labels = arrays.as_labels(manifest.table, labels, self.class_names)
        install.check_manifest(manifest, self.dataset)
        install.check_listing(manifest, ids, labels, draws, len(self.class_names))
        if overwrite and worker[1] > 1:
            raise CacheError(
                f"--overwrite of {manifest.table} needs a single worker, found {worker[1]}; use one"
            )
        release = self._acquire(manifest.table, worker)
        try:
            listing = install.packed(ids, labels, draws)
            published = self._prepare(staging, manifest, listing, overwrite=overwrite)
            reopen = partial(self._reopen, staging, manifest) if published else None
            guard = partial(alone, self.path, staging)
            return Writer(staging, manifest, release, guard=guard, worker=worker, reopen=reopen)
        except BaseException:
            release()
            raise

    def join(self, name: str, *, worker: tuple[int, int] = (0, 1)) -> Writer:
        """Continue a table that another process has begun, without its listing: that lies in the table.

        Costs the same whatever the table's length, but for a resumed share, whose written chunks are hashed.

        Args:
            worker: (r, W): this one fills chunks r, r + W, …

        Raises:
            Busy: another live process writes this share, or the whole table.
            CacheError: there is no such table.
        """
        staging = self._writable()
        if name not in self._located():
            raise CacheError(f"{self.path} has no table {name} to join; begin it first")
        release = self._acquire(name, worker)
        try:
            store = self.store(name)
            manifest = Manifest.from_json(store.attributes(name).get("manifest"))
            again = partial(self._reopen, staging, manifest) if store is not staging else None
            guard = partial(alone, self.path, staging)
            return Writer(staging, manifest, release, guard=guard, worker=worker, reopen=again)
        except BaseException:
            release()
            raise

    def add(
        self,
        modality: str,
        split: str,
        features: Float[np.ndarray, "N D"] | Float[np.ndarray, "N V D"],
        labels: Int[np.ndarray, " N"] | Sequence[int | str],
        ids: Sequence[str] | None = None,
        *,
        encoder: EncoderSpec | str,
        views: Sequence[str] | None = None,
        dtype: str | None = None,
        chunk_rows: int | None = None,
        overwrite: bool = False,
    ) -> Table:
        """Store vectors that you have already, so that they can be trained on.

        Args:
            modality: "image", "text", "audio" or a name of yours.
            split: "train", "test", …; for text, the name of the template set.
            features: raw embeddings, not normalised.
            labels: class index of each row, or its class name.
            ids: one unique text per row; default: the row number.
            encoder: its name, or a full spec. Tables are compared by it.
            views: a name for each view; for text, the templates.
            dtype: "float16" or "float32"; default: float16 if the features are, else float32.
            chunk_rows: rows that are stored and checked together; default 4 MiB of them.

        Raises:
            Corrupt: a row holds NaN or infinity.
            Mismatch: other vectors are there under this name.
            CacheError: shapes, ids or labels do not fit.
        """
        table = f"{modality}/{split}"
        rows = arrays.as_rows(table, features, dtype)
        names = [f"{row:07d}" for row in range(len(rows))] if ids is None else arrays.as_ids(table, ids)
        labels = arrays.as_labels(table, labels, self.class_names)
        if not len(rows) == len(names) == len(labels):
            raise CacheError(
                f"{table} has {len(rows)} rows of features, {len(names)} ids and {len(labels)} labels; "
                "give one of each per row"
            )
        arrays.refuse_nan(table, rows, names)
        spec = arrays.brought(encoder, modality, rows) if isinstance(encoder, str) else encoder
        where = (modality, split)
        manifest = arrays.manifest_of(self.dataset, where, rows, labels, names, spec, views, chunk_rows)
        with self.begin(manifest, names, labels, overwrite=overwrite) as writer:
            arrays.fill(writer, rows)
        return self.table(table)

    def close(self) -> None:
        """Release the files. An HDF5 cache publishes its finished tables first."""
        try:
            if self._staging is not None and self._staging.path != self.path:
                with root_lock(self.path):
                    mine = self._kept.__contains__
                    publish(self.path, self._staging, self._attributes, mine, again=self._again)
        finally:
            for table in list(self._kept):
                self._let_go(table)
            for store in self._stores:
                store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- inside ----------------------------------------------------------------------------------

    def _located(self) -> dict[str, Store]:
        """Each table and the first store that holds it, by one look at each store."""
        return {name: store for store in reversed(self._stores) for name in store.tables()}

    def store(self, name: str) -> Store:
        return next(store for store in self._stores if name in store.tables())

    def _writable(self) -> ZarrStore:
        if self._staging is None:
            raise CacheError(f"{self.path} is open for reading; use spaner.cache.create to add tables")
        return self._staging

    def _acquire(self, table: str, worker: tuple[int, int]) -> Callable[[], None]:
        in_parts = self._writable().path != self.path
        if not (in_parts and table in self._kept):
            self._kept[table] = table_lock(self.path, table, worker=worker)
        return (lambda: None) if in_parts else partial(self._let_go, table)

    def _let_go(self, table: str) -> None:
        for lock in self._kept.pop(table, ()):
            lock.release()

    def _prepare(
        self, staging: ZarrStore, manifest: Manifest, listing: mending.Listing, *, overwrite: bool
    ) -> bool:
        """Make the table or agree with it; True if it is finished and lies in the HDF5 file."""
        table = manifest.table
        with alone(self.path, staging):
            self.notes += root.ensure(staging, self.dataset, self.class_names, self._attributes["schema"])
            if not overwrite and (note := mending.adopt(staging, manifest)):
                self.notes.append(note)
            store = self._located().get(table)
            lost = store is not None and mending.is_lost(store, table)
            if overwrite or lost or store is None:
                if not overwrite and (lost or table in root.listed(staging)):
                    self.notes.append(f"{table} of {self.path} was damaged; all its rows are encoded again")
                install.create(staging, manifest, listing)
                return False
            return self._agree(staging, manifest, listing)

    def _agree(self, staging: ZarrStore, manifest: Manifest, listing: mending.Listing) -> bool:
        table = manifest.table
        store = self.store(table)
        install.agree(store, manifest)
        sound = mending.check_listing(store, manifest, listing)
        if store is staging:
            layout = mending.layout_of(manifest, listing)
            self.notes += mending.mend_metadata(staging, manifest, layout)
            self.notes += mending.mend_listing(staging, manifest, layout, listing)
            root.enlist(staging, table, manifest.sha256)
        elif not sound:
            install.copy(store, staging, table, attributes=store.attributes(table), listing=listing)
            self.notes.append(f"the listing of {table} in {self.path} was damaged and is written anew")
        return self.store(table) is not staging

    def _reopen(self, staging: ZarrStore, manifest: Manifest, chunks: list[int]) -> None:
        table = manifest.table
        with alone(self.path, staging):
            root.ensure(staging, self.dataset, self.class_names, self._attributes["schema"])
            attributes = dict(self.store(table).attributes(table))
            attributes.pop("seal", None)
            install.copy(self.store(table), staging, table, attributes=attributes, skip=chunks)


def _is_unsealed(store: Store, table: str) -> bool:
    try:
        return verification.is_unsealed(store.attributes(table))
    except Corrupt:
        return False
