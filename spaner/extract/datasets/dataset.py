"""Data sets: what a reader hands to the extraction, and the registry of readers.

A reader is a function `read(argument, root, *, holdout, seed, allow_outside, …) -> Dataset`, named in
`DATASETS` or by an installed package (entry-point group `spaner.datasets`). `argument` is what follows
the colon of the user's `name:argument` ("" without one), `root` is the folder of `--data-root` or None;
a reader ignores what it does not need (`**_`). It lists files and labels; nothing is opened before its row
is extracted. It encodes nothing and draws no few-shot subset.
"""

import stat
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from spaner import registry
from spaner.errors import DatasetError

DATASETS: dict[str, str] = {
    "coop": "spaner.extract.datasets.coop:read",
    "csv": "spaner.extract.datasets.csv_list:read",
    "digits": "spaner.extract.datasets.digits:read",
    "esc50": "spaner.extract.datasets.esc50:read",
    "folder": "spaner.extract.datasets.modalities:read",
    "imagenet": "spaner.extract.datasets.imagenet:read",
    "imagenet-a": "spaner.extract.datasets.imagenet_shift:read_a",
    "imagenet-esc-19": "spaner.extract.datasets.esc50:read_imagenet_esc_19",
    "imagenet-esc-27": "spaner.extract.datasets.esc50:read_imagenet_esc_27",
    "imagenet-r": "spaner.extract.datasets.imagenet_shift:read_r",
    "imagenet-sketch": "spaner.extract.datasets.imagenet_shift:read_sketch",
    "imagenet-v2": "spaner.extract.datasets.imagenet_shift:read_v2",
}

LOOKED_FOR = ("digits", "imagenet", "imagenet-v2", "imagenet-sketch", "imagenet-a", "imagenet-r", "esc50")
"""Data sets that have a place of their own; the others take a path."""

BUDGET = 768 << 20
"""Bytes that one sample may take while it is decoded: room for Pillow's largest picture, 4 bytes a pixel."""

LONGEST = 1_024
"""Bytes of an id or a class name at most: every row of a table stores as many as its longest id has."""

VANILLA = "a photo of a {}."

LeftOut = dict[str, tuple[int, str]]
"""What lies under a data root and is no row: kind -> how many, and the first of them."""


def leave_out(left_out: LeftOut, kind: str, example: str, count: int = 1) -> None:
    """Count something that is no row."""
    before, first = left_out.get(kind, (0, example))
    left_out[kind] = (before + count, first)


def no_source(key: str) -> tuple[int, int] | None:
    """The `stat` of samples that are no files."""
    return None


@dataclass(frozen=True)
class SampleFolder:
    """Where samples lie whose ids are paths: below `root`; `kind` is "image" or "sound"."""

    root: Path
    kind: str


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of one modality and split, by column.

    Attributes:
        ids: N stable names, unique, relative (posix) where they are paths; never an absolute path.
        labels: (N,) int32, indices into `Dataset.class_names`.
        open: id -> payload: an RGB `PIL.Image` | `str` | `(waveform float32 (channels, samples) in [-1,
            1], rate in Hz)` | an `audio.Recording`, which decodes no more than the encoder needs. Any
            plain exception makes it a failed row, the exception's first line being the reason.
        stat: id -> size in bytes and time of the last change (ns since 1970) of the file behind it, to see
            later whether it is still the same; None where there is no file.
        place: id -> that file; None where the samples are no files.
        files: set where ids are paths below one folder, so that a sample can be opened without listing all.
    """

    ids: Sequence[str]
    labels: np.ndarray
    open: Callable[[str], Any]
    stat: Callable[[str], tuple[int, int] | None] = no_source
    place: Callable[[str], Path] | None = None
    files: SampleFolder | None = None

    def take(self, rows: np.ndarray, labels: np.ndarray | None = None) -> "Split":
        """The same split with only these rows, in this order; `labels` replaces theirs."""
        kept = self.labels[rows] if labels is None else labels
        return replace(self, ids=[self.ids[int(i)] for i in rows], labels=kept)

    def __len__(self) -> int:
        return len(self.ids)


def file_split(
    ids: Sequence[str], labels: Any, place: Callable[[str], Path], decode: Callable[[Path], Any]
) -> Split:
    """A split of files: `place` finds an id's file, `decode` makes the payload of it."""

    def measure(key: str) -> tuple[int, int] | None:
        try:
            found = place(key).stat()
        except (OSError, ValueError):  # gone, or refused: its row has failed
            return None
        return found.st_size, found.st_mtime_ns

    return Split(ids, np.asarray(labels, np.int32), lambda key: decode(place(key)), measure, place)


