"""ImageNet (ILSVRC 2012) as a tree of class folders, whole or a subset of its classes.

    train/<wnid>/*        training images, classes sorted by wnid, files sorted by name
    val/<wnid>/*          validation images, which are the test rows of every published number; or, as
    distributed, val/*                 50,000 files in one folder and a list of their classes (`_listed`)

Class names are CLIP's curated ones, which open_clip carries; the order of wnids comes with timm, so a tree
with eight of the thousand folders gets the right eight names. Reads no image and downloads nothing.
"""

import os
from importlib.resources import files as package_files
from pathlib import Path

import numpy as np

from spaner.errors import DatasetError
from spaner.extract.datasets.dataset import Dataset, LeftOut, leave_out
from spaner.extract.datasets.images import image_split
from spaner.extract.datasets.lists import lines, short, table
from spaner.extract.datasets.tree import PICTURES, look, samples

INSIDE = ("", "ILSVRC/Data/CLS-LOC", "images", "ILSVRC2012")
LISTS = ("LOC_val_solution.csv", "val.txt", "ILSVRC2012_validation_ground_truth.txt")
LIST_FOLDERS = ("", "val", "data", "ILSVRC2012_devkit_t12/data", "devkit/data", "../..", "../../..")


def read(argument: str = "", root: Path | None = None, **_: object) -> Dataset:
    """Read the tree at `root`, else `$IMAGENET_ROOT`, else `data/imagenet`.

    Raises:
        DatasetError: no tree there, a class folder or split without files, a flat val without its list.
    """
    given = argument or os.environ.get("IMAGENET_ROOT") or "data/imagenet"
    base = _base(root or Path(given).expanduser())
    left_out: LeftOut = {}
    wnids = _folders(base, "train", left_out)
    train = _foldered(base, "train", wnids, wnids, left_out)
    inside, loose = look(base / "val", "val/", {})
    if inside:
        inside = _folders(base, "val", left_out)
        test, source = _foldered(base, "val", wnids, inside, left_out), "val folders"
    else:
        test, source = _flat(base, wnids, loose, left_out)
    splits = {"train": image_split(base, *train), "test": image_split(base, *test)}
    ledger = {
        "order": "sorted (class folders by wnid, files by name)",
        "test": f"ILSVRC val, labels from {source}",
    }
    names = class_names(wnids)
    return Dataset("imagenet", names, {"image": splits}, shots=(16,), ledger=ledger, left_out=left_out)


def _base(root: Path) -> Path:
    """The folder that holds `train` and `val`."""
    for inside in INSIDE:
        if (root / inside / "train").is_dir() and (root / inside / "val").is_dir():
            return root / inside
    found = ", ".join(sorted(p.name for p in root.iterdir())[:5]) if root.is_dir() else "no such folder"
    raise DatasetError(
        f"ImageNet not found at {root} (found: {found or 'an empty folder'}); expected train/<wnid>/… and "
        "val/…; type `--data-root PATH` or set IMAGENET_ROOT"
    )


def _folders(base: Path, split: str, left_out: LeftOut) -> list[str]:
    """Class folders of a split.

    Raises:
        DatasetError: images beside them, as a sorting into folders that stopped half way leaves them.
    """
    folders, loose = look(base / split, f"{split}/", left_out)
    flat = [name for name in loose if Path(name).suffix.lower() in PICTURES]
    if flat and folders:
        raise DatasetError(
            f"{base / split}: {len(flat):,} images beside the class folders, first {flat[0]}; expected all "
            "in folders or none; sort the others into their folders too"
        )
    for name in loose:
        leave_out(left_out, "beside the class folders", f"{split}/{name}")
    return folders


def _foldered(
    base: Path, split: str, wnids: list[str], folders: list[str], left_out: LeftOut
) -> tuple[list[str], np.ndarray]:
    """Ids and labels of `split/<wnid>/*`."""
    if not folders:
        raise DatasetError(
            f"{base / split}: found no class folders; expected {split}/<wnid>/*.JPEG; check --data-root"
        )
    strange = sorted(set(folders) - set(wnids))
    if strange:
        raise DatasetError(
            f"{base / split / strange[0]}: class is not in train ({len(strange)} such); expected the folders "
            "of train; add them there or remove them here"
        )
    ids: list[str] = []
    labels: list[int] = []
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    for wnid in folders:
        names = samples(base / split / wnid, f"{split}/{wnid}/", left_out)
        ids += [f"{split}/{wnid}/{name}" for name in names]
        labels += [label_of[wnid]] * len(names)
    return ids, np.array(labels, dtype=np.int32)


def _flat(
    base: Path, wnids: list[str], names: list[str], left_out: LeftOut
) -> tuple[tuple[list[str], np.ndarray], str]:
    """Ids and labels of `val/*`, and the name of the list that gave the labels."""
    if not names:
        raise DatasetError(
            f"{base / 'val'}: found no files; expected val/<wnid>/… or val/*.JPEG; unpack the val images"
        )
    label_of, source = _flat_labels(base, names, wnids)
    look(base / "val", "val/", left_out, used=[source.name])
    missing = [name for name in names if Path(name).stem not in label_of]
    if missing:
        raise DatasetError(
            f"{source}: no label for {missing[0]} ({len(missing)} of {len(names)} files); expected one per "
            "file in val/; use the list that belongs to these files"
        )
    absent = label_of.keys() - {Path(name).stem for name in names}
    if absent:
        leave_out(left_out, f"lines of {source.name} without a file", min(absent), len(absent))
    labels = np.array([label_of[Path(name).stem] for name in names], dtype=np.int32)
    return ([f"val/{name}" for name in names], labels), source.name


