"""The ten data sets of CoOp (Zhou et al. 2022, github.com/KaiyangZhou/CoOp) with their fixed splits.

    coop:caltech101 --data-root DATA                  DATA/caltech-101/ with split_zhou_Caltech101.json
    coop:split_zhou_EuroSAT.json --data-root IMAGES   any file of that layout:
    {"train": [["Forest/Forest_1.jpg", 1, "Forest"], …], "val": […], "test": […]}

Folders are laid out as CoOp's own instructions say; the data root may also be the data set's own folder.
FGVC Aircraft has no such file: its splits are the lists that come with it. Rows keep the list's order,
because CoOp's few-shot draws depend on it. Each data set brings the query that CoOp asks it with. Where a
list's size is known from the list itself (DTD, EuroSAT) it is checked; of the others it is not.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spaner import registry
from spaner.errors import DatasetError
from spaner.extract.datasets.dataset import VANILLA, Dataset, file_split, shown_names
from spaner.extract.datasets.images import decode
from spaner.extract.datasets.lists import first_double, lines, parsed, places, short

Rows = list[tuple[str, int, str]]
"""Path, label and class name of the rows of one split."""


@dataclass(frozen=True)
class Known:
    """One of the ten.

    Attributes:
        title: its name in CoOp's files, and of its cache.
        folder, images: where CoOp's instructions put it below the data root, and its images below that.
        template: the query of CoOp's zero-shot and prompt-learning rows.
        sizes: classes and rows of train, val and test.
    """

    title: str
    folder: str
    images: str
    template: str = VANILLA
    sizes: tuple[int, int, int, int] | None = None

    @property
    def listing(self) -> str:
        """The file that holds its splits or, for Aircraft, its class names."""
        return "variants.txt" if self.title == "FGVCAircraft" else f"split_zhou_{self.title}.json"


KNOWN = {
    "caltech101": Known("Caltech101", "caltech-101", "101_ObjectCategories"),
    "dtd": Known("DescribableTextures", "dtd", "images", "{} texture.", (47, 2_820, 1_128, 1_692)),
    "eurosat": Known(
        "EuroSAT", "eurosat", "2750", "a centered satellite photo of {}.", (10, 13_500, 5_400, 8_100)
    ),
    "fgvc_aircraft": Known("FGVCAircraft", "fgvc_aircraft", "images", "a photo of a {}, a type of aircraft."),
    "food101": Known("Food101", "food-101", "images", "a photo of {}, a type of food."),
    "oxford_flowers": Known("OxfordFlowers", "oxford_flowers", "jpg", "a photo of a {}, a type of flower."),
    "oxford_pets": Known("OxfordPets", "oxford_pets", "images", "a photo of a {}, a type of pet."),
    "stanford_cars": Known("StanfordCars", "stanford_cars", ""),
    "sun397": Known("SUN397", "sun397", "SUN397"),
    "ucf101": Known("UCF101", "ucf101", "UCF-101-midframes", "a photo of a person doing {}."),
}
PARTS = ("train", "val", "test")


def read(argument: str, root: Path | None = None, *, allow_outside: bool = False, **_: object) -> Dataset:
    """Read `coop:NAME` or `coop:PATH`; a PATH's images are relative to `root`, else to its folder.

    Raises:
        DatasetError: no such name or file, another layout, or a list that contradicts itself.
    """
    known = KNOWN.get(argument)
    if known is not None:
        base, file = _found(argument, known, root)
        rows = _aircraft(base) if known.title == "FGVCAircraft" else _listed(file)
        _check_sizes(file, known, rows)
        images, title = base / known.images, known.title
    else:
        file = _file(argument)
        rows, images, title = _listed(file), root or file.parent, file.stem.removeprefix("split_zhou_")
        known = next((each for each in KNOWN.values() if each.listing == file.name), None)
    names = shown_names(file, _class_names(file, rows))
    paths = [path for part in rows.values() for path, _, _ in part]
    place = places(file, images, paths, allow_outside=allow_outside)
    splits = {
        split: file_split([path for path, _, _ in part], [label for _, label, _ in part], place, decode)
        for split, part in rows.items()
    }
    ledger = {"order": "as listed", "list": file.name}
    return Dataset(
        title, names, {"image": splits}, ledger=ledger, template=known.template if known else VANILLA
    )


def _file(argument: str) -> Path:
    file = Path(argument)
    if argument and file.is_file():
        return file
    near = registry.nearest(argument, KNOWN, cutoff=0.5)
    raise DatasetError(
        f"--dataset coop:{argument}: no such file or data set; expected a split_zhou_*.json or one of "
        f"{', '.join(KNOWN)}; type `--dataset coop:{near or 'NAME'} --data-root PATH`"
    )


def _found(name: str, known: Known, root: Path | None) -> tuple[Path, Path]:
    """The data set's own folder, and the list in it."""
    above = root or Path("data")
    for base in (above / known.folder, above):
        if (base / known.listing).is_file():
            return base, base / known.listing
    raise DatasetError(
        f"--dataset coop:{name}: no {known.listing} at {above / known.folder}; expected it beside "
        f"{known.images or 'its images'}/, as CoOp's DATASETS.md lays it out; type `--data-root PATH`"
    )


