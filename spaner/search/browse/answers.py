"""What the page asks and how it is answered: plain values in, plain values out, no HTTP.

One lock around the encoders, which are not made for two threads; reading the index needs none.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from threading import Lock
from typing import Any

import numpy as np

from spaner.errors import RunError
from spaner.search.browse.media import Gallery, Unseen
from spaner.search.indexed import Filter, Index
from spaner.search.query import Asker, Question, comparable, row_question, search, search_frozen
from spaner.search.sources import modality_of

MOST = 500
"""Rows in one answer."""

Query = Mapping[str, list[str]]


class Answers:
    """One index and the run it was made with."""

    def __init__(self, index: Index, asker: Asker, name: str) -> None:
        self.index, self.asker, self.name = index, asker, name
        self._lock = Lock()
        gallery = Gallery(index)
        self.known: dict[str, Callable[[Query], Any]] = {
            "about": self.about,
            "rows": self.rows,
            "search": self.words,
            "like": self.like,
            "bars": lambda query: gallery.bars(_number(query, "row", 0)),
        }
        self.shown: dict[str, Callable[[int], tuple[str, bytes]]] = {
            "thumbnail": gallery.thumbnail,
            "picture": gallery.picture,
            "sound": gallery.sound,
        }

    def about(self, _: Query) -> dict[str, Any]:
        """What is indexed, for the header and the filters."""
        count = Counter(self.index.labels.tolist())
        classes = [{"name": name, "rows": count[i]} for i, name in enumerate(self.index.class_names)]
        modalities: Counter[str] = Counter()
        for part in self.index.parts:
            modalities[part.modality] += part.stop - part.start
        frozen = [m for m in modalities if self.index.frozen(m) is not None]
        return {
            "name": self.name,
            "rows": len(self.index),
            "classes": sorted(classes, key=lambda each: each["name"]),
            "modalities": dict(modalities),
            "asks": list(self.asker.run.encoders),
            "frozen": frozen,
            "sounding": [m for m in modalities if m not in ("image", "text") and self._sounds(m)],
            "run": self.asker.run.config.title,
            "encoders": {m: spec.name for m, spec in self.asker.run.encoders.items()},
        }

    def _sounds(self, modality: str) -> bool:
        """Whether the modality's samples are sounds: told by the first row."""
        row = next(part.start for part in self.index.parts if part.modality == modality)
        try:
            self.known["bars"]({"row": [str(row)]})
        except Unseen:
            return modality == "audio"
        return True

    def rows(self, query: Query) -> dict[str, Any]:
        """Rows as they lie in the index, a page of them."""
        which, start = _filter(query), _number(query, "start", 0)
        spans, kept = self.index.spans(which), self.index.kept(which)
        numbers = np.concatenate([np.arange(a, b) for a, b in spans] or [np.empty(0, int)])
        if kept is not None:
            numbers = numbers[kept[numbers]]
        page = numbers[start : start + _count(query)]
        return {"total": len(numbers), "hits": [self._row(int(row)) for row in page]}

    def words(self, query: Query) -> dict[str, Any]:
        """What is nearest to a text."""
        text = (query.get("q") or [""])[0]
        with self._lock:
            return self._found(self.asker.words(text), query)

    def like(self, query: Query) -> dict[str, Any]:
        """What is nearest to a row of the index."""
        row = _number(query, "row", -1)
        if not 0 <= row < len(self.index):
            raise RunError(f"row {row}: expected 0 to {len(self.index) - 1}; choose another")
        with self._lock:
            return self._found(row_question(self.index, row), query) | {"asked": self._row(row)}

    def dropped(self, file: Path, query: Query) -> dict[str, Any]:
        """What is nearest to a file; its name says only whether it is a sound."""
        modality = modality_of(PurePath((query.get("name") or [""])[0])) or "image"
        with self._lock:
            return self._found(self.asker.file(file, modality), query)

    def _found(self, asked: Question, query: Query) -> dict[str, Any]:
        """Hits in the space or spaces asked for, and the nearest classes."""
        which, k = _filter(query), _count(query)
        spaces = {"both": ("trained", "frozen"), "frozen": ("frozen",)}.get(
            (query.get("space") or [""])[0], ("trained",)
        )
        found: dict[str, Any] = {"modality": asked.modality, "hits": {}, "notes": {}}
        if "trained" in spaces:
            found["hits"]["trained"] = [_shown(hit) for hit in search(self.index, asked, k, which)]
        if "frozen" in spaces:
            try:
                hits = search_frozen(self.index, self.asker.run, asked, k, which)
            except RunError as error:
                hits, found["notes"]["frozen"] = [], str(error)
            found["hits"]["frozen"] = [_shown(hit) for hit in hits]
        near = self.asker.nearest_classes(asked)
        found["classes"] = [{"name": name, "score": score} for name, score in near]
        run, known = self.asker.run, {part.modality for part in self.index.parts}
        found["comparable"] = [m for m in known if comparable(run, asked.modality, m)]
        return found

    def _row(self, row: int) -> dict[str, Any]:
        part = self.index.part(row)
        return {
            "row": row,
            "score": None,
            "class": self.index.label(row),
            "modality": part.modality,
            "split": part.split,
            "id": self.index.id(row).encode("utf-8", "replace").decode(),
        }


def _shown(hit: Any) -> dict[str, Any]:
    """A hit as the page takes it: its id, and no path of this machine."""
    modality, _, split = hit.table.partition("/")
    name = hit.id.encode("utf-8", "replace").decode()
    return {"row": hit.row, "score": hit.score, "class": hit.class_name, "modality": modality} | {
        "split": split,
        "id": name,
    }


def _filter(query: Query) -> Filter:
    return Filter(query.get("modality", []), query.get("split", []), query.get("class", []))


def _count(query: Query) -> int:
    return max(1, min(MOST, _number(query, "k", 60)))


def _number(query: Query, name: str, default: int) -> int:
    text = (query.get(name) or [str(default)])[0]
    if not text.lstrip("-").isdecimal() or len(text) > 12:
        raise RunError(f"{name} is {text[:20]!r}; expected a whole number")
    return int(text)
