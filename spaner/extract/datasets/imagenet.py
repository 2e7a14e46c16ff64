"""ImageNet (ILSVRC 2012) as a tree of class folders, whole or a subset of its classes.

    train/<wnid>/*        training images, classes sorted by wnid, files sorted by name
    val/<wnid>/*          validation images, which are the test rows of every published number; or, as
    distributed, val/*                 50,000 files in one folder and a list of their classes (see
    ``_flat_labels``)

Class names are CLIP's curated ones, which open_clip carries; the order of wnids comes with timm, so a tree
with eight of the thousand folders gets the right eight names. Reads no image and downloads nothing.
"""

import csv
import os
from importlib.resources import files as package_files
from pathlib import Path

import numpy as np

from spaner.errors import DatasetError
from spaner.extract.datasets.dataset import Dataset
from spaner.extract.datasets.folder import files
from spaner.extract.datasets.images import image_split

INSIDE = ("", "ILSVRC/Data/CLS-LOC", "images", "ILSVRC2012")
LISTS = ("LOC_val_solution.csv", "val.txt", "ILSVRC2012_validation_ground_truth.txt")
LIST_FOLDERS = ("", "val", "data", "ILSVRC2012_devkit_t12/data", "devkit/data", "../..", "../../..")


def read(argument: str = "", root: Path | None = None, **_: object) -> Dataset:
    """Read the tree at ``root``, else ``$IMAGENET_ROOT``, else ``data/imagenet``.

    Raises:
        DatasetError: no tree there, a class folder or split without files, a flat val without its list.
    """
    base = _base(root or Path(argument or os.environ.get("IMAGENET_ROOT") or "data/imagenet"))
    wnids = _folders(base / "train")
    train = _foldered(base, "train", wnids, wnids)
    inside = _folders(base / "val")
    if inside:
        test, source = _foldered(base, "val", wnids, inside), "val folders"
    else:
        test, source = _flat(base, wnids)
    splits = {"train": image_split(base, *train), "test": image_split(base, *test)}
    ledger = {
        "order": "sorted (class folders by wnid, files by name)",
        "test": f"ILSVRC val, labels from {source}",
    }
    return Dataset("imagenet", class_names(wnids), {"image": splits}, shots=(16,), ledger=ledger)


def _base(root: Path) -> Path:
    """The folder that holds ``train`` and ``val``."""
    for inside in INSIDE:
        if (root / inside / "train").is_dir() and (root / inside / "val").is_dir():
            return root / inside
    found = ", ".join(sorted(p.name for p in root.iterdir())[:5]) if root.is_dir() else "no such folder"
    raise DatasetError(
        f"ImageNet not found at {root} (found: {found or 'an empty folder'}); expected train/<wnid>/… and "
        "val/…; type `--data-root PATH` or set IMAGENET_ROOT"
    )


def _folders(base: Path) -> list[str]:
    return sorted(entry.name for entry in base.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _foldered(base: Path, split: str, wnids: list[str], folders: list[str]) -> tuple[list[str], np.ndarray]:
    """Ids and labels of ``split/<wnid>/*``."""
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
    for label, wnid in ((wnids.index(name), name) for name in folders):
        names = files(base / split / wnid)
        if not names:
            raise DatasetError(
                f"{base / split / wnid}: found no files; expected images; unpack the class or remove the "
                f"folder"
            )
        ids += [f"{split}/{wnid}/{name}" for name in names]
        labels += [label] * len(names)
    return ids, np.array(labels, dtype=np.int32)


def _flat(base: Path, wnids: list[str]) -> tuple[tuple[list[str], np.ndarray], str]:
    """Ids and labels of ``val/*``, and the name of the list that gave the labels."""
    names = [
        name for name in files(base / "val") if Path(name).suffix.lower() not in (".txt", ".csv", ".mat")
    ]
    if not names:
        raise DatasetError(
            f"{base / 'val'}: found no files; expected val/<wnid>/… or val/*.JPEG; unpack the val images"
        )
    label_of, source = _flat_labels(base, names, wnids)
    missing = [name for name in names if Path(name).stem not in label_of]
    if missing:
        raise DatasetError(
            f"{source}: no label for {missing[0]} ({len(missing)} of {len(names)} files); expected one per "
            "file in val/; use the list that belongs to these files"
        )
    labels = np.array([label_of[Path(name).stem] for name in names], dtype=np.int32)
    return ([f"val/{name}" for name in names], labels), source.name


def _flat_labels(base: Path, names: list[str], wnids: list[str]) -> tuple[dict[str, int], Path]:
    """File stem -> label, from the first list found of

    - ``LOC_val_solution.csv`` (Kaggle): ``ImageId,PredictionString``, a wnid first in the second column;
    - ``val.txt``: ``file label`` with a wnid or a number counted from 0 in sorted wnid order;
    - ``ILSVRC2012_validation_ground_truth.txt`` (devkit): one ILSVRC id per line for the sorted file names.
      These ids are *not* in wnid order, so the devkit's ``meta.mat`` or ``map_clsloc.txt`` must lie beside
      it.
    """
    for list_name in LISTS:
        for folder in LIST_FOLDERS:
            file = base / folder / list_name
            if file.is_file():
                return _read_list(file, names, wnids), file
    raise DatasetError(
        f"{base / 'val'}: {len(names)} files without class folders and no list of their classes; looked for "
        f"{', '.join(LISTS)}; put one into {base}"
    )


def _read_list(file: Path, names: list[str], wnids: list[str]) -> dict[str, int]:
    if file.name == LISTS[0]:
        with file.open(newline="") as stream:
            rows = [(row["ImageId"], row["PredictionString"].split()[0]) for row in csv.DictReader(stream)]
    elif file.name == LISTS[1]:
        rows = [
            (Path(a).stem, b)
            for a, b in (line.split() for line in file.read_text().splitlines() if line.strip())
        ]
    else:
        order = _ilsvrc_order(file.parent)
        numbers = file.read_text().split()
        if len(numbers) != len(names):
            raise DatasetError(
                f"{file}: {len(numbers)} labels for {len(names)} files in val/; expected one line per file; "
                "unpack all of val or use its own list"
            )
        rows = [(Path(name).stem, order[int(n)]) for name, n in zip(sorted(names), numbers, strict=True)]
    index = {wnid: label for label, wnid in enumerate(wnids)} | {
        str(label): label for label in range(len(wnids))
    }
    strange = [wnid for stem, wnid in rows if wnid not in index]
    if strange:
        raise DatasetError(
            f"{file}: class {strange[0]!r} has no folder in train; expected wnids or 0 … {len(wnids) - 1}"
        )
    return {stem: index[wnid] for stem, wnid in rows}


def _ilsvrc_order(folder: Path) -> dict[int, str]:
    """ILSVRC 2012 id (1 … 1000) -> wnid."""
    if (folder / "map_clsloc.txt").is_file():
        lines = (
            line.split() for line in (folder / "map_clsloc.txt").read_text().splitlines() if line.strip()
        )
        return {int(number): wnid for wnid, number, *_ in lines}
    if (folder / "meta.mat").is_file():
        from scipy.io import loadmat

        synsets = loadmat(folder / "meta.mat", squeeze_me=True)["synsets"]
        return {int(entry["ILSVRC2012_ID"]): str(entry["WNID"]) for entry in synsets}
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