def _listed(file: Path) -> dict[str, Rows]:
    """The rows of a `split_zhou_*.json`."""
    found = parsed(file)
    if not isinstance(found, dict) or not found or not all(isinstance(part, list) for part in found.values()):
        raise DatasetError(_another_layout(file, type(found).__name__))
    strange = sorted(set(found) - set(PARTS))
    if strange or not found.get("train"):
        raise DatasetError(_another_layout(file, f"splits {', '.join(map(short, found))}"))
    return {split: [_row(file, split, row) for row in part] for split, part in found.items()}


def _another_layout(file: Path, found: str) -> str:
    return (
        f'{file}: found another layout ({found}); expected {{"train": [[path, label, class], …], "val": …, '
        '"test": …}; download the split file again'
    )


def _row(file: Path, split: str, row: Any) -> tuple[str, int, str]:
    kinds = [type(value) for value in row] if isinstance(row, list) else []
    if kinds != [str, int, str] or not row[0] or not row[2].strip():
        raise DatasetError(_another_layout(file, f"a row {short(repr(row))} in {split}"))
    return row[0], row[1], row[2]


def _class_names(file: Path, rows: dict[str, Rows]) -> list[str]:
    """Names by label: one for each number from 0, and the same wherever the label is."""
    named: dict[int, str] = {}
    for path, label, name in (row for part in rows.values() for row in part):
        if named.setdefault(label, name) != name:
            raise DatasetError(
                f"{file}: label {label} is {short(named[label])!r} and, at {short(path)}, {short(name)!r}; "
                "expected one name a label; correct the list"
            )
    missing = next((label for label in range(len(named)) if label not in named), None)
    if missing is not None:
        raise DatasetError(
            f"{file}: no row has label {missing}, but others have {min(named)} to {max(named)}; expected "
            "labels from 0 without a gap; correct the list"
        )
    double = first_double(path for part in rows.values() for path, _, _ in part)
    if double is not None:
        raise DatasetError(f"{file}: {short(double)} is listed twice; expected each image once; remove one")
    return [named[label] for label in range(len(named))]


def _aircraft(base: Path) -> dict[str, Rows]:
    """FGVC Aircraft's own lists: lines `number variant`, labelled by the line of `variants.txt`."""
    label_of = {name: label for label, (_, name) in enumerate(lines(base / "variants.txt"))}
    rows: dict[str, Rows] = {}
    for split in PARTS:
        file = base / f"images_variant_{split}.txt"
        rows[split] = []
        for number, line in lines(file):
            image, _, name = line.partition(" ")
            if name not in label_of:
                raise DatasetError(
                    f"{file}: line {number} has variant {short(name)!r}, which variants.txt lacks; expected "
                    "`number variant`; use the lists of one release"
                )
            rows[split].append((f"{image}.jpg", label_of[name], name))
    return rows


def _check_sizes(file: Path, known: Known, rows: dict[str, Rows]) -> None:
    labels = {label for part in rows.values() for _, label, _ in part}
    found = (len(labels), *(len(rows.get(split, [])) for split in PARTS))
    if known.sizes is not None and found != known.sizes:
        raise DatasetError(
            f"{file}: found {', '.join(f'{size:,}' for size in found)} classes and rows of train, val and "
            f"test; {known.title} has {', '.join(f'{size:,}' for size in known.sizes)}; download the split "
            f"file again, or type `--dataset coop:{file}` to read a part"
        )
