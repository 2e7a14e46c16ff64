"""A folder of class folders, with or without split folders above them.

    photos/cat/1.jpg  photos/dog/2.jpg                     one seeded, stratified holdout becomes "test"
    photos/train/cat/1.jpg  photos/test/dog/2.jpg          the splits are the folders (train, val, test)

A class is named like its folder, with "_" read as a space, unless ``classes.txt`` in the folder gives lines
``folder_name  display name``, in label order. Hidden files are ignored. If all the others end like sounds,
the data set is one of sounds; else every file counts as an image, so what is none becomes a failed row with
its reason. Class folders are not searched for further folders.
"""

import random
from pathlib import Path

import numpy as np

from spaner.errors import DatasetError
from spaner.extract.datasets.audio import are_sounds, audio_split
from spaner.extract.datasets.dataset import Dataset, Split
from spaner.extract.datasets.images import image_split

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
NEVER_IMAGES = {"Thumbs.db", "desktop.ini"}


def read(argument: str, root: Path | None = None, *, holdout: float = 0.2, seed: int = 0) -> Dataset:
    """Read ``folder:PATH``; a relative PATH is looked for under ``root`` if that is given.

    Raises:
        DatasetError: PATH missing, no class folders, an empty one, or a class in test that train lacks.
    """
    base = (root or Path()) / argument
    if not argument or not base.is_dir():
        raise DatasetError(
            f"--dataset folder:{argument}: no such folder; expected class folders; type folder:PATH"
        )
    top = _folders(base)
    if top and set(top) <= set(SPLITS):
        found = {SPLITS[name]: _classes(base / name, f"{name}/") for name in top}
        folders, names = _names(base, _checked(base, found))
        splits = {split: _split(base, classes, folders) for split, classes in sorted(found.items())}
        return _dataset(base, names, splits, {"order": "sorted"})
    classes = _classes(base, "")
    folders, names = _names(base, sorted(classes))
    splits = _held_out(_split(base, classes, folders), holdout, seed)
    ledger = {"order": "sorted", "split": f"holdout {holdout} of each class, seed {seed}"}
    return _dataset(base, names, splits, ledger)


def _dataset(base: Path, names: list[str], splits: dict[str, Split], ledger: dict[str, str]) -> Dataset:
    """Sounds where every file ends like one, else images."""
    if not are_sounds(key for split in splits.values() for key in split.ids):
        return Dataset(_name(base), names, {"image": splits}, ledger=ledger)
    sounds = {name: audio_split(base, split.ids, split.labels) for name, split in splits.items()}
    return Dataset(_name(base), names, {"audio": sounds}, encoders={"audio": "esresnext"}, ledger=ledger)


def _name(base: Path) -> str:
    return base.resolve().name or "folder"


def _folders(base: Path) -> list[str]:
    return sorted(entry.name for entry in base.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _classes(base: Path, prefix: str) -> dict[str, list[str]]:
    """Class folder -> ids of its files, both sorted."""
    classes = {name: [f"{prefix}{name}/{file}" for file in files(base / name)] for name in _folders(base)}
    if not classes:
        raise DatasetError(f"{base}: found no class folders; expected one folder per class; check the path")
    empty = [name for name, ids in classes.items() if not ids]
    if empty:
        raise DatasetError(
            f"{base / empty[0]}: found no files ({len(empty)} empty class folder{'s' * (len(empty) > 1)}); "
            "expected at least one image; add images or remove the folder"
        )
    return classes


def files(folder: Path) -> list[str]:
    """Names of the visible files directly in ``folder``, sorted."""
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if not entry.name.startswith(".") and entry.name not in NEVER_IMAGES and entry.is_file()
    )


def _checked(base: Path, found: dict[str, dict[str, list[str]]]) -> list[str]:
    """Class folders of the training split, which every other split must keep to."""
    known = set(found.get("train") or next(iter(found.values())))
    for split, classes in found.items():
        strange = sorted(set(classes) - known)
        if strange:
            raise DatasetError(
                f"{base}: class {strange[0]!r} is in {split} but not in train ({len(strange)} such); "
                f"expected the classes of train; add its training images or remove "
                f"{base / split / strange[0]}"
            )
    return sorted(known)


def _names(base: Path, folders: list[str]) -> tuple[list[str], list[str]]:
    """Class folders and their names, both in label order."""
    listing = base / "classes.txt"
    if not listing.is_file():
        return folders, [folder.replace("_", " ") for folder in folders]
    lines = [line.split(maxsplit=1) for line in listing.read_text().splitlines() if line.strip()]
    named = {parts[0]: parts[-1].strip().replace("_", " ") for parts in lines}
    missing = [folder for folder in folders if folder not in named]
    if missing:
        raise DatasetError(
            f"{listing}: no line for class folder {missing[0]!r} ({len(missing)} missing); expected lines "
            "`folder_name display name`; add them or delete the file"
        )
    kept = [folder for folder in named if folder in set(folders)]
    return kept, [named[folder] for folder in kept]


def _split(base: Path, classes: dict[str, list[str]], folders: list[str]) -> Split:
    rows = [(key, label) for label, folder in enumerate(folders) for key in classes.get(folder, [])]
    return image_split(base, [key for key, _ in rows], np.array([label for _, label in rows]))


def _held_out(split: Split, share: float, seed: int) -> dict[str, Split]:
    """Train and test: of each class ``share`` of the rows, at least one where it has two."""
    if not 0 <= share < 1:
        raise DatasetError(f"--holdout {share}: expected a share of 0 to below 1; type `--holdout 0.2`")
    if share == 0:
        return {"train": split}
    test: list[int] = []
    for label in np.unique(split.labels):
        rows = np.flatnonzero(split.labels == label).tolist()
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        test += random.Random(f"{seed}|{label}").sample(rows, count)
    chosen = np.zeros(len(split), dtype=bool)
    chosen[test] = True
    return {"train": split.take(np.flatnonzero(~chosen)), "test": split.take(np.flatnonzero(chosen))}
