"""Runs and sweeps of a folder as rows: what lies there, what it scored, when it was written.

Reads result.json and sweep.json alone, no weights, so that a folder of hundreds is listed at once. What is
damaged is a row that says so; what is neither run nor sweep is passed over.
"""

import json
import statistics
from collections.abc import Callable, Iterator
from datetime import datetime
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from spaner.align.train import run_folder, sweep
from spaner.errors import RecipeError, RunError
from spaner.registry import nearest

COLUMNS = ("name", "kind", "data", "method", "shots", "text", "semantic", "gap", "date")


def listing(folder: str | Path, sort: str = "date") -> list[dict[str, Any]]:
    """A row per run or sweep below a folder, at most two folders deep.

    Args:
        sort: one of `COLUMNS`; numbers and dates from the largest, names from the first.

    Returns:
        Rows with the keys `COLUMNS`, `path`, and `problem` where one cannot be read. Accuracies are
        fractions; those of a sweep are the mean over its cells; None where there is none.

    Raises:
        RunError: no such folder. RecipeError: no such column.
    """
    folder = Path(folder)
    if sort not in COLUMNS:
        near = nearest(sort, COLUMNS)
        raise RecipeError(
            f"--sort {sort}: expected one of {', '.join(COLUMNS)}; did you mean `--sort {near}`?"
        )
    if not folder.is_dir():
        raise RunError(f"no folder {folder}; expected one that holds runs; make one with `spaner train`")
    rows = [*_found(folder, "result.json", _of_run), *_found(folder, "sweep.json", _of_sweep)]
    return sorted(rows, key=lambda row: _key(row, sort))


def newest(folder: str | Path = "runs") -> Path:
    """The run that was written last.

    Raises:
        RunError: there is none.
    """
    place = Path(folder)
    rows = listing(place) if place.is_dir() else []
    runs = [row for row in rows if row["kind"] == "run" and "problem" not in row]
    if not runs:
        raise RunError(f"no run in {folder}; expected a run folder; type `spaner train`, or name the run")
    return Path(runs[0]["path"])


def frame(folder: str | Path = "runs", sort: str = "date") -> Any:
    """`listing` as a pandas DataFrame (extra `spaner[tables]`), dates as timestamps.

    Raises:
        RunError: pandas is not installed, or as for `listing`.
    """
    if find_spec("pandas") is None:
        raise RunError(
            'frame: pandas is not installed; expected the extra; type `pip install "spaner[tables]"`'
        )
    pandas: Any = import_module("pandas")
    found = pandas.DataFrame(listing(folder, sort), columns=[*COLUMNS, "path", "problem"])
    found["date"] = pandas.to_datetime(found["date"])
    return found


def _key(row: dict[str, Any], sort: str) -> tuple[bool, Any]:
    value = row[sort]
    if value is None:
        return True, 0
    if sort == "date":
        return False, -datetime.fromisoformat(value).timestamp()
    return False, -value if isinstance(value, int | float) else value


def _found(folder: Path, name: str, read: Callable[[Path], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    files = {file for pattern in (name, f"*/{name}", f"*/*/{name}") for file in folder.glob(pattern)}
    for file in sorted(files):
        kind = "run" if name == "result.json" else "sweep"
        row: dict[str, Any] = dict.fromkeys(COLUMNS) | {
            "name": file.parent.relative_to(folder).as_posix() if file.parent != folder else folder.name,
            "kind": kind,
            "date": datetime.fromtimestamp(file.stat().st_mtime).astimezone().isoformat(timespec="seconds"),
            "path": str(file.parent),
        }
        try:
            yield row | read(file)
        except (
            RunError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OSError,
            LookupError,
            RecursionError,
        ) as error:
            yield row | {"problem": (str(error).splitlines() or [type(error).__name__])[0]}


def _of_run(file: Path) -> dict[str, Any]:
    result = run_folder.read_result(file.parent)
    metrics = result["metrics"] or {}
    semantic = metrics.get("semantic") or {}
    return {
        "data": result["dataset"],
        "method": _title(result["config"]),
        "shots": result["draw"]["shots"],
        "text": (metrics.get("text") or {}).get("accuracy"),
        "semantic": semantic.get("accuracy"),
        "gap": metrics.get("gap"),
    }


def _of_sweep(file: Path) -> dict[str, Any]:
    """A sweep: of how many cells, varied in what; accuracies are means over the cells."""
    cells = json.loads(file.read_text(encoding="utf-8"))
    good = [cell for cell in cells if cell["status"] == "ok"]
    scores = [sweep.scores(cell) for cell in good]
    varied = ", ".join(dict.fromkeys(name for cell in cells for name in cell["varied"]))
    shots = {cell["config"]["shots"] for cell in cells}
    means = {name: _mean([each[name] for each in scores]) for name in ("text", "semantic", "gap")}
    return {
        "data": good[0]["metrics"]["tested"]["dataset"] if good else None,
        "method": f"{_title(cells[0]['config'])}, {len(good)} cells over {varied}",
        "shots": next(iter(shots)) if len(shots) == 1 else None,
        **means,
    }


def _title(config: dict[str, Any]) -> str:
    """The recipe of a SPANER run, else the method."""
    return Path(config["recipe"]).stem if config["method"] == "spaner" else config["method"]


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None
