"""What of a table can be written anew without encoding a row: its layout's metadata, and the listing that
whoever continues it brings along. Every file that is replaced is named in a line of its own.

A listing is replaced only by the one that was sealed (or, before the seal, by one with the same ids: rows
depend on nothing else), so that mending never turns one table into another.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from spaner.cache import files, integrity, root
from spaner.cache.address import place
from spaner.cache.layout import ArraySpec, Store, drawn_sha256, stored_layout, table_layout, unpack
from spaner.cache.manifest import Manifest
from spaner.cache.verification import is_unsealed
from spaner.cache.zarr_json import array_json, group_json
from spaner.cache.zarr_store import ZarrStore
from spaner.errors import CacheError, Corrupt, Mismatch

Listing = Mapping[str, np.ndarray]
Found = tuple[list[str], np.ndarray, dict[str, np.ndarray]]


def layout_of(manifest: Manifest, listing: Listing) -> dict[str, ArraySpec]:
    """Every array of the table with this listing."""
    draws = {name: len(listing[f"draws/{name}"]) for name in manifest.draws}
    return table_layout(manifest, listing["ids"].shape[1], draws)


def adopt(store: ZarrStore, manifest: Manifest) -> str | None:
    """Give a table whose own metadata are lost those that are asked for, if it is known to be that table.

    Its chunks are checked against their checksums when work resumes, and it is sealed again.

    Returns:
        What to say; None if the metadata are sound, or if they are lost and the rows with them.

    Raises:
        Mismatch: another table is known to have been here.
    """
    table, file = manifest.table, store.path / manifest.table / "zarr.json"
    if _has_sound_metadata(store, table) or not file.parent.is_dir():
        return None
    known = root.listed(store).get(table) or root.identities({table: store}).get(table)
    if known is None:
        return None
    if known != manifest.sha256:
        raise Mismatch(
            f"{file} is damaged, and was made with other settings than those asked for; "
            "choose another --cache, or replace it with --overwrite"
        )
    store.set_attributes(table, {"manifest": manifest.to_json()})
    return f"{file} was damaged and is made anew"


def _has_sound_metadata(store: Store, table: str) -> bool:
    try:
        attributes = store.attributes(table)
        Manifest.from_json(attributes.get("manifest"))
        if not is_unsealed(attributes):
            integrity.check_seal(table, attributes)
    except CacheError:
        return False
    return True


def is_lost(store: Store, table: str) -> bool:
    """Whether a table's own metadata cannot be read, so that nobody knows what its rows are."""
    return not _has_sound_metadata(store, table)


def mend_metadata(store: ZarrStore, manifest: Manifest, layout: Mapping[str, ArraySpec] | None) -> list[str]:
    """Write the metadata of arrays and of the group of draws anew where they differ from the layout, and
    remove what a killed process left of such a file. The caller holds the root lock.

    Arrays that another program has stored in its own way (compressed, say) stay as they are.

    Args:
        layout: every array; None to find out the two sizes that only the stored arrays know.
    """
    said, table = [], manifest.table
    for group in (table, f"{table}/draws"):
        files.clear(store.path / group)
    for array, spec in (layout or _found_layout(store, manifest)).items():
        file = store.path / table / array / "zarr.json"
        files.clear(file.parent, chosen=file.name.__eq__)
        if _differs(file, array_json(spec)) and _is_plain(store, table, array, spec):
            store.create_array(table, array, spec, durable=True)
            said.append(f"{file} was damaged and is made anew")
    draws = store.path / table / "draws" / "zarr.json"
    if manifest.draws and _differs(draws, group_json({})):
        store.set_attributes(f"{table}/draws", {})
        said.append(f"{draws} was damaged and is made anew")
    store.close()
    return said


def _found_layout(store: ZarrStore, manifest: Manifest) -> dict[str, ArraySpec]:
    """The layout, with the width of an id and the lengths of draws from the sizes of the files."""
    try:
        return stored_layout(store, manifest.table, manifest)
    except CacheError:
        pass
    one = table_layout(manifest, 1, dict.fromkeys(manifest.draws, 1))
    width = _size(store, manifest.table, "ids", one) // one["ids"].chunk
    draws = {name: _size(store, manifest.table, f"draws/{name}", one) // 8 for name in manifest.draws}
    return table_layout(manifest, max(1, width), {name: max(1, rows) for name, rows in draws.items()})


def _size(store: ZarrStore, table: str, array: str, layout: Mapping[str, ArraySpec]) -> int:
    file = place(store.chunk_file(table, array, layout[array], 0))
    return file.stat().st_size if file.is_file() else 0


def _differs(file: Path, expected: bytes) -> bool:
    return not file.is_file() or file.read_bytes() != expected


def _is_plain(store: ZarrStore, table: str, array: str, spec: ArraySpec) -> bool:
    file = place(store.chunk_file(table, array, spec, 0))
    if (file.parent / "c").exists():  # another program's chunks
        return False
    return not file.exists() or file.stat().st_size == spec.chunk_bytes


def mend_listing(
    store: ZarrStore, manifest: Manifest, layout: Mapping[str, ArraySpec], listing: Listing
) -> list[str]:
    """Write the chunks of labels, ids and draws anew that differ from the listing, which is the right one.
    The caller holds the root lock."""
    said, written = [], []
    for array, rows in listing.items():
        spec, before = layout[array], len(written)
        files.clear(store.path / manifest.table / array)
        if store.spec(manifest.table, array) is None:
            continue  # stored by another program: what it holds was compared already
        for index in range(spec.chunks):
            block = np.zeros(spec.chunk_shape, spec.stored)
            part = rows[index * spec.chunk : (index + 1) * spec.chunk]
            block[: len(part)] = part
            if _differs(place(store.chunk_file(manifest.table, array, spec, index)), block.tobytes()):
                written.append(store.write_chunk(manifest.table, array, index, block))
        if len(written) > before:
            said.append(f"{array} of {manifest.table} in {store.path} was damaged and is written anew")
    files.settle(written)
    return said


def check_listing(store: Store, manifest: Manifest, listing: Listing) -> bool:
    """Whether the stored listing is this one; False where it is damaged.

    Raises:
        Mismatch: another listing was sealed.
    """
    seal = store.attributes(manifest.table).get("seal")
    asked = integrity.chunk_checksum(listing["labels"], listing["ids"]).hex()
    if seal is not None and seal.get("listing") != asked:
        raise Mismatch(
            f"{manifest.table} of {store.path} was made with other settings: labels 'others' there, "
            "'these' asked; choose another --cache, or replace it with --overwrite"
        )
    try:
        return all(np.array_equal(store.read(manifest.table, array), rows) for array, rows in listing.items())
    except Corrupt:
        return False


def found_listing(store: Store, manifest: Manifest) -> Found | None:
    """Ids, labels and draws as they are stored; None where they are damaged, or nothing vouches for them."""
    table = manifest.table
    seal = store.attributes(table).get("seal")
    try:
        ids = unpack(store.read(table, "ids")).tolist()
        labels = np.array(store.read(table, "labels"), np.int64)
        draws = {name: np.array(store.read(table, f"draws/{name}"), np.int64) for name in manifest.draws}
        listing = integrity.array_sha256(store, table, ["labels", "ids"], manifest.rows)
        sound = seal is not None and seal["listing"] == listing and len(ids) == len(labels)
        sound = sound and all(drawn_sha256(ids, rows) == manifest.draws[name] for name, rows in draws.items())
    except (CacheError, UnicodeDecodeError, IndexError):
        return None
    return (ids, labels, draws) if sound else None
