"""The fixed splits of CoOp's ten data sets: ``split_zhou_NAME.json`` (github.com/KaiyangZhou/CoOp).

    {"train": [["Forest/Forest_1.jpg", 1, "Forest"], …], "val": […], "test": […]}

Typed as ``--dataset coop:split_zhou_EuroSAT.json --data-root IMAGES``. Rows keep the file's order, because
CoOp's few-shot draws depend on it.
"""

import json
from pathlib import Path

import numpy as np

from spaner.errors import DatasetError
from spaner.extract.datasets.dataset import Dataset
from spaner.extract.datasets.images import image_split


def read(argument: str, root: Path | None = None, **_: object) -> Dataset:
    """Read ``coop:PATH``; image paths are relative to ``root``, else to the folder of the JSON file.

    Raises:
        DatasetError: file missing, or not of this layout.
    """
    file = Path(argument)
    if not argument or not file.is_file():
        raise DatasetError(
            f"--dataset coop:{argument}: no such file; expected split_zhou_*.json; type coop:PATH"
        )
    try:
        listed = json.loads(file.read_text())
        rows = {
            split: [(str(p), int(label), str(name)) for p, label, name in listed[split]] for split in listed
        }
        names = {label: name for part in rows.values() for _, label, name in part}
        classes = [names[label] for label in range(len(names))]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DatasetError(
            f'{file}: found another layout ({error}); expected {{"train": [[path, label, class], …], …}}; '
            "download the split file again"
        ) from error
    base = root or file.parent
    splits = {
        split: image_split(base, [path for path, _, _ in part], np.array([label for _, label, _ in part]))
        for split, part in rows.items()
    }
    shown = [name.replace("_", " ") for name in classes]
    return Dataset(
        file.stem.removeprefix("split_zhou_"), shown, {"image": splits}, ledger={"order": "as listed"}
    )
