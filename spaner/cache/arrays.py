"""The user's own vectors as a table in one call: how any encoder that is not ours comes in."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

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


def as_rows(table: str, features: np.ndarray, dtype: str | None) -> Float[np.ndarray, "N V D"]:
    """Features (N, D) or (N, V, D) in the dtype that will be stored.

    Raises:
        CacheError: another shape, or not numbers.
    """
    features = np.asarray(features)
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
