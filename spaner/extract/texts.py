"""Class names in templates as a split of strings: rows are classes, views are templates.

Each distinct string of a chunk is encoded once, in batches of similar length, so that a causal tower's
batches can be cut short. Columns that a sealed table of the same cache already holds (`vanilla` is one of
`mined`) are copied.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float

from spaner.cache.cache import Cache
from spaner.cache.manifest import Manifest
from spaner.cache.table import Table
from spaner.errors import Corrupt, DatasetError
from spaner.extract.datasets.dataset import Split
from spaner.extract.encoders.encoder import Encoder
from spaner.extract.pipeline import Feed
from spaner.extract.templates import fill as put

CHUNK_VALUES = 1 << 24  # 64 MiB of float32: a chunk of 180 templates would otherwise be 400 MB


def chunk_rows(asked: int, views: int, dim: int) -> int:
    """Rows per chunk: what was asked for, less where many templates make the rows long."""
    return max(1, min(asked, CHUNK_VALUES // (views * dim)))


def ids(class_names: list[str]) -> list[str]:
    """Row ids: label and class name, e.g. "0007:rooster"; names may repeat, ids do not."""
    return [f"{label:04d}:{name}" for label, name in enumerate(class_names)]


def split(class_names: list[str], templates: Sequence[str]) -> Split:
    """The classes as rows; a payload is the class's strings, one per template."""
    keys = ids(class_names)
    name = dict(zip(keys, class_names, strict=True))
    labels = np.arange(len(keys), dtype=np.int32)
    return Split(keys, labels, lambda key: [put(template, name[key]) for template in templates])


def feed(classes: Split, encoder: Encoder, batch_size: int, chunk: int, known: dict[int, np.ndarray]) -> Feed:
    """Strings, a chunk at a time.

    Args:
        batch_size: strings per encoder call.
        chunk: rows per chunk.
        known: view -> its column (C, D), encoded before.
    """

    def probe(row: int) -> torch.Tensor:
        return _tokens(encoder, classes.open(classes.ids[row]))

    def load(row: int) -> list[str | np.ndarray]:
        strings = classes.open(classes.ids[row])
        return [known[view][row] if view in known else text for view, text in enumerate(strings)]

    def rows(cells: list[str | np.ndarray]) -> np.ndarray:
        strings = [cell for cell in cells if isinstance(cell, str)]
        fresh = iter(encode(encoder, strings, batch_size) if strings else ())
        return np.stack([next(fresh) if isinstance(cell, str) else cell for cell in cells], dtype=np.float32)

    return Feed(probe, load, lambda items: list(chain.from_iterable(items)), rows, chunk, workers=1)


def encode(encoder: Encoder, strings: list[str], batch_size: int) -> Float[np.ndarray, "n D"]:
    """Rows of the strings in their order; each distinct one is encoded once, short ones with short ones."""
    distinct = sorted(set(strings), key=lambda text: (len(text), text))
    rows = []
    for start in range(0, len(distinct), batch_size):
        rows.append(encoder.encode(_tokens(encoder, distinct[start : start + batch_size])).numpy())
    place = {text: row for row, text in enumerate(distinct)}
    return np.concatenate(rows)[[place[text] for text in strings]]


def _tokens(encoder: Encoder, strings: Sequence[str]) -> torch.Tensor:
    return torch.stack([encoder.prepare(text, 0, text, 0) for text in strings])


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


def cut_captions(encoder: Encoder, said: Split, table: str) -> list[str]:
    """What to say about captions that have more tokens than the encoder reads; nothing where all fit."""
    cuts = getattr(encoder, "cuts", None)
    found = [] if cuts is None else [key for key in said.ids if cuts(said.open(key))]
    if not found:
        return []
    of = f"{len(found):,} of {len(said):,} captions longer than the encoder reads are cut"
    return [f"{table}: {of}, first {found[0]}: {_short(said.open(found[0]))}"]


def words_sha256(said: Split) -> str:
    """One hash over the sentences of a split in the order of its ids: whether a list that is read again still
    says what was embedded."""
    digest = hashlib.sha256()
    for key in said.ids:
        words = said.open(key).encode("utf-8")
        digest.update(len(words).to_bytes(8, "little") + words)
    return digest.hexdigest()


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:60]} … {text[-15:]}")


def known_columns(cache: Cache, manifest: Manifest) -> dict[int, np.ndarray]:
    """View -> column (C, D) that a sealed text table of the same encoder and type holds complete.

    A damaged table gives none: it is mended when its turn comes.
    """
    found: dict[int, np.ndarray] = {}
    for name in cache.tables():
        if name.startswith("text/") and name != manifest.table:
            with suppress(Corrupt):
                found |= _columns(cache.table(name), manifest, found)
    return found


def _columns(table: Table, manifest: Manifest, found: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    there = table.manifest
    same_rows = there.rows_sha256 == manifest.rows_sha256
    if there.encoder != manifest.encoder or there.dtype != manifest.dtype or not same_rows:
        return {}
    column = {template: view for view, template in enumerate(table.views)}
    shared = [view for view, template in enumerate(manifest.views) if template in column]
    if not (set(shared) - set(found) and table.ok.all()):
        return {}
    rows = table.read()
    return {view: rows[:, column[manifest.views[view]]] for view in shared}
