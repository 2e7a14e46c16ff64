"""Data sets: what a reader hands to the extraction, and the registry of readers.

A reader is a function ``read(argument, root, *, holdout, seed) -> Dataset``, named in ``DATASETS`` or by an
installed package (entry-point group ``spaner.datasets``).
``argument`` is what follows the colon of the user's ``name:argument`` ("" without one), ``root`` is the
folder of ``--data-root`` or None; a reader ignores what it does not need (``**_``). It lists files and
labels; nothing is opened before its row is extracted. It encodes nothing and draws no few-shot subset.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
    "folder": "spaner.extract.datasets.folder:read",
    "imagenet": "spaner.extract.datasets.imagenet:read",
    "imagenet-a": "spaner.extract.datasets.imagenet_shift:read_a",
    "imagenet-esc-19": "spaner.extract.datasets.esc50:read_imagenet_esc_19",
    "imagenet-esc-27": "spaner.extract.datasets.esc50:read_imagenet_esc_27",
    "imagenet-r": "spaner.extract.datasets.imagenet_shift:read_r",
    "imagenet-sketch": "spaner.extract.datasets.imagenet_shift:read_sketch",
    "imagenet-v2": "spaner.extract.datasets.imagenet_shift:read_v2",
}


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of one modality and split, by column.

    Attributes:
        ids: N stable names, unique, relative (posix) where they are paths; never an absolute path.
        labels: (N,) int32, indices into ``Dataset.class_names``.
        open: id -> payload: an RGB ``PIL.Image`` | ``str`` | ``(waveform float32 (channels, samples) in [-1,
            1], rate in Hz)`` | an ``audio.Recording``, which decodes no more than the encoder needs. Any
            plain exception makes it a failed row, the exception's first line being the reason.
    """

    ids: Sequence[str]
    labels: np.ndarray
    open: Callable[[str], Any]

    def take(self, rows: np.ndarray) -> "Split":
        """The same split with only these rows, in this order."""
        return Split([self.ids[int(i)] for i in rows], self.labels[rows], self.open)

    def __len__(self) -> int:
        return len(self.ids)


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
    """

    name: str
    class_names: list[str]
    splits: dict[str, dict[str, Split]]
    encoders: dict[str, str] = field(default_factory=dict)
    shots: tuple[int, ...] | None = None
    ledger: dict[str, str] = field(default_factory=dict)


def read(spec: str, root: Path | None = None, *, holdout: float = 0.2, seed: int = 0) -> Dataset:
    """Read a data set by the name a user types: ``digits``, ``imagenet``, ``folder:PATH``, ``csv:PATH`` …

    Raises:
        DatasetError: unknown name, or what the reader found missing or contradictory.
    """
    name, _, argument = spec.partition(":")
    if name not in registry.names(DATASETS, "dataset") and Path(spec).is_dir():
        raise DatasetError(
            f"--dataset {spec}: a folder, not a name; expected NAME or NAME:PATH; did you mean "
            f"`--dataset folder:{spec}`?"
        )
    reader = registry.load(DATASETS, "dataset", name, DatasetError)
    return reader(argument, root, holdout=holdout, seed=seed)
