"""The root of a cache: which dataset, classes and tables it has; made anew from the tables when it is lost.

Every table is listed with the SHA-256 of its manifest, so that one that vanishes is missed, and one whose own
metadata are lost is known again. The group of each modality keeps a copy without the list. The first schema
had neither list nor copies: there the dataset's name comes from the tables and the classes from the caller.
"""

from contextlib import suppress
from typing import Any

from spaner.cache import files
from spaner.cache.layout import Store
from spaner.cache.manifest import FIRST, SCHEMA, SCHEMAS, Manifest, digest
from spaner.cache.zarr_store import ZarrStore
from spaner.errors import CacheError, Corrupt, Mismatch

Attributes = dict[str, Any]


def attributes(
    schema: str, dataset: str, class_names: list[str], tables: dict[str, str] | None = None
) -> Attributes:
    """Attributes of a cache (or, without `tables`, of a modality), with their own digest.

    Args:
        tables: name -> SHA-256 of its manifest.
    """
    found: Attributes = {"schema": schema, "dataset": dataset, "class_names": list(class_names)}
    if tables is not None and schema != FIRST:
        found["tables"] = dict(tables)
    return found | {"digest": digest(found)}


def copy_of(root: Attributes) -> Attributes:
    """What the group of a modality holds."""
    if root["schema"] == FIRST:
        return {}
    return attributes(root["schema"], root["dataset"], root["class_names"])


def is_sound(found: Attributes) -> bool:
    """Whether these are the attributes of a cache as they were written."""
    return _is(found, found.get("tables", {}))


def _is(found: Attributes, tables: dict[str, str] | None) -> bool:
    try:
        return found == attributes(found["schema"], found["dataset"], found["class_names"], tables)
    except (KeyError, TypeError, ValueError):
        return False


def recalled(store: ZarrStore) -> Attributes | None:
    """Schema, dataset and class names, from the root or from what is left of it; None where nothing is."""
    with suppress(Corrupt):
        if is_sound(root := store.attributes()):
            return root
    return next((found for found in _remains(store) if "class_names" in found), None)


def listed(store: Store) -> dict[str, str]:
    """Name -> SHA-256 of the manifest, of the tables that should be here; empty in the first schema."""
    return dict(store.attributes().get("tables", {}))


def identities(tables: dict[str, Store]) -> dict[str, str]:
    """Name -> SHA-256 of the manifest, of tables that can be read."""
    return {name: found.sha256 for name, store in tables.items() if (found := _manifest(store, name))}


def enlist(store: ZarrStore, table: str, sha256: str | None) -> None:
    """List a table, or strike it off (None). The caller holds the root lock."""
    root = store.attributes()
    tables = dict(root.get("tables", {}))
    if root["schema"] == FIRST or tables.get(table) == sha256:
        return
    tables |= {table: sha256 or ""}
    kept = {name: tables[name] for name in sorted(tables) if tables[name]}
    store.set_attributes("", attributes(root["schema"], root["dataset"], root["class_names"], kept))


def ensure(store: ZarrStore, dataset: str, class_names: list[str], schema: str = SCHEMA) -> list[str]:
    """Make the folder a cache if nothing is in it, and mend its root and the groups of its modalities.

    The caller holds the root lock.

    Returns:
        A line for each metadata file that was damaged and is made anew.

    Raises:
        Mismatch: what is left of a damaged root is another dataset's or has other classes.
        CacheError: the folder holds something else.
    """
    file, said = store.path / "zarr.json", []
    if not _is_readable(store):
        there = file.is_file() or bool(store.tables())
        _refuse_strange(store)
        store.set_attributes("", _remade(store, dataset, class_names, schema))
        if there:
            said.append(f"{file} was damaged and is made anew from {len(store.tables())} tables")
    root = store.attributes()
    if not is_sound(root):
        return said  # another program's, or a newer schema: whoever opens it says so
    files.clear(store.path)
    for modality in sorted({name.split("/")[0] for name in store.tables()}):
        files.clear(store.path / modality)
        if not holds(store, modality, copy_of(root)):
            store.set_attributes(modality, copy_of(root))
            said.append(f"{store.path / modality / 'zarr.json'} was damaged and is made anew")
    return said


def _is_readable(store: ZarrStore) -> bool:
    """Whether the root says what it is: sound, or not ours and to be left alone."""
    try:
        found = store.attributes()
    except Corrupt:
        return False
    schema = found.get("schema")
    ours = schema in SCHEMAS or not isinstance(schema, str) or bool(_remains(store))
    return is_sound(found) or not ours


def _refuse_strange(store: ZarrStore) -> None:
    if not store.path.is_dir() or _remains(store):
        return
    strange = [file.name for file in store.path.iterdir() if file.name[0] != "." and file.name != "zarr.json"]
    if strange:
        raise CacheError(
            f"{store.path} holds {strange[0]} but is no cache; give an empty or new folder to --cache"
        )


def _remains(store: ZarrStore) -> list[Attributes]:
    """Schema and dataset, and from the groups of modalities class names too, as far as they can be read."""
    found = []
    for name in store.tables():
        if (manifest := _manifest(store, name)) and manifest.schema in SCHEMAS:
            found.append({"schema": manifest.schema, "dataset": manifest.dataset})
    for modality in sorted(path.parent.name for path in store.path.glob("[!.]*/zarr.json")):
        try:
            copy = store.attributes(modality)
        except Corrupt:
            continue
        if copy.get("schema") in SCHEMAS and _is(copy, None):
            found.append(copy)
    return found


def _remade(store: ZarrStore, dataset: str, class_names: list[str], schema: str) -> Attributes:
    for remains in _remains(store):
        schema = remains["schema"]
        if remains["dataset"] != dataset:
            raise Mismatch(
                f"{store.path} is a cache of dataset {remains['dataset']!r}, asked for {dataset!r}; "
                "choose another --cache"
            )
        if remains.get("class_names", class_names) != class_names:
            raise Mismatch(f"{store.path} is a cache of other classes; choose another --cache")
    return attributes(schema, dataset, class_names, identities(dict.fromkeys(store.tables(), store)))


def _manifest(store: Store, table: str) -> Manifest | None:
    try:
        return Manifest.from_json(store.attributes(table).get("manifest"))
    except CacheError:
        return None


def holds(store: ZarrStore, group: str, expected: Attributes) -> bool:
    """Whether these are the attributes of a group."""
    try:
        return store.attributes(group) == expected
    except Corrupt:
        return False


def refuse_other(store: Store, dataset: str, names: list[str]) -> None:
    """Raise Mismatch, naming what differs, unless the store is of this dataset and these classes."""
    there = store.attributes()
    found = f"dataset {there['dataset']!r}", repr(dataset)
    if there["dataset"] == dataset:
        if there["class_names"] == names:
            return
        found = f"{len(there['class_names'])} classes", str(len(names))
        if len(there["class_names"]) == len(names):
            pairs = enumerate(zip(there["class_names"], names, strict=True))
            row, (old, new) = next((row, pair) for row, pair in pairs if pair[0] != pair[1])
            found = f"classes of which number {row} is {old!r}", repr(new)
    raise Mismatch(f"{store.path} is a cache of {found[0]}, asked for {found[1]}; choose another --cache")
