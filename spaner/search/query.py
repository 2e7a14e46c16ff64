"""A question to an index, and its answer: words, a picture, a sound or a row; the nearest rows with scores.

Encoders are loaded when first asked for and kept, so that a page can ask again and again. In the trained
space every modality finds every other, seen classes or not. In the frozen encoder's own space only those meet
that share it: a picture and a text of one CLIP, or two sounds.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jaxtyping import Float

from spaner.align.train.run import Run
from spaner.errors import DatasetError, RunError, SpanerError
from spaner.extract import pipeline, texts
from spaner.extract.datasets import images
from spaner.extract.datasets.audio import Recording
from spaner.extract.datasets.dataset import VANILLA, file_split
from spaner.extract.datasets.images import decode
from spaner.extract.templates import fill
from spaner.search import approximate
from spaner.search.encoding import Files, check_modality, own_encoder
from spaner.search.exact import nearest
from spaner.search.indexed import Filter, Index
from spaner.search.sources import gather, modality_of

CANDIDATES = 10
"""Times k: how many rows an approximate index proposes for exact scoring."""


@dataclass(frozen=True)
class Question:
    """What is asked, in both spaces.

    Attributes:
        z: unit vector (E,) of the trained space.
        x: unit vector (D,) as the frozen encoder gave it; None where it is not known.
    """

    modality: str
    z: Float[np.ndarray, " E"]
    x: Float[np.ndarray, " D"] | None


@dataclass(frozen=True)
class Hit:
    """A row that was found: cosine, class, table, id, its file if the index knows it, and whether that is
    gone."""

    row: int
    score: float
    class_name: str
    table: str
    id: str
    path: str | None
    missing: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Asker:
    """A run that turns words, files and rows into questions."""

    def __init__(self, run: Run, files: Files | None = None) -> None:
        self.run, self.files = run, files
        self._encoders: dict[str, Any] = {}

    def encoder(self, modality: str) -> Any:
        """The run's frozen encoder, loaded once."""
        check_modality(self.run, modality)
        if modality not in self._encoders:
            self._encoders[modality] = own_encoder(self.run, modality, self.files)
        return self._encoders[modality]

    def words(self, text: str) -> Question:
        """A question in words.

        Raises:
            DatasetError: empty, or too long. RunError: a run without text.
        """
        gather(texts=[text])
        return self._question("text", texts.encode(self.encoder("text"), [text], 1)[0])

    def file(self, path: Path, modality: str | None = None) -> Question:
        """A picture or a sound that asks; which of the two, its ending says.

        Raises:
            DatasetError: it cannot be read; the line says why.
        """
        modality = modality or modality_of(PurePath(path.name)) or "image"
        encoder = self.encoder(modality)
        split = file_split([path.name], [0], lambda _: path, Recording if modality == "audio" else decode)
        with images.quiet():
            views = pipeline.opened(split, encoder, 1, 0)(0)
        if isinstance(views, str):
            raise DatasetError(f"{path.name}: {views}; expected a picture or a sound; choose another")
        return self._question(modality, encoder.encode(views).numpy()[0])

    def _question(self, modality: str, x: Float[np.ndarray, " D"]) -> Question:
        z = self.run.embed(modality, x[None])[0]
        return Question(modality, z, x / max(float(np.linalg.norm(x)), np.finfo(np.float32).tiny))

    @cached_property
    def classes(self) -> Float[np.ndarray, "C E"]:
        """The run's class names in "a photo of a {}.", in its space.

        Raises:
            RunError, EncoderError: no text encoder.
        """
        strings = [fill(VANILLA, name) for name in self.run.class_names]
        return self.run.embed("text", texts.encode(self.encoder("text"), strings, 64))

    def nearest_classes(self, asked: Question, count: int = 5) -> list[tuple[str, float]]:
        """The classes whose text lies nearest, with cosines; none where the run's text encoder is absent."""
        try:
            cosines = self.classes @ asked.z
        except SpanerError:
            return []
        best = np.argsort(-cosines, kind="stable")[:count]
        return [(self.run.class_names[i], float(cosines[i])) for i in best]


def row_question(index: Index, row: int) -> Question:
    """A row of the index that asks for what is like it."""
    part = index.part(row)
    rows = index.frozen(part.modality)
    first = next(p.start for p in index.parts if p.modality == part.modality)
    x = None if rows is None else rows[row - first].astype(np.float32)
    z = index.vectors[row].astype(np.float32)
    return Question(part.modality, z / np.linalg.norm(z), x)


def search(
    index: Index,
    asked: Question,
    k: int = 10,
    which: Filter | None = None,
    *,
    exact: bool = False,
) -> list[Hit]:
    """The k nearest rows in the trained space, best first.

    Args:
        exact: read every row even where an approximate index was built. A filter always does.

    Raises:
        CacheError: a filter names what the index does not have.
    """
    which = which or Filter()
    if index.graph is not None and not exact and not which:
        found = np.sort(approximate.candidates(index.graph, asked.z, CANDIDATES * k))
        rows, scores = nearest(index.vectors[found], asked.z, k)
        rows = found[rows]
    else:
        rows, scores = nearest(index.vectors, asked.z, k, index.spans(which), index.kept(which))
    return _hits(index, rows, scores)


def search_frozen(
    index: Index, run: Run, asked: Question, k: int = 10, which: Filter | None = None
) -> list[Hit]:
    """The k nearest rows in the frozen encoder's own space, among the modalities that share it.

    Raises:
        RunError: nothing in the index shares a space with the question.
    """
    which = which or Filter()
    spans, kept = index.spans(which), index.kept(which)
    best: list[tuple[float, int]] = []
    shared = [m for m in dict.fromkeys(p.modality for p in index.parts) if comparable(run, asked.modality, m)]
    for modality in shared:
        rows = index.frozen(modality)
        if rows is None or asked.x is None:
            continue
        first = next(p.start for p in index.parts if p.modality == modality)
        mine = [(a - first, b - first) for a, b in spans if first <= a < first + len(rows)]
        keep = None if kept is None else kept[first : first + len(rows)]
        found, scores = nearest(rows, asked.x, k, mine, keep)
        best += [(-float(score), first + int(row)) for row, score in zip(found, scores, strict=True)]
    if not best and not which:
        raise RunError(
            f"the frozen encoder of {asked.modality} shares no space with what is indexed; "
            "expected its own modality, or picture and text of one encoder; search the trained space"
        )
    best = sorted(best)[:k]
    return _hits(index, [row for _, row in best], [-score for score, _ in best])


def comparable(run: Run, a: str, b: str) -> bool:
    """Whether two modalities share the frozen encoder's space: one encoder's towers, or the same modality."""
    if a == b:
        return True
    one, other = run.encoders[a], run.encoders[b]
    joined = {e["config"]["modality"] for e in run.extensions}
    same = one.weights_sha256 == other.weights_sha256 and one.dim == other.dim
    return same and not {a, b} & joined


def _hits(index: Index, rows: Sequence[int] | np.ndarray, scores: Sequence[float] | np.ndarray) -> list[Hit]:
    hits = []
    for row, score in zip(rows, scores, strict=True):
        row, file = int(row), index.file(int(row))
        gone = file is not None and not file.is_file()
        path = None if file is None else str(file)
        hits.append(
            Hit(row, float(score), index.label(row), index.part(row).table, index.id(row), path, gone)
        )
    return hits
