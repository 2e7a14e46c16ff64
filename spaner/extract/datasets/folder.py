"""A folder of class folders, with or without split folders above them.

    photos/cat/1.jpg  photos/dog/2.jpg                     one seeded, stratified holdout becomes "test"
    photos/train/cat/1.jpg  photos/test/dog/2.jpg          the splits are the folders (train, val, test)

A class is named like its folder, with "_" read as a space, unless `classes.txt` in the folder gives lines
`folder_name  display name`, in label order. If files end like sounds, the data set is one of sounds, else
one of images. What is no sample by its ending, hidden, or beside and below the class folders is left out and
counted; every other file is a row, which fails with its reason if it is no sample after all.
"""

import random
from pathlib import Path

import numpy as np

from spaner.errors import DatasetError
from spaner.extract.datasets.audio import audio_split
from spaner.extract.datasets.dataset import Dataset, LeftOut, Split, leave_out, shown_names
from spaner.extract.datasets.images import image_split
from spaner.extract.datasets.lists import lines
from spaner.extract.datasets.tree import are_sounds, look, samples

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LISTING = "classes.txt"

Classes = dict[str, list[str]]
"""Class folder -> ids of its samples, both sorted."""


def read(
    argument: str, root: Path | None = None, *, holdout: float = 0.2, seed: int = 0, **_: object
) -> Dataset:
    """Read `folder:PATH`; a relative PATH is looked for under `root` if that is given.

    Raises:
        DatasetError: PATH missing, no class folders, an empty one, or a class in test that train lacks.
    """
    base = (root or Path()) / argument
    if not argument or not base.is_dir():
        raise DatasetError(
            f"--dataset folder:{argument}: no such folder; expected class folders; type folder:PATH"
        )
    left_out: LeftOut = {}
    top = _folders(base, "", left_out)
    split_folders = _split_folders(base, top)
    if split_folders:
        found = {
            split: _classes(base, f"{name}/", _folders(base / name, f"{name}/", left_out), left_out)
            for split, name in split_folders.items()
        }
        folders, names = _names(base, _checked(base, found, split_folders), left_out)
        splits = {split: _split(base, classes, folders) for split, classes in sorted(found.items())}
        return _dataset(base, names, splits, {"order": "sorted"}, left_out)
    classes = _classes(base, "", top, left_out)
    folders, names = _names(base, sorted(classes), left_out)
    splits = held_out(_split(base, classes, folders), holdout, seed)
    ledger = {"order": "sorted", "split": f"holdout {holdout} of each class, seed {seed}"}
    return _dataset(base, names, splits, ledger, left_out)


def _dataset(
    base: Path, names: list[str], splits: dict[str, Split], ledger: dict[str, str], left_out: LeftOut
) -> Dataset:
    """Sounds where files end like some, else images."""
    name = base.resolve().name or "folder"
    if not are_sounds(base, (key for split in splits.values() for key in split.ids)):
        return Dataset(name, names, {"image": splits}, ledger=ledger, left_out=left_out)
    sounds = {split: audio_split(base, rows.ids, rows.labels) for split, rows in splits.items()}
    encoders = {"audio": "esresnext"}
    return Dataset(name, names, {"audio": sounds}, encoders=encoders, ledger=ledger, left_out=left_out)


def _folders(folder: Path, shown: str, left_out: LeftOut) -> list[str]:
    """Folders in a folder that should hold nothing else."""
    folders, loose = look(folder, shown, left_out, used=() if shown else (LISTING,))
    for name in loose:
        if (folder / name).is_symlink() and not (folder / name).exists():
            raise DatasetError(
                f"{folder / name}: a link to nothing where class folders are; expected a folder; mend the "
                "link or remove it"
            )
        leave_out(left_out, "beside the class folders", shown + name)
    return folders


def _split_folders(base: Path, top: list[str]) -> dict[str, str]:
    """Split -> folder where the folders are splits, in whatever case; none where they are classes."""
    found: dict[str, str] = {}
    named = [name for name in top if name.casefold() in SPLITS]
    if len(named) < len(top):
        named = [name for name in named if _holds_folders(base / name)]  # "train" may be a class of vehicles
        if named:
            other = next(name for name in top if name not in named)
            raise DatasetError(
                f"{base}: split folders ({', '.join(named)}) beside another folder, {other}/; expected only "
                f"splits (train/, val/, test/) or only class folders; move {other} elsewhere"
            )
    for name in named:
        split = SPLITS[name.casefold()]
        if split in found:
            raise DatasetError(
                f"{base}: {found[split]}/ and {name}/ are both the split {split}; expected one; join them"
            )
        found[split] = name
    return found


def _holds_folders(folder: Path) -> bool:
    folders, files = look(folder, "", {})
    return bool(folders) and not files


def _classes(base: Path, prefix: str, names: list[str], left_out: LeftOut) -> Classes:
    if not names:
        raise DatasetError(
            f"{base / prefix}: found no class folders; expected one folder per class; check the path"
        )
    return {
        name: [
            f"{prefix}{name}/{file}" for file in samples(base / prefix / name, f"{prefix}{name}/", left_out)
        ]
        for name in names
    }


def _checked(base: Path, found: dict[str, Classes], split_folders: dict[str, str]) -> list[str]:
    """Class folders of the training split, which every other split must keep to."""
    known = set(found.get("train") or next(iter(found.values())))
    for split, classes in found.items():
        strange = sorted(set(classes) - known)
        if strange:
            raise DatasetError(
                f"{base}: class {strange[0]!r} is in {split} but not in train ({len(strange)} such); "
                f"expected the classes of train; add its training images or remove "
                f"{base / split_folders[split] / strange[0]}"
            )
    return sorted(known)


def _names(base: Path, folders: list[str], left_out: LeftOut) -> tuple[list[str], list[str]]:
    """Class folders and their names, both in label order."""
    listing = base / LISTING
    if not listing.is_file():
        return folders, shown_names(base, folders)
    named: dict[str, str] = {}
    for number, line in lines(listing):
        folder, name = _folder_and_name(line, set(folders))
        if folder in named:
            raise DatasetError(
                f"{listing}: line {number} names folder {folder!r} again; expected each once; remove one"
            )
        named[folder] = name
    missing = [folder for folder in folders if folder not in named]
    if missing:
        raise DatasetError(
            f"{listing}: no line for class folder {missing[0]!r} ({len(missing)} missing); expected lines "
            "`folder_name display name`; add them or delete the file"
        )
    kept = [folder for folder in named if folder in set(folders)]
    for folder in named.keys() - set(kept):
        leave_out(left_out, f"lines of {LISTING} without a folder", folder)
    return kept, shown_names(listing, [named[folder] for folder in kept])


def _folder_and_name(line: str, folders: set[str]) -> tuple[str, str]:
    """A line's folder, the longest that it begins with since folders may hold spaces, and what follows."""
    words = line.split()
    for count in range(len(words), 0, -1):
        folder = " ".join(words[:count])
        if folder in folders:
            return folder, " ".join(words[count:]) or folder
    return words[0], " ".join(words[1:]) or words[0]


def _split(base: Path, classes: Classes, folders: list[str]) -> Split:
    rows = [(key, label) for label, folder in enumerate(folders) for key in classes.get(folder, [])]
    return image_split(base, [key for key, _ in rows], np.array([label for _, label in rows]))


def held_out(split: Split, share: float, seed: int) -> dict[str, Split]:
    """Train and test: of each class `share` of the rows, at least one where it has two."""
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
