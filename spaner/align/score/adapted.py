"""The rows that a run scores: those of the cache, or those of a tower that the run changed inside.

Rows of a changed tower lie in a cache of their own beside the scored one (`digits.adapted` beside `digits`),
a table for each state of the tower. They are made once, by whoever has the tower (`extract.pictures`), and
found again afterwards: a report of a saved run needs no tower then.
"""

import hashlib
from pathlib import Path
from typing import Any

from spaner import cache as caches
from spaner.align.methods.method import Adapted
from spaner.align.score.classes import SomeClasses
from spaner.errors import CacheError, RunError

KEY = 12
"""Digits of the hash that names a state of the tower."""


def place_of(cache: Path) -> Path:
    """Where rows of changed towers lie."""
    return cache.with_name(f"{cache.name}.adapted")


def modality_of(run: Any, name: str) -> str:
    """Of the table that holds the run's rows of a table: it tells one state of the tower from another."""
    total = hashlib.sha256(run.config.method.encode())
    for tensor_name, tensor in sorted(run.model.state().items()):
        total.update(f"{tensor_name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return f"{name.partition('/')[0]}-{run.config.method}-{total.hexdigest()[:KEY]}"


def scored_table(run: Any, cache: Any, name: str) -> Any:
    """The table whose rows the run scores, labels and ids those of `name`.

    Raises:
        RunError: rows of a changed tower are not there, and nobody put the tower beside the run.
    """
    model = getattr(run, "model", None)
    if not isinstance(model, Adapted):
        return cache.table(name)
    if isinstance(cache, SomeClasses):  # a tower's rows do not depend on the classes in sight
        return cache.seen(scored_table(run, cache.whole, name))
    if (there := found(run, cache, name)) is not None:
        return there
    if model.pictures is None:
        raise RunError(
            f"{run.config.method} changed the image tower, "
            f"and its rows of {name} are not in {place_of(cache.path)}; "
            f"type `spaner eval --run RUN --cache {cache.path}`, which makes them, or set run.model.pictures"
        )
    place = place_of(cache.path)
    return model.pictures.adapted(cache, name, place, modality_of(run, name), model.block, model.image_rows)


def found(run: Any, cache: caches.Cache, name: str) -> caches.Table | None:
    """Rows that an earlier call made, if it finished and the table is still the same."""
    place, table = place_of(cache.path), f"{modality_of(run, name)}/{name.partition('/')[2]}"
    if not place.exists():
        return None
    try:
        rows = caches.open(place).table(table)
    except CacheError:
        return None
    of = rows.manifest.encoder.preprocessing.get("rows of")
    return rows if of == cache.table(name).manifest.sha256 else None
