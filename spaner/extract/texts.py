"""Class names in templates as a table: rows are classes, views are templates.

Each distinct string of a chunk is encoded once, in batches of similar length, so that a causal tower's
batches can be cut short. Columns that a sealed table of the same cache already holds (``vanilla`` is one of
``mined``) are copied.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float

from spaner.cache.cache import Cache, Writer
from spaner.cache.manifest import Manifest
from spaner.errors import DatasetError
from spaner.extract.encoders.encoder import Encoder
from spaner.extract.pipeline import NOT_FINITE, check_range
from spaner.extract.templates import fill as put

CHUNK_VALUES = 1 << 24  # 64 MiB of float32: a chunk of 180 templates would otherwise be 400 MB


def chunk_rows(asked: int, views: int, dim: int) -> int:
    """Rows per chunk: what was asked for, less where many templates make the rows long."""
    return max(1, min(asked, CHUNK_VALUES // (views * dim)))


def ids(class_names: list[str]) -> list[str]:
    """Row ids: label and class name, e.g. "0007:rooster"; names may repeat, ids do not."""
    return [f"{label:04d}:{name}" for label, name in enumerate(class_names)]


def fill(
    writer: Writer,
    class_names: list[str],
    encoder: Encoder,
    batch_size: int,
    known: dict[int, np.ndarray],
    tick: Callable[[int], None],
) -> None:
    """Encode and write every pending chunk.

    Args:
        known: view -> its column (C, D), encoded before.
        tick: told the rows of each finished chunk.
    """
    manifest = writer.manifest
    fresh = [view for view in range(len(manifest.views)) if view not in known]
    for chunk in list(writer.pending):
        span = writer.rows(chunk)
        names = class_names[span]
        rows = np.zeros((len(names), len(manifest.views), manifest.dim), np.float32)
        for view, column in known.items():
            rows[:, view] = column[span]
        if fresh:
            strings = [put(manifest.views[view], name) for name in names for view in fresh]
            rows[:, fresh] = encode(encoder, strings, batch_size).reshape(len(names), len(fresh), -1)
        finite = np.isfinite(rows).all(axis=(1, 2))
        rows[~finite] = 0
        check_range(rows, manifest.dtype, manifest.table)
        writer.write(chunk, rows, reasons={int(row): NOT_FINITE for row in np.flatnonzero(~finite)})
        tick(len(names))


def encode(encoder: Encoder, strings: list[str], batch_size: int) -> Float[np.ndarray, "n D"]:
    """Rows of the strings in their order; each distinct one is encoded once, short ones with short ones."""
    distinct = sorted(set(strings), key=lambda text: (len(text), text))
    rows = []
    for start in range(0, len(distinct), batch_size):
        tokens = [encoder.prepare(text, 0, text, 0) for text in distinct[start : start + batch_size]]
        rows.append(encoder.encode(torch.stack(tokens)).numpy())
    place = {text: row for row, text in enumerate(distinct)}
    return np.concatenate(rows)[[place[text] for text in strings]]


def check_cut(encoder: Encoder, class_names: list[str], views: Sequence[str], table: str) -> list[str]:
    """What to say about strings that have more tokens than the encoder reads; nothing where all fit.

    Raises:
        DatasetError: two classes differ only in what is cut off, so that their rows would be equal.
    """
    cuts = getattr(encoder, "cuts", None)
    if cuts is None:
        return []
    count, first = 0, ""
    for template in views:
        seen: dict[bytes, str] = {}
        for text in dict.fromkeys(put(template, name) for name in class_names):
            if not cuts(text):
                continue
            count, first = count + 1, first or text
            twin = seen.setdefault(encoder.prepare(text, 0, text, 0).numpy().tobytes(), text)
            if twin != text:
                raise DatasetError(
                    f"{table}: {_short(twin)} and {_short(text)} are longer than the encoder reads and equal "
                    "in what it reads of them, so that two classes would get equal rows; expected names that "
                    "differ within its tokens; shorten them"
                )
    if not count:
        return []
    return [f"{table}: {count:,} strings longer than the encoder reads are cut, first {_short(first)}"]


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:60]} … {text[-15:]}")


def known_columns(cache: Cache, manifest: Manifest) -> dict[int, np.ndarray]:
    """View -> column (C, D) that a sealed text table of the same encoder and type holds complete."""
    found: dict[int, np.ndarray] = {}
    for name in cache.tables():
        if not name.startswith("text/") or name == manifest.table:
            continue
        table = cache.table(name)
        if table.manifest.encoder != manifest.encoder or table.manifest.dtype != manifest.dtype:
            continue
        column = {template: view for view, template in enumerate(table.views)}
        shared = [view for view, template in enumerate(manifest.views) if template in column]
        if table.ok.all() and set(shared) - set(found):
            rows = table.read()
            found |= {view: rows[:, column[manifest.views[view]]] for view in shared}
    return found
