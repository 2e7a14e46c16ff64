"""Which data sets are found where their readers look, and how many samples their splits have."""

from dataclasses import dataclass, field

from spaner.errors import DatasetError
from spaner.extract.datasets.dataset import read

#: Data sets that have a place of their own; the others take a path.
LOOKED_FOR = (
    "digits",
    "imagenet",
    "imagenet-v2",
    "imagenet-sketch",
    "imagenet-a",
    "imagenet-r",
    "esc50",
)


@dataclass(frozen=True)
class Root:
    """One data set: its samples by "modality/split", or why it cannot be read and what to type."""

    name: str
    classes: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    problem: str | None = None


def roots() -> list[Root]:
    """Every data set of `LOOKED_FOR`, as `spaner extract --dataset NAME` would find it here and now."""
    return [_root(name) for name in LOOKED_FOR]


def _root(name: str) -> Root:
    try:
        found = read(name)
    except (DatasetError, OSError) as error:
        return Root(name, problem=str(error))
    counts = {
        f"{m}/{split}": len(rows) for m, splits in found.splits.items() for split, rows in splits.items()
    }
    return Root(name, len(found.class_names), counts)
