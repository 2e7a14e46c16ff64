"""A file of ours that says nonsense, nested as deep as memory, is one line wherever it is read."""

from collections.abc import Callable
from pathlib import Path

import pytest

from spaner.align.report import checks
from spaner.align.report import sweep as sweeps
from spaner.align.report.listing import listing
from spaner.align.train import run_folder
from spaner.align.train.config import recipe_values
from spaner.cache.zarr_store import ZarrStore
from spaner.errors import SpanerError
from spaner.extract.config import ExtractConfig
from spaner.extract.datasets.lists import parsed
from spaner.extract.encoders.clip_weights import resolve
from spaner.extract.shared import plan_path, prepared
from spaner.search.indexed import open_index

DEEP = "[" * 200_000


def plan(folder: Path) -> None:
    file = plan_path(folder / "cache")
    (folder / "deep.json").rename(file)
    prepared(ExtractConfig(dataset="digits", cache=folder / "cache"), 2)


READERS: dict[str, Callable[[Path], object]] = {
    "zarr.json": lambda folder: ZarrStore(folder).attributes(),
    "index.json": open_index,
    "result.json": run_folder.read_result,
    "sweep.json": lambda folder: sweeps.read([folder]),
    "scale.json": lambda folder: checks.read([folder]),
    "model.json": lambda folder: resolve(str(folder / "model.json"), "random"),
    "list.json": lambda folder: parsed(folder / "list.json"),
    "deep.json": plan,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("text", [DEEP, "", "\\x00", "5"])
def test_a_file_of_nonsense_is_one_line(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    if (name, text) == ("list.json", "5"):
        return  # a list is checked by who reads it
    with pytest.raises(SpanerError) as caught:
        READERS[name](tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["a = " + DEEP, "\ufeffepochs = ", "epochs\0 = 1"])
def test_a_recipe_of_nonsense_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text, encoding="utf-8")
    with pytest.raises(SpanerError, match=r"r.toml is not TOML: .*; write one `name = value` a line"):
        recipe_values(tmp_path / "r.toml")
    (tmp_path / "r.toml").write_text("\ufeffepochs = 3\n", encoding="utf-8")  # as Windows writes it
    assert recipe_values(tmp_path / "r.toml")["epochs"] == 3


def test_a_listing_of_runs_names_the_damaged_one(tmp_path: Path) -> None:
    for name in ("run/result.json", "sweep/sweep.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(DEEP)
    assert [bool(row["problem"]) for row in listing(tmp_path)] == [True, True]
