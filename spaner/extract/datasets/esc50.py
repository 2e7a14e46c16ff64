"""ESC-50 (Piczak 2015), and the ImageNet-ESC sets that pair its sounds with ImageNet's pictures.

    meta/esc50.csv       columns filename, fold, target, category (and others, unread)
    audio/*.wav          2,000 clips of 5 s, 8 per class and fold

`esc50` gives the folds that the CSV lists as splits fold1 … fold5, rows in CSV order. `imagenet-esc-27` and
`imagenet-esc-19` (Lin et al. 2023) keep the classes of their map, named as ImageNet names them (a barking
dog is an "Otterhound") and labelled by ascending ImageNet index; all five folds must be there. Where
ImageNet is found they bring its images of the same classes, else they have sound only.
Which rows train is decided later, by `cache.draws.first_shots`. Opens no sound and downloads nothing.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from spaner.errors import DatasetError
from spaner.extract.datasets import imagenet
from spaner.extract.datasets.audio import Recording
from spaner.extract.datasets.dataset import Dataset, LeftOut, Split, file_split, leave_out
from spaner.extract.datasets.lists import first_double, places, short, table
from spaner.extract.datasets.tree import look

LISTING = "meta/esc50.csv"
FOLDS = 5
COLUMNS = ("filename", "fold", "target", "category")
ORDER = {"order": "as listed in meta/esc50.csv"}

IMAGENET_ESC = (  # ImageNet index, class name and text, ESC-50 category, whether ESC-19 has it too
    (7, "rooster", "rooster", True),
    (8, "hen", "hen", True),
    (19, "chickadee", "chirping_birds", True),
    (31, "tree frog", "frog", True),
    (175, "Otterhound", "dog", True),
    (285, "Egyptian Mau", "cat", True),
    (308, "fly", "insects", True),
    (312, "cricket insect", "crickets", True),
    (341, "pig", "pig", True),
    (349, "bighorn sheep", "sheep", True),
    (404, "airliner", "airplane", True),
    (466, "high-speed train", "train", True),
    (473, "can opener", "can_opening", False),
    (491, "chainsaw", "chainsaw", True),
    (497, "church", "church_bells", False),
    (508, "computer keyboard", "keyboard_typing", True),
    (530, "digital clock", "clock_alarm", True),
    (556, "fire screen", "crackling_fire", False),
    (673, "computer mouse", "mouse_click", True),
    (861, "toilet seat", "toilet_flush", False),
    (882, "vacuum cleaner", "vacuum_cleaner", True),
    (892, "wall clock", "clock_tick", True),
    (896, "sink", "water_drops", False),
    (897, "washing machine", "washing_machine", True),
    (898, "water bottle", "drinking_sipping", False),
    (899, "water jug", "pouring_water", False),
    (977, "sandbar", "sea_waves", False),
)


def read(
    argument: str = "", root: Path | None = None, *, allow_outside: bool = False, **_: object
) -> Dataset:
    """Read ESC-50 at `argument`, else `root`, else `$ESC50_ROOT`, else `data/esc50`.

    Raises:
        DatasetError: no listing there, a column or value missing, no rows, no sound files.
    """
    base, rows = _listing(argument, root)
    categories = _categories(base, rows)
    label_of = {name: label for label, name in enumerate(categories)}
    splits = {"audio": _folds(base, rows, label_of, allow_outside=allow_outside)}
    names, encoders = [name.replace("_", " ") for name in categories], {"audio": "esresnext"}
    return Dataset("esc50", names, splits, encoders=encoders, ledger=ORDER, left_out=_unlisted(base, rows))


def class_map(classes: int) -> list[tuple[int, str, str]]:
    """(ImageNet index, class name, ESC-50 category) of ImageNet-ESC-27 or -19, by ascending index."""
    return [row[:3] for row in IMAGENET_ESC if classes == len(IMAGENET_ESC) or row[3]]


def _imagenet_esc(classes: int) -> Callable[..., Dataset]:
    def read_pairs(
        argument: str = "", root: Path | None = None, *, allow_outside: bool = False, **_: object
    ) -> Dataset:
        base, rows = _listing(argument, root)
        _categories(base, rows)
        pairs = class_map(classes)
        label_of = {category: label for label, (_, _, category) in enumerate(pairs)}
        kept = [row for row in rows if row["category"] in label_of]
        _check_complete(base, kept, list(label_of))
        splits = {"audio": _folds(base, kept, label_of, allow_outside=allow_outside)}
        names = [name for _, name, _ in pairs]
        ledger = dict(ORDER)
        pictures = _pictures(root, names)
        if pictures is not None:
            splits["image"], told = pictures
            ledger |= {"images": told}
        left_out, other = _unlisted(base, rows), [row for row in rows if row["category"] not in label_of]
        if other:
            leave_out(left_out, "of classes outside the map", f"audio/{other[0]['filename']}", len(other))
        title, encoders = f"imagenet-esc-{classes}", {"audio": "esresnext"}
        return Dataset(title, names, splits, encoders=encoders, ledger=ledger, left_out=left_out)

    return read_pairs


read_imagenet_esc_19 = _imagenet_esc(19)
read_imagenet_esc_27 = _imagenet_esc(27)


def _listing(argument: str, root: Path | None) -> tuple[Path, list[dict[str, str]]]:
    """The folder and the CSV's rows, stripped."""
    given = Path(argument) if argument else root or Path(os.environ.get("ESC50_ROOT") or "data/esc50")
    given = given.expanduser()
    inside = [given, given / "esc50", given / "ESC-50", given / "ESC-50-master"]
    base = next((place for place in inside if (place / LISTING).is_file()), None)
    if base is None:
        raise DatasetError(
            f"ESC-50 not found at {given}: no {LISTING}; expected meta/esc50.csv and audio/*.wav; "
            "type `--data-root PATH` or set ESC50_ROOT"
        )
    rows = table(base / LISTING, COLUMNS)
    _check_rows(base, rows)
    return base, [row for _, row in rows]


