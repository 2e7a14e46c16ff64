"""`kill -9` at a random moment of extracting, repairing, copying, training, sweeping; then again."""

import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import spaner.cache
from spaner.align.train import fit, sweep
from spaner.align.train import run as runs
from spaner.errors import SpanerError
from spaner.extract.extract import extract
from spaner.extract.repair import repair
from trials import Outcome, bytes_of, different, in_child, settings


@dataclass(frozen=True)
class Work:
    """Something to be killed.

    Attributes:
        start: brings the place to where the work begins.
        do: the work; the same again finishes it.
        ended: what it left, to be compared.
    """

    start: Callable[[Path], object]
    do: Callable[[Path], object]
    ended: Callable[[Path], dict[str, bytes]]


def run(folder: Path, count: int, seed: int) -> Iterator[Outcome]:
    """Every kind of work, killed `count` times."""
    given = settings(folder)
    in_child(lambda: extract(cache=folder / "cache", **given))
    for name, work in works(folder, given).items():
        yield killed(name, work, folder / "trial", count, random.Random(f"{name} {seed}"))


def works(folder: Path, given: dict[str, Any]) -> dict[str, Work]:
    """What is killed. Training and sweeping start from a finished cache."""
    made = folder / "cache"
    config = {"epochs": 3, "shots": 2, "templates": "vanilla"}

    def extracted(name: str) -> Work:
        return Work(lambda place: None, lambda place: extract(cache=place / name, **given), whole)

    def damaged(place: Path) -> None:
        shutil.copytree(made, place / "cache")
        for chunk in (0, 1):
            file = place / "cache" / "image" / "train" / "features" / f"c.{chunk}.0.0"
            file.write_bytes(bytes(len(file.read_bytes())))

    def mend(place: Path) -> None:
        repair(place / "cache", dataset=given["dataset"], model=given["model"], pretrained="random")

    def copied(place: Path) -> None:
        spaner.cache.copy(made, place / "other.h5")

    def trained(place: Path) -> None:
        fit.fit(made, **config).save(place / "run")

    def swept(place: Path) -> None:
        grid = {"prompt_length": [1, 2], "seed": [1, 2]}
        sweep.sweep(made, grid, config, place / "sweep", workers=1, stack=1)

    return {
        "kill -9 while extracting (Zarr)": extracted("cache"),
        "kill -9 while extracting (HDF5)": extracted("cache.h5"),
        "kill -9 while repairing": Work(damaged, mend, whole),
        "kill -9 while copying": Work(lambda place: None, copied, whole),
        "kill -9 while training": Work(lambda place: None, trained, tensors),
        "kill -9 while sweeping": Work(lambda place: None, swept, numbers),
    }


def whole(place: Path) -> dict[str, bytes]:
    """Every byte, of hidden files too."""
    return bytes_of(place)


def tensors(place: Path) -> dict[str, bytes]:
    """What was learned; the times of a run differ."""
    state = runs.load(place / "run").model.state()
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


def numbers(place: Path) -> dict[str, bytes]:
    """The table of a sweep."""
    return {"sweep.csv": (place / "sweep" / "sweep.csv").read_bytes()}


def killed(name: str, work: Work, place: Path, count: int, draw: random.Random) -> Outcome:
    """Kill it, look whether what is left lies, and let it end."""
    outcome = Outcome(name)
    fresh(place, work)
    began = time.perf_counter()
    status, said = in_child(lambda: work.do(place))
    lasted = time.perf_counter() - began
    if status:
        outcome.add(found=False, failure=f"undisturbed it says {said}", when="undisturbed")
        return outcome
    expected = work.ended(place)
    while outcome.tried < count:
        fresh(place, work)
        after = draw.uniform(0, lasted)
        if in_child(lambda: work.do(place), kill_after=after)[0] != -9:
            continue  # it was through
        lie = in_child(lambda: lying(place))[1]
        status, said = in_child(lambda: work.do(place))
        failure = lie or (said if status else different(work.ended(place), expected))
        outcome.add(found=not lie, failure=failure or None, when=f"after {after:.2f} of {lasted:.2f} s")
    shutil.rmtree(place)
    return outcome


def fresh(place: Path, work: Work) -> None:
    """An empty place, brought to where the work begins."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    work.start(place)


def lying(place: Path) -> str | None:
    """Whether something that a kill left half-done opens as if it were whole and sound."""
    for path in sorted(path for path in place.iterdir() if path.name[0] != "."):
        try:
            if path.name == "run":
                runs.load(path)
            elif path.name.startswith(("cache", "other")) and not path.name.endswith(".parts"):
                with spaner.cache.open(path) as cache:
                    sealed = [cache.table(name) for name in cache.tables()]
                    if not cache.verify() and not all(table.read().any() for table in sealed):
                        return f"{path.name} is called sound and holds rows of zeros"
        except SpanerError:
            pass
    return None
