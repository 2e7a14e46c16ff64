"""An index as it is read: what each row is, where its file lies, and which rows a filter leaves.

Opening maps the arrays and reads a page of JSON. A file may have vanished since it was indexed; asking for it
says so.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Bool, Float16, Int

from spaner.align.train.run import Run
from spaner.cache.layout import unpack
from spaner.errors import CacheError, DatasetError, Mismatch, RunError
from spaner.extract.datasets.audio import Recording
from spaner.extract.datasets.dataset import read
from spaner.extract.datasets.images import decode
from spaner.registry import nearest as spelled_like
from spaner.search import approximate
from spaner.search.encoding import open_run, run_sha256
from spaner.search.index import SCHEMA, Part


@dataclass(frozen=True)
class Filter:
    """Which rows count; an empty list means all."""

    modalities: Sequence[str] = ()
    splits: Sequence[str] = ()
    classes: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.modalities or self.splits or self.classes)


class Index:
    """Made by `open_index`.

    Attributes:
        path: its folder.
        parts: its tables, in row order.
        class_names: what the labels count.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path, self.facts = path, facts
        self.parts = [Part(**part) for part in facts["tables"]]
        self.class_names: list[str] = facts["class_names"]
        self._opened: dict[tuple[str, str], dict[str, Any]] = {}

    def __len__(self) -> int:
        return int(self.facts["rows"])

    @cached_property
    def vectors(self) -> Float16[np.ndarray, "N E"]:
        """Unit rows of the space, mapped."""
        return self._array("vectors.npy")

    @cached_property
    def labels(self) -> Int[np.ndarray, " N"]:
        """Class of every row."""
        return np.asarray(self._array("labels.npy"))

    @cached_property
    def _packed(self) -> np.ndarray:
        return self._array("ids.npy")

    def frozen(self, modality: str) -> Float16[np.ndarray, "n D"] | None:
        """The modality's rows as the frozen encoder gave them; None where the index does not hold them."""
        name = f"frozen-{modality}.npy"
        return self._array(name) if (self.path / name).is_file() else None

    @cached_property
    def graph(self) -> Any:
        """The approximate index; None where none was built."""
        file = self.path / "graph.usearch"
        return approximate.opened(file, self.vectors.shape[1]) if file.is_file() else None

    def _array(self, name: str) -> np.ndarray:
        try:
            return np.load(self.path / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise CacheError(
                f"{self.path / name} cannot be read ({error}); expected what `spaner index` wrote; "
                "build the index again"
            ) from None

    def run(self) -> Run:
        """The run that it was made with.

        Raises:
            RunError: it has moved. Mismatch: another run lies there now.
        """
        way = self.facts["run"]
        place = way if way.startswith("hf:") else self.path.resolve() / way
        try:
            run = open_run(place)
        except RunError as error:
            raise RunError(f"the run of {self.path}: {error}, or say where it is with `--run RUN`") from None
        self.check(run)
        return run

    def check(self, run: Run) -> None:
        """Raise Mismatch unless this is the run whose space the vectors lie in."""
        found, own = run_sha256(run), self.facts["run_sha256"]
        if found != own:
            raise Mismatch(
                f"{self.path} was made with the run {own[:12]}, this is {found[:12]}; "
                "expected the same weights; build the index again with `spaner index`"
            )

    def part(self, row: int) -> Part:
        """The table that a row belongs to."""
        return next(part for part in self.parts if part.start <= row < part.stop)

    def id(self, row: int) -> str:
        """What the row is called in its table."""
        return str(unpack(self._packed[row : row + 1])[0])

    def label(self, row: int) -> str:
        """The name of its class."""
        return self.class_names[int(self.labels[row])]

    def file(self, row: int) -> Path | None:
        """Where its file lies or lay; None for texts, and where no folder was given."""
        part = self.part(row)
        if part.root is None or part.modality == "text":
            return None
        return (self.path.resolve() / part.root / PurePosixPath(self.id(row))).resolve()

    def payload(self, row: int) -> Any:
        """The sample itself: a picture, a `Recording` or samples and their rate, or its text.

        Raises:
            DatasetError: the index does not know where it lies. Else whatever a broken file raises.
        """
        part, key = self.part(row), self.id(row)
        if part.dataset is not None:
            opened = self._openers(part.dataset, part.modality).get(key)
            if opened is not None:
                return opened(key)
        if part.modality == "text":
            return key.partition(":")[2] or key
        file = self.file(row)
        if file is None:
            raise DatasetError(f"{key}: the index does not know its folder; build it with `--files FOLDER`")
        return decode(file) if part.modality == "image" else Recording(file)

    def _openers(self, dataset: str, modality: str) -> dict[str, Any]:
        """Id -> what opens it, of all splits of an embedded data set."""
        if (dataset, modality) not in self._opened:
            splits = read(dataset).splits.get(modality, {}).values()
            self._opened[dataset, modality] = {key: split.open for split in splits for key in split.ids}
        return self._opened[dataset, modality]

    def spans(self, which: Filter) -> list[tuple[int, int]]:
        """The row ranges that a filter's modalities and splits leave.

        Raises:
            CacheError: a name that the index does not have.
        """
        self._check_names("modality", which.modalities, {part.modality for part in self.parts})
        self._check_names("split", which.splits, {part.split for part in self.parts})
        return [
            (part.start, part.stop)
            for part in self.parts
            if (not which.modalities or part.modality in which.modalities)
            and (not which.splits or part.split in which.splits)
        ]

    def kept(self, which: Filter) -> Bool[np.ndarray, " N"] | None:
        """True for rows of the filter's classes; None: all."""
        if not which.classes:
            return None
        self._check_names("class", which.classes, set(self.class_names))
        wanted = [i for i, name in enumerate(self.class_names) if name in which.classes]
        return np.isin(self.labels, wanted)

    def _check_names(self, what: str, asked: Sequence[str], known: set[str]) -> None:
        for name in asked:
            if name not in known:
                near = spelled_like(name, known, cutoff=0.5)
                some = ", ".join(sorted(known)[:12])
                raise CacheError(
                    f"--{what} {name}: not in {self.path}; expected one of {some}"
                    + (f"; did you mean `--{what} {near}`?" if near else "; leave it out for all")
                )


def open_index(path: str | Path) -> Index:
    """Open an index folder.

    Raises:
        CacheError: no index there, an unfinished one, or one of another version.
    """
    path = Path(path)
    file = path / "index.json"
    if not file.is_file():
        found = "an unfinished one" if (path / "vectors.npy").exists() else "none"
        raise CacheError(
            f"no index at {path}: expected a folder with index.json, found {found}; "
            f"type `spaner index --run RUN PATH… --out {path}`"
        )
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        schema = facts["schema"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CacheError(f"{file} is no index in JSON; expected {SCHEMA!r}; build it again") from None
    if schema != SCHEMA:
        raise CacheError(
            f"{file} has schema {schema!r}; expected {SCHEMA!r}; build it again with this version"
        )
    return Index(path, facts)
