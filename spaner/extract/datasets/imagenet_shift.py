"""ImageNet under domain shift: V2, Sketch, A and R, to test on what was trained on ImageNet itself.

    imagenet-v2        0/* … 999/*     matched frequency; a folder's place in the class list: 10 follows 9
    imagenet-sketch    <wnid>/*        the same 1,000 classes
    imagenet-a         <wnid>/*        200 classes, scored among these 200
    imagenet-r         <wnid>/*        200 others, 86 of them shared with A

Class names are CLIP's curated ones in the order of ImageNet's indices; the cache's text tables hold just the
classes of the set, which makes the scoring 200-way. There is a "test" split and nothing to train on. A set
that is not complete is an error, since its accuracy would stand beside published ones; read parts of it with
`folder:PATH`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spaner.errors import DatasetError
from spaner.extract.datasets.dataset import Dataset, LeftOut, leave_out
from spaner.extract.datasets.imagenet import class_names, synsets
from spaner.extract.datasets.images import image_split
from spaner.extract.datasets.tree import look, samples


@dataclass(frozen=True)
class Shift:
    """One of the sets: how many classes and images it has, and the folder its archive unpacks to."""

    name: str
    classes: int
    images: int
    archive: str
    numbered: bool = False


V2 = Shift("imagenet-v2", 1000, 10_000, "imagenetv2-matched-frequency-format-val", numbered=True)
SKETCH = Shift("imagenet-sketch", 1000, 50_889, "sketch")
A = Shift("imagenet-a", 200, 7_500, "imagenet-a")
R = Shift("imagenet-r", 200, 30_000, "imagenet-r")


def read_v2(argument: str = "", root: Path | None = None, **_: object) -> Dataset:
    """ImageNet-V2, matched frequency; see `read`."""
    return read(V2, argument, root)


def read_sketch(argument: str = "", root: Path | None = None, **_: object) -> Dataset:
    """ImageNet-Sketch; see `read`."""
    return read(SKETCH, argument, root)


def read_a(argument: str = "", root: Path | None = None, **_: object) -> Dataset:
    """ImageNet-A; see `read`."""
    return read(A, argument, root)


def read_r(argument: str = "", root: Path | None = None, **_: object) -> Dataset:
    """ImageNet-R; see `read`."""
    return read(R, argument, root)


def read(shift: Shift, argument: str = "", root: Path | None = None) -> Dataset:
    """Read the class folders at `root`, else at `argument`, else in data/<name>; or in the archive's folder
    below.

    Raises:
        DatasetError: no class folders there, other folders than the set has, one without files, or another
            number of images.
    """
    base = root or Path(argument or f"data/{shift.name}")
    base = base / shift.archive if (base / shift.archive).is_dir() else base
    left_out: LeftOut = {}
    folders = _class_folders(shift, base, left_out)
    rows = [
        (f"{folder}/{name}", label)
        for label, folder in enumerate(folders)
        for name in samples(base / folder, f"{folder}/", left_out)
    ]
    if len(rows) != shift.images:
        raise DatasetError(
            f"{base}: found {len(rows):,} images; {shift.name} has {shift.images:,}; unpack all of it, "
            f"or type `--dataset folder:{base}` to read a part"
        )
    wnids = [synsets()[int(folder)] for folder in folders] if shift.numbered else folders
    test = image_split(base, [key for key, _ in rows], np.array([label for _, label in rows], np.int32))
    ledger = {"order": f"sorted (classes by ImageNet index, files by name), {shift.classes}-way"}
    splits = {"image": {"test": test}}
    return Dataset(shift.name, class_names(wnids), splits, ledger=ledger, left_out=left_out)


def _class_folders(shift: Shift, base: Path, left_out: LeftOut) -> list[str]:
    """Class folders in the order of ImageNet's indices: by number, or by wnid."""
    found = _folders(shift, base, left_out)
    known = [str(i) for i in range(shift.classes)] if shift.numbered else synsets()
    strange = sorted(found - set(known))
    if strange:
        raise DatasetError(
            f"{base / strange[0]}: no class of {shift.name} ({len(strange):,} such folders); "
            f"expected {_described(shift)}; give the folder of {shift.name} itself with --data-root"
        )
    folders = [name for name in known if name in found]
    if len(folders) != shift.classes:
        missing = [name for name in known if name not in found][:1] if shift.classes == len(known) else []
        first = f" (the first missing is {missing[0]})" if missing else ""
        raise DatasetError(
            f"{base}: found {len(folders):,} class folders{first}; "
            f"{shift.name} has {shift.classes:,}; unpack all of it"
        )
    return folders


def _folders(shift: Shift, base: Path, left_out: LeftOut) -> set[str]:
    folders, loose = look(base, "", left_out) if base.is_dir() else ([], [])
    for name in loose:
        leave_out(left_out, "beside the class folders", name)
    found = set(folders)
    if not found:
        state = "found no class folders" if base.is_dir() else "no such folder"
        raise DatasetError(
            f"{shift.name} not found at {base}: {state}; expected {_described(shift)}; "
            "type `--data-root PATH`"
        )
    return found


def _described(shift: Shift) -> str:
    if shift.numbered:
        return f"folders 0 to {shift.classes - 1}"
    return f"{shift.classes:,} folders named by wnid"
