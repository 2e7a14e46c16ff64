"""Runs, sweeps and comparisons on disk: a full disk or a folder that cannot be written is one line, results
are replaced whole, and a result that says nonsense is refused before anything is made of it."""

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import spaner.align.train.run as runs
from spaner.align.train import cells, compare, run_folder, sweep
from spaner.align.train.config import TrainConfig
from spaner.cache import files
from spaner.errors import RunError

ARCHIVE = Path(__file__).parent / "archives" / "v1" / "run"


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save(folder: Path) -> None:
    result, state, history = run_folder.read(ARCHIVE)
    run_folder.write(folder, state, result | {"history": history})


def a_cell(folder: Path) -> cells.Cell:
    return cells.Cell(TrainConfig.from_recipe("paper"), {}, folder / "cells" / "one.json")


WRITERS = {
    "run": save,
    "cell": lambda folder: cells.write(a_cell(folder), {"status": "ok"}),
    "sweep": lambda folder: sweep.write(folder, [{"varied": {"seed": 1}, "status": "failed"}]),
    "compare": lambda folder: compare.write(
        compare.Comparison("d", folder, [{"method": "x"}], [{"method": "x"}])
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / "out")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with (
        full_disk(3),
        pytest.raises(RunError, match=r"^disk full while writing .*; free space or choose another --out"),
    ):
        WRITERS[name](tmp_path / "out")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("name", WRITERS)
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RunError, match=r"^cannot write .*(Not a directory|File exists).*choose another --out$"
    ):
        WRITERS[name](tmp_path / "file" / "out")


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_is_on_the_disk_before_its_name(tmp_path: Path, name: str, monkeypatch) -> None:
    order: list[tuple[str, str]] = []
    sync, replace = files._sync, Path.replace
    monkeypatch.setattr(files, "_sync", lambda path: (order.append(("sync", path.name)), sync(path)))
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: order.append(("fsync", "")))
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (order.append(("name", to.name)), replace(self, to))[1]
    )
    WRITERS[name](tmp_path / "out")
    first = next(place for place, (kind, _) in enumerate(order) if kind == "name")
    assert any(kind in ("sync", "fsync") for kind, _ in order[:first])
    assert order[-1][0] == "fsync", "the folder that names it comes last"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"widths": {"image": 10**9, "text": 24}}, "width of image is 1,000,000,000; expected what fits"),
        ({"widths": {"image": "wide"}}, "widths are .*; expected whole numbers"),
        ({"widths": [24]}, "widths is list; expected dict"),
        ({"class_names": "ab"}, "class_names is str; expected list"),
        ({"metrics": 3}, "metrics is int; expected dict or NoneType"),
        ({"encoders": None}, "encoders is NoneType; expected dict"),
        ({"config": {"prompt_length": 10**9}}, "prompt_length is 1,000,000,000; expected what fits"),
    ],
)
def test_a_result_that_says_nonsense_is_one_line(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    made = Path(shutil.copytree(ARCHIVE, tmp_path / "run"))
    result = json.loads((made / "result.json").read_text())
    for name, value in change.items():
        result[name] = result[name] | value if name == "config" else value
    (made / "result.json").write_text(json.dumps(result))
    with pytest.raises(RunError, match=words) as caught:
        runs.load(made)
    assert "\n" not in str(caught.value)


def test_deep_nesting_is_one_line(tmp_path: Path) -> None:
    made = Path(shutil.copytree(ARCHIVE, tmp_path / "run"))
    (made / "result.json").write_text("[" * 200_000)
    with pytest.raises(RunError, match="is not a result in JSON"):
        runs.load(made)
    (tmp_path / "cell.json").write_text("[" * 200_000)
    assert not sweep._finished(tmp_path / "cell.json")
