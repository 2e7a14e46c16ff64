"""A folder of several modalities: one folder each, and in it what `folder` reads, split folders or classes.

    things/image/train/cat/001.jpg    things/image/test/dog/002.jpg
    things/audio/train/cat/001.wav    things/audio/test/dog/003.wav

A sample's id is its path below the modality and the split, without the ending ("cat/001"), so the picture and
the sound above are one sample; either may be missing. Classes are those of all modalities together. Where no
split folders lie below, one seeded, stratified holdout of the samples becomes "test", the same in every
modality.
"""

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from spaner.errors import DatasetError
from spaner.extract.datasets import folder
from spaner.extract.datasets.dataset import Dataset, LeftOut, Split
from spaner.extract.datasets.lists import first_double
from spaner.extract.datasets.tree import look


def read(argument: str, root: Path | None = None, **options: Any) -> Dataset:
    """Read `folder:PATH`, of one modality or of several.

    Raises:
        DatasetError: as `folder.read`; two files of one modality and split that have one id.
    """
    base = (root or Path()) / argument
    names = modality_folders(base) if argument and base.is_dir() else []
    if not names:
        return folder.read(argument, root, **options)
    if options.get("modality_column"):
        raise DatasetError(
            "--modality-column: a folder has no columns; expected csv:FILE; leave it out, a folder for each "
            "modality says enough"
        )
    parts = {name: folder.read(str(base / name), holdout=0.0) for name in names}
    return _joined(base, parts, options.get("holdout", 0.2), options.get("seed", 0))


def modality_folders(base: Path) -> list[str]:
    """The folders of a root that holds nothing but folders of folders, none of them a split: modalities."""
    left_out: LeftOut = {}
    top, _ = look(base, "", left_out)
    nested = [name for name in top if name.casefold() not in folder.SPLITS and _holds_folders(base / name)]
    return nested if len(nested) == len(top) > 1 else []


def _holds_folders(place: Path) -> bool:
    folders, files = look(place, "", {})
    return bool(folders) and not files


def _joined(base: Path, parts: dict[str, Dataset], holdout: float, seed: int) -> Dataset:
    classes = sorted({name for part in parts.values() for name in part.class_names})
    splits = {name: _renamed(base / name, part, classes) for name, part in parts.items()}
    ledger = {"order": "sorted"}
    if all(set(of) == {"train"} for of in splits.values()) and holdout:
        tested = _held_out([of["train"] for of in splits.values()], holdout, seed)
        splits = {name: _parted(of["train"], tested) for name, of in splits.items()}
        ledger["split"] = f"holdout {holdout} of each class's samples, seed {seed}"
    kinds = {name: next(iter(part.splits)) for name, part in parts.items()}
    encoders = {name: "esresnext" for name, kind in kinds.items() if kind == "audio"}
    left_out = {
        f"{name}, {kind}": told for name, part in parts.items() for kind, told in part.left_out.items()
    }
    return Dataset(
        base.resolve().name or "folder", classes, splits, encoders, ledger=ledger, left_out=left_out
    )


def _renamed(place: Path, part: Dataset, classes: list[str]) -> dict[str, Split]:
    """The splits of one modality, ids without split and ending, labels among all classes."""
    (found,) = part.splits.values()
    label = np.array([classes.index(name) for name in part.class_names], np.int32)
    return {name: _without_endings(place, rows, label[rows.labels]) for name, rows in found.items()}


def _without_endings(place: Path, rows: Split, labels: np.ndarray) -> Split:
    paths = [PurePosixPath(path) for path in rows.ids]
    ids = ["/".join(path.with_suffix("").parts[-2:]) for path in paths]
    double = first_double(ids)
    if double is not None:
        raise DatasetError(
            f"{place}: two files are sample {double!r} of one split; expected one each; rename one of them"
        )
    path_of = dict(zip(ids, rows.ids, strict=True))
    return replace(
        rows,
        ids=ids,
        labels=labels,
        open=lambda key: rows.open(path_of[key]),
        stat=lambda key: rows.stat(path_of[key]),
    )


def _held_out(parts: list[Split], share: float, seed: int) -> set[str]:
    """Ids of the samples that are tested, drawn among those of all modalities."""
    labels = {key: int(label) for rows in parts for key, label in zip(rows.ids, rows.labels, strict=True)}
    ids = sorted(labels)
    whole = Split(ids, np.array([labels[key] for key in ids], np.int32), lambda key: key)
    return set(folder.held_out(whole, share, seed)["test"].ids)


def _parted(rows: Split, tested: set[str]) -> dict[str, Split]:
    chosen = np.array([key in tested for key in rows.ids])
    return {"train": rows.take(np.flatnonzero(~chosen)), "test": rows.take(np.flatnonzero(chosen))}
