"""Which few-shot draws an extraction stores: CoOp's, computed from the labels, and published ones, imported.

A draw is named `K-shot-seed-S`, in "train" and, where the data set has one, in "val". There it has
min(K, 4) rows a class, as CoOp validates; `K-shot-seed-S-equal` has K, and is stored where that is more.
Where val is the only split to test on (ImageNet), nobody may choose on it: "train" gets
`K-shot-seed-S-val`, min(K, 4) of the rows that do not train, as Lin et al. cut theirs.
Imported index files replace the computed draw of the same name, in whatever order they are given, and the
table's manifest says which file each came from. Reads index files; the algorithm is `spaner.cache`'s.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spaner.cache import VAL_SHOTS, few_shot, few_shot_splits, read_draw
from spaner.errors import DatasetError
from spaner.extract.config import ExtractConfig
from spaner.extract.datasets.dataset import Dataset, Split
from spaner.extract.datasets.lists import parsed

SHOTS = (re.compile(r"shots?[-_]?(\d+)", re.I), re.compile(r"(\d+)[-_]?shots?", re.I))
SEED = re.compile(r"seed[-_]?(\d+)", re.I)
SUFFIXES = (".json", ".jsonl")

Draws = dict[str, dict[str, np.ndarray]]
"""Split -> name of the draw -> its rows."""


def draw_shots(config: ExtractConfig, dataset: Dataset) -> tuple[int, ...] | None:
    """The few-shot draws that rows are kept for; None: all rows."""
    if config.shots == "all":
        return None
    if config.draws_from and config.shots is None:
        return ()
    return config.shots if config.shots is not None else dataset.shots


def draws_of(
    config: ExtractConfig, dataset: Dataset, splits: dict[str, Split]
) -> tuple[Draws, dict[str, str]]:
    """The draws of `train` and `val`, and for every imported one the name of its file.

    Raises:
        DatasetError: an index file that is not there, or whose name tells no shots and seed.
        CacheError: one that does not fit these rows.
    """
    shots = draw_shots(config, dataset)
    if shots is None or "train" not in splits:
        return {}, {}
    found: Draws = {"train": {}, "val": {}}
    for count in shots:
        for seed in config.draw_seeds:
            add_draw(found, splits, count, seed)
    sources: dict[str, str] = {}
    for file in index_files(config.draws_from or ()):
        name = draw_name(file)
        if name in sources:
            raise DatasetError(
                f"--draws-from {file}: {name} comes from {sources[name]} already; expected one file a draw; "
                "leave one out"
            )
        sources[name] = file.name
        _import(found, splits, file, name, dataset.class_names)
    return {split: found[split] for split in found if split in splits}, sources


def add_draw(found: Draws, splits: dict[str, Split], shots: int, seed: int) -> None:
    """Add CoOp's draw; validation rows continue the stream of the training rows."""
    train, name = splits["train"].labels, f"{shots}-shot-seed-{seed}"
    val = splits["val"].labels if "val" in splits else np.empty(0, np.int32)
    found["train"][name], found["val"][name] = few_shot_splits(train, val, shots, seed)
    if "test" not in splits:  # then val is what will be tested, and nobody may choose on it
        left = np.setdiff1d(np.arange(len(train)), found["train"][name])
        found["train"][f"{name}-val"] = left[few_shot(train[left], min(shots, VAL_SHOTS), seed)]
    equal = few_shot_splits(train, val, shots, seed, val_shots=shots)[1]
    if len(equal) > len(found["val"][name]):
        found["val"][f"{name}-equal"] = equal


def _import(found: Draws, splits: dict[str, Split], file: Path, name: str, class_names: list[str]) -> None:
    """Add a published draw; its validation rows too, if it has some and the data set has their split."""
    train, val = splits["train"], splits.get("val")
    found["train"][name] = read_draw(file, train.ids, labels=train.labels, class_names=class_names)
    for each in (name, f"{name}-equal"):
        found["val"].pop(each, None)
    listed = parsed(file) if file.suffix == ".json" else {}
    held_back = listed["val"]["data"] if isinstance(listed.get("val"), dict) else listed.get("val")
    if val is not None and held_back:
        found["val"][name] = read_draw(file, val.ids, "val", labels=val.labels, class_names=class_names)


def index_files(given: Sequence[Path]) -> list[Path]:
    """The files that were given, and those in the folders that were, sorted by name.

    Raises:
        DatasetError: nothing there, or a folder without index files.
    """
    files: list[Path] = []
    for path in given:
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        named = [file for file in inside if file.suffix in SUFFIXES and file.is_file()]
        if not named:
            kind = "no index files in it" if path.is_dir() else "no such .json or .jsonl file"
            raise DatasetError(
                f"--draws-from {path}: {kind}; expected shot_K-seed_S.json or a folder of them; check "
                "the path"
            )
        files += named
    return sorted(files, key=lambda file: file.as_posix())


def draw_name(file: Path) -> str:
    """`16-shot-seed-1` of `shot_16-seed_1.json` or `seed1/16shots/train.jsonl`."""
    told = "/".join(file.parts[-3:])
    shots = next((match for match in (pattern.search(told) for pattern in SHOTS) if match), None)
    seed = SEED.search(told)
    if not shots or not seed:
        raise DatasetError(
            f"--draws-from {file}: its name tells no shots and seed; expected shot_K-seed_S.json; rename the "
            "file"
        )
    return f"{int(shots[1])}-shot-seed-{int(seed[1])}"