def _flat_labels(base: Path, names: list[str], wnids: list[str]) -> tuple[dict[str, int], Path]:
    """File stem -> label, from the first list found of `LISTS`, see `_listed`."""
    for list_name in LISTS:
        for folder in LIST_FOLDERS:
            file = base / folder / list_name
            if file.is_file():
                return _labels(file, _listed(file, names), wnids), file
    raise DatasetError(
        f"{base / 'val'}: {len(names)} files without class folders and no list of their classes; looked for "
        f"{', '.join(LISTS)}; put one into {base}"
    )


def _listed(file: Path, names: list[str]) -> list[tuple[str, str]]:
    """File stem and class of every line of

    - `LOC_val_solution.csv` (Kaggle): `ImageId,PredictionString`, a wnid first in the second column;
    - `val.txt`: `file label` with a wnid or a number counted from 0 in sorted wnid order;
    - `ILSVRC2012_validation_ground_truth.txt` (devkit): one ILSVRC id per line for the sorted file names.
      These ids are *not* in wnid order, so the devkit's `meta.mat` or `map_clsloc.txt` must lie beside
      it.
    """
    if file.name == LISTS[0]:
        rows = table(file, ("ImageId", "PredictionString"))
        return [(row["ImageId"], row["PredictionString"].partition(" ")[0]) for _, row in rows]
    if file.name == LISTS[1]:
        return [_pair(file, number, line) for number, line in lines(file)]
    order, numbers = _ilsvrc_order(file.parent), lines(file)
    if len(numbers) != len(names):
        raise DatasetError(
            f"{file}: {len(numbers)} labels for {len(names)} files in val/; expected one line per file; "
            "unpack all of val or use its own list"
        )
    strange = next(((line, word) for line, word in numbers if word not in order), None)
    if strange:
        raise DatasetError(
            f"{file}: line {strange[0]} has {short(strange[1])!r}; expected an ILSVRC id from 1 to "
            f"{len(order)}; use the devkit's own file"
        )
    return [(Path(name).stem, order[n]) for name, (_, n) in zip(sorted(names), numbers, strict=True)]


def _pair(file: Path, number: int, line: str) -> tuple[str, str]:
    words = line.split()
    if len(words) != 2:
        raise DatasetError(
            f"{file}: line {number} has {len(words)} words: {short(line)!r}; expected two, `file label`; "
            "correct the line"
        )
    return Path(words[0]).stem, words[1]


def _labels(file: Path, rows: list[tuple[str, str]], wnids: list[str]) -> dict[str, int]:
    """File stem -> label.

    Raises:
        DatasetError: a class without folder, or a file with two classes.
    """
    index = {str(label): label for label in range(len(wnids))} | {wnid: i for i, wnid in enumerate(wnids)}
    found: dict[str, int] = {}
    for stem, word in rows:
        if word not in index:
            raise DatasetError(
                f"{file}: class {short(word)!r} has no folder in train; expected wnids or 0 … "
                f"{len(wnids) - 1}; unpack its folder or use the list that belongs to these"
            )
        if found.setdefault(stem, index[word]) != index[word]:
            raise DatasetError(
                f"{file}: {short(stem)} has two classes, {wnids[found[stem]]} and {wnids[index[word]]}; "
                "expected one; correct the list"
            )
    return found


def _ilsvrc_order(folder: Path) -> dict[str, str]:
    """ILSVRC 2012 id ("1" … "1000") -> wnid."""
    listing, matrix = folder / "map_clsloc.txt", folder / "meta.mat"
    if listing.is_file():
        words = [line.split() for _, line in lines(listing)]
        if any(len(parts) < 2 for parts in words):
            raise DatasetError(f"{listing}: expected lines `wnid number name`; use the devkit's own file")
        return {number: wnid for wnid, number, *_ in words}
    if matrix.is_file():
        from scipy.io import loadmat

        try:
            synsets = loadmat(matrix, squeeze_me=True)["synsets"]
            return {str(int(entry["ILSVRC2012_ID"])): str(entry["WNID"]) for entry in synsets}
        except Exception as error:  # a damaged file makes scipy raise whatever the damage leads it to
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DatasetError(
                f"{matrix}: {short(reason)}; expected the devkit's file; get it again"
            ) from None
    raise DatasetError(
        f"{folder / LISTS[2]}: its numbers are ILSVRC ids, which are not in wnid order; expected the "
        "devkit's meta.mat or map_clsloc.txt beside it; copy one there"
    )


def class_names(wnids: list[str]) -> list[str]:
    """CLIP's curated name of each wnid; an unknown folder keeps its own name."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    known = dict(zip(synsets(), IMAGENET_CLASSNAMES, strict=True))
    return [known.get(wnid, wnid.replace("_", " ")) for wnid in wnids]


def synsets() -> list[str]:
    """The 1,000 wnids of ILSVRC 2012, sorted."""
    return (package_files("timm") / "data" / "_info" / "imagenet_synsets.txt").read_text().split()
