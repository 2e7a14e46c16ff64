"""The user's own vectors as a table in one call: how any encoder that is not ours comes in."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from spaner.cache.layout import ids_sha256
from spaner.cache.manifest import DTYPES, EncoderSpec, Manifest, default_chunk_rows
from spaner.cache.writer import Writer
from spaner.errors import CacheError, Corrupt


def brought(name: str, modality: str, features: Float[np.ndarray, "N V D"]) -> EncoderSpec:
    """The spec of vectors whose encoder is known by name only."""
    return EncoderSpec(
        name=name,
        weights="",
        weights_sha256="",
        modality=modality,
        dim=features.shape[-1],
        preprocessing={},
        precision=str(features.dtype),
    )


def as_array(what: str, values: Any) -> np.ndarray:
    """Values of any array library as NumPy: tensors leave graph and device, bfloat16 becomes float32.

    Raises:
        CacheError: masked values, which no array of a cache can say.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if "bfloat16" in str(values.dtype):
            values = values.float()
    if np.ma.isMaskedArray(values):
        if masked := int(np.ma.count_masked(values)):
            raise CacheError(f"{what} hold {masked} masked values, expected none; fill or drop these rows")
        return values.data
    return np.asarray(values)


def as_labels(table: str, labels: Any, class_names: Sequence[str]) -> Int[np.ndarray, " N"]:
    """One class index per row, from indices or from class names.

    Raises:
        CacheError: a fraction, NaN, a name that is no class or is two, or not one value per row.
    """
    values = as_array(f"labels of {table}", labels)
    if values.ndim != 1:
        raise CacheError(f"labels of {table} have shape {values.shape}, expected one per row: (rows,)")
    if len(values) and all(isinstance(value, str | bytes) for value in values.tolist()):
        return _by_name(table, values.tolist(), class_names)
    try:
        numbers = values if values.dtype.kind in "iu" else values.astype(np.float64)
    except (TypeError, ValueError):
        numbers = np.full(len(values), np.nan)
    whole = np.isfinite(numbers) & (numbers == np.floor(numbers)) & (np.abs(numbers) < 2**31)
    bad = np.flatnonzero(~whole)
    if len(bad):
        raise CacheError(
            f"label {values[bad[0]]!s} of row {bad[0]} in {table} is no class index ({len(bad)} such); "
            f"expected whole numbers from 0 to {len(class_names) - 1}, or names in class_names"
        )
    return numbers.astype(np.int64)


def _by_name(table: str, names: list[str | bytes], class_names: Sequence[str]) -> np.ndarray:
    index = {name: label for label, name in enumerate(class_names)}
    texts = [name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name for name in names]
    unknown = next((name for name in texts if name not in index), None)
    if unknown is not None:
        raise CacheError(
            f"label {unknown!r} in {table} is none of the {len(class_names)} class names; correct it, or "
            "give class_names all of them"
        )
    twice = (
        next((name for name in texts if list(class_names).count(name) > 1), None)
        if len(index) < len(class_names)
        else None
    )
    if twice is not None:
        raise CacheError(f"label {twice!r} in {table} names two classes; give class indices instead of names")
    return np.array([index[name] for name in texts], np.int64)


def as_ids(table: str, ids: Iterable[Any]) -> list[str]:
    """Ids as text; bytes are UTF-8.

    Raises:
        CacheError: None or a fractional number, which cannot name a sample.
    """
    if np.ma.isMaskedArray(ids):
        ids = as_array(f"ids of {table}", ids)
    found = []
    for row, name in enumerate(ids):
        if name is None or isinstance(name, float | np.floating):
            raise CacheError(
                f"id {name} of row {row} in {table} names no sample; give each a text of its own"
            )
        found.append(name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name))
    return found


def as_rows(table: str, features: np.ndarray, dtype: str | None) -> Float[np.ndarray, "N V D"]:
    """Features (N, D) or (N, V, D) in the dtype that will be stored.

    Raises:
        CacheError: another shape, or not numbers.
    """
    features = as_array(f"features of {table}", features)
    if features.ndim not in (2, 3) or 0 in features.shape or features.dtype.kind not in "fiu":
        raise CacheError(
            f"features of {table} have shape {features.shape} and type {features.dtype}, "
            "expected numbers of shape (rows, dim) or (rows, views, dim)"
        )
    stored = dtype or ("float16" if features.dtype == np.float16 else "float32")
    if stored not in DTYPES:
        raise CacheError(f"{table} has dtype {stored!r}; expected {' or '.join(DTYPES)}")
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(features, stored)
    return rows[:, None] if rows.ndim == 2 else rows


def refuse_nan(table: str, features: Float[np.ndarray, "N V D"], ids: Sequence[str]) -> None:
    """Raise Corrupt, naming the first sample, if a row holds NaN or infinity in the stored dtype."""
    bad = np.flatnonzero(~np.isfinite(features).all(axis=(1, 2)))
    if len(bad):
        raise Corrupt(
            f"{len(bad)} rows of {table} hold NaN or infinity in {features.dtype}, "
            f"first {ids[int(bad[0])]!r}; drop these rows, or use a wider dtype"
        )


def manifest_of(
    dataset: str,
    table: tuple[str, str],
    features: Float[np.ndarray, "N V D"],
    labels: Int[np.ndarray, " N"],
    ids: Sequence[str],
    encoder: EncoderSpec,
    views: Sequence[str] | None,
    chunk_rows: int | None,
) -> Manifest:
    """The identity of brought vectors includes their hash: other numbers are another table."""
    rows, count, dim = features.shape
    names = tuple(views) if views is not None else tuple(f"view {view}" for view in range(count))
    if len(names) != count:
        raise CacheError(
            f"{'/'.join(table)} has {count} views but {len(names)} view names; give one per view"
        )
    state = hashlib.sha256(features.tobytes())
    state.update(np.asarray(labels, "<i4").tobytes())
    return Manifest(
        dataset=dataset,
        modality=table[0],
        split=table[1],
        rows=rows,
        views=names,
        dim=dim,
        dtype=str(features.dtype),
        chunk_rows=default_chunk_rows(count, dim, str(features.dtype)) if chunk_rows is None else chunk_rows,
        encoder=replace(encoder, modality=table[0]),
        seed=0,
        rows_sha256=ids_sha256(ids),
        options={"arrays_sha256": state.hexdigest()},
    )


def fill(writer: Writer, features: Float[np.ndarray, "N V D"]) -> None:
    """Write every pending chunk and seal."""
    for chunk in list(writer.pending):
        writer.write(chunk, features[writer.rows(chunk)])
    writer.seal()