def why_no_file(path: Path) -> str | None:
    """The failed row's reason where a path is nothing that can be read to its end; None for a file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "a link to nothing" if path.is_symlink() else "file not found"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if stat.S_ISREG(mode):
        return None
    return "a folder, not a file" if stat.S_ISDIR(mode) else "a pipe, socket or device, not a file"


@dataclass(frozen=True)
class Dataset:
    """Class names and rows per modality and split; text is made from class names and templates, so it has
    none.

    Attributes:
        name: short name, goes into the cache; no path.
        class_names: C names, indexed by label; may repeat (ImageNet has two "missile").
        splits: modality -> split name ("train", "val", "test", "fold1" …) -> Split.
        encoders: modality -> registered encoder to use unless the user names one; absent: "open_clip".
        shots: few-shot draws to store where the user asks for none; None: all rows.
        ledger: where order and labels came from, for the table's manifest ({"order": "sorted"}).
        template: the query that this data set's published numbers were made with; the text table `query`
            holds it where it is not "a photo of a {}.".
        left_out: what lies under its root and is no row: kind -> how many, and the first of them.
    """

    name: str
    class_names: list[str]
    splits: dict[str, dict[str, Split]]
    encoders: dict[str, str] = field(default_factory=dict)
    shots: tuple[int, ...] | None = None
    ledger: dict[str, str] = field(default_factory=dict)
    template: str = VANILLA
    left_out: LeftOut = field(default_factory=dict)


def read(
    spec: str,
    root: Path | None = None,
    *,
    holdout: float = 0.2,
    seed: int = 0,
    allow_outside: bool = False,
    modality_column: str | None = None,
    caption_column: tuple[str, ...] | None = None,
    negated_column: tuple[str, ...] | None = None,
) -> Dataset:
    """Read a data set by the name a user types: `digits`, `imagenet`, `folder:PATH`, `csv:PATH` …

    A "~" at the start of a path is the home folder. A split without rows is left out.

    Raises:
        DatasetError: unknown name, or what the reader found missing or contradictory.
    """
    name, _, argument = spec.partition(":")
    if name not in registry.names(DATASETS, "dataset") and Path(spec).expanduser().is_dir():
        raise DatasetError(
            f"--dataset {spec}: a folder, not a name; expected NAME or NAME:PATH; did you mean "
            f"`--dataset folder:{spec}`?"
        )
    reader = registry.load(DATASETS, "dataset", name, DatasetError)
    place = root.expanduser() if root else None
    argument = str(Path(argument).expanduser()) if argument.startswith("~") else argument
    options = {"holdout": holdout, "seed": seed, "allow_outside": allow_outside}
    columns: dict[str, Any] = {"modality_column": modality_column, "caption_column": caption_column}
    columns |= {"negated_column": negated_column}
    found = reader(argument, place, **options, **columns)
    _check_columns(name, found, columns)
    check_lengths(found)
    return _without_empty_splits(found)


def _check_columns(name: str, found: Dataset, columns: dict[str, Any]) -> None:
    """Raise DatasetError where columns were named to a reader that knows none."""
    for option, value in columns.items():
        told = ",".join(value) if isinstance(value, tuple) else value
        if told and found.ledger.get(option.replace("_", " ")) != told:
            flag = "--" + option.replace("_", "-")
            raise DatasetError(
                f"{flag} {told}: {name} has no such column; expected csv:FILE with one; leave it out"
            )


def check_lengths(dataset: Dataset) -> None:
    """Raise DatasetError where an id or class name is longer than `LONGEST`."""
    named = {"class": dataset.class_names}
    named |= {f"{m}/{s}": rows.ids for m, splits in dataset.splits.items() for s, rows in splits.items()}
    for what, texts in named.items():
        longest = max(texts, key=len, default="")
        size = len(longest.encode("utf-8", "replace"))
        if size > LONGEST:
            raise DatasetError(
                f"{dataset.name}: the {what} name {longest[:40]!r} … has {size:,} bytes; expected at most "
                f"{LONGEST:,}; give it a shorter one"
            )


def _without_empty_splits(dataset: Dataset) -> Dataset:
    splits, left_out = {}, dict(dataset.left_out)
    for modality, parts in dataset.splits.items():
        splits[modality] = {name: rows for name, rows in parts.items() if len(rows)}
        for name in parts.keys() - splits[modality].keys():
            leave_out(left_out, "splits without rows", f"{modality}/{name}")
        if not splits[modality]:
            raise DatasetError(f"{dataset.name}: found no {modality} rows; expected some; check its files")
    return replace(dataset, splits=splits, left_out=left_out)


def shown_names(source: Path, names: Sequence[str]) -> list[str]:
    """Class names as encoders read them: "_" is a space.

    Raises:
        DatasetError: two of them are then the same, so that no text could tell their classes apart.
    """
    found: dict[str, str] = {}
    for name in names:
        key = " ".join(unicodedata.normalize("NFC", name).replace("_", " ").split())
        if key in found:
            raise DatasetError(
                f"{source}: classes {found[key]!r} and {name!r} are both named {key!r}; expected names that "
                "differ by more than a space; rename one"
            )
        found[key] = name
    return [name.replace("_", " ") for name in names]


@dataclass(frozen=True)
class Root:
    """One data set: its samples by "modality/split", or why it cannot be read and what to type."""

    name: str
    classes: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    problem: str | None = None


def roots() -> list[Root]:
    """Every data set of `LOOKED_FOR`, as `spaner extract --dataset NAME` would find it here and now."""
    return [_root(name) for name in LOOKED_FOR]


def _root(name: str) -> Root:
    try:
        found = read(name)
    except (DatasetError, OSError) as error:
        return Root(name, problem=str(error))
    counts = {
        f"{m}/{split}": len(rows) for m, splits in found.splits.items() for split, rows in splits.items()
    }
    return Root(name, len(found.class_names), counts)