def _unlisted(base: Path, rows: list[dict[str, str]]) -> LeftOut:
    """What lies among the clips and in no line."""
    left_out: LeftOut = {}
    listed = {row["filename"] for row in rows}
    folders, files = look(base / "audio", "audio/", left_out)
    for name in folders + files:
        if name not in listed:
            leave_out(left_out, f"not in {LISTING}", f"audio/{name}")
    return left_out


def _check_rows(base: Path, rows: list[tuple[int, dict[str, str]]]) -> None:
    if not rows:
        raise DatasetError(
            f"{base / LISTING}: found no rows; expected one line per clip; use the published file"
        )
    folds = [str(i) for i in range(1, FOLDS + 1)]
    for line, row in rows:
        number = row["target"].isdecimal() and len(row["target"]) < 10
        if row["fold"] not in folds or not number or not row["filename"]:
            raise DatasetError(
                f"{base / LISTING}: line {line} has fold {short(row['fold'])!r}, target "
                f"{short(row['target'])!r}, file {short(row['filename'])!r}; expected a fold from 1 to "
                f"{FOLDS}, a number and a name; correct the line"
            )
    double = first_double(row["filename"] for _, row in rows)
    if double is not None:
        raise DatasetError(
            f"{base / LISTING}: {short(double)} is listed twice; expected each clip once; use the published "
            "file"
        )
    if not any((base / "audio" / row["filename"]).is_file() for _, row in rows):
        raise DatasetError(
            f"{base / 'audio'}: found none of the {len(rows):,} listed clips; expected audio/*.wav; "
            "unpack the audio folder"
        )


def _categories(base: Path, rows: list[dict[str, str]]) -> list[str]:
    """Category names by ascending target."""
    pairs = sorted({(int(row["target"]), row["category"]) for row in rows})
    names = [name for _, name in pairs]
    if len({target for target, _ in pairs}) < len(pairs) or len(set(names)) < len(names):
        raise DatasetError(
            f"{base / LISTING}: targets and categories do not pair up ({len(pairs)} combinations); expected "
            "one "
            "category per target; use the file as published"
        )
    return names


def _folds(
    base: Path, rows: list[dict[str, str]], label_of: dict[str, int], *, allow_outside: bool
) -> dict[str, Split]:
    paths = [f"audio/{row['filename']}" for row in rows]
    place = places(base / LISTING, base, paths, allow_outside=allow_outside)
    splits = {}
    for fold in sorted({row["fold"] for row in rows}):
        chosen = [(path, row) for path, row in zip(paths, rows, strict=True) if row["fold"] == fold]
        labels = [label_of[row["category"]] for _, row in chosen]
        splits[f"fold{fold}"] = file_split([path for path, _ in chosen], labels, place, Recording)
    return splits


def _check_complete(base: Path, rows: list[dict[str, str]], categories: list[str]) -> None:
    """Every class of the map in every fold."""
    absent = [name for name in categories if all(row["category"] != name for row in rows)]
    if absent:
        raise DatasetError(
            f"{base / LISTING}: no clip of {absent[0]} ({len(absent)} of {len(categories)} classes of the "
            "map are "
            "missing); expected the whole of ESC-50; use the file as published"
        )
    there = {(row["category"], row["fold"]) for row in rows}
    for fold in (str(i) for i in range(1, FOLDS + 1)):
        lacking = [name for name in categories if (name, fold) not in there]
        if lacking:
            raise DatasetError(
                f"{base / LISTING}: fold {fold} has no clip of {lacking[0]} ({len(lacking)} classes missing "
                "there); "
                f"expected {FOLDS} folds with every class; use the file as published"
            )


def _pictures(root: Path | None, names: list[str]) -> tuple[dict[str, Split], str] | None:
    """ImageNet's images of the named classes, relabelled, and where their order came from; None without
    ImageNet.

    Raises:
        DatasetError: ImageNet is there, but a class of the map is not.
    """
    place = Path(os.environ.get("IMAGENET_ROOT") or (root or Path("data")) / "imagenet")
    if not place.is_dir():
        return None
    whole = imagenet.read(root=place)
    lacking = [name for name in names if name not in whole.class_names]
    if lacking:
        raise DatasetError(
            f"{place}: no class {lacking[0]} ({len(lacking)} of {len(names)} classes of the map are "
            "missing); "
            "expected their folders in train and val; unpack them"
        )
    new = np.full(len(whole.class_names), -1, np.int32)
    new[[whole.class_names.index(name) for name in names]] = np.arange(len(names))
    splits = {}
    for name, split in whole.splits["image"].items():
        rows = np.flatnonzero(new[split.labels] >= 0)
        splits[name] = split.take(rows, new[split.labels[rows]])
    return splits, whole.ledger["order"]
