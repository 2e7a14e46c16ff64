"""What lies in a folder of runs, as rows."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import spaner
from spaner.align.report.listing import COLUMNS, listing, newest
from spaner.errors import RecipeError, RunError
from tests.conftest import Outcome

Cli = Callable[..., Outcome]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, toy_cache: Path) -> Path:
    """Two runs, the second newer, a sweep, a damaged run and something else."""
    from spaner.align.train.config import TrainConfig
    from spaner.align.train.fit import train
    from spaner.align.train.sweep import sweep

    place = tmp_path_factory.mktemp("runs")
    train(toy_cache, TrainConfig.from_recipe("paper", epochs=1, batch_size=32, shots=4), place / "a")
    train(toy_cache, TrainConfig.from_recipe(method="linear_probe", recipe="paper"), place / "b")
    grid = {"prompt_length": [1, 2]}
    sweep(toy_cache, grid, {"epochs": 1, "batch_size": 64}, place / "s", workers=1)
    shutil.copytree(place / "a", place / "damaged")
    (place / "damaged" / "result.json").write_text("{")
    (place / "notes").mkdir()
    for age, name in enumerate(("b/result.json", "a/result.json", "s/sweep.json", "damaged/result.json")):
        os.utime(place / name, (1_700_000_000 - age, 1_700_000_000 - age))
    return place


def test_rows_say_what_the_results_say(folder: Path) -> None:
    rows = {row["name"]: row for row in listing(folder)}
    assert list(rows) == ["b", "a", "s", "damaged"], "newest first"
    for name in ("a", "b"):
        result = json.loads((folder / name / "result.json").read_text())
        assert rows[name]["text"] == result["metrics"]["text"]["accuracy"]
        assert rows[name]["gap"] == result["metrics"]["gap"]
    assert (rows["a"]["method"], rows["a"]["shots"], rows["a"]["data"]) == ("paper", 4, "toy")
    assert (rows["b"]["method"], rows["b"]["semantic"]) == ("linear_probe", None)
    cells = json.loads((folder / "s" / "sweep.json").read_text())
    mean = sum(cell["metrics"]["text"]["accuracy"] for cell in cells) / 2
    assert rows["s"]["text"] == pytest.approx(mean)
    assert rows["s"]["method"] == "paper, 2 cells over prompt_length"
    assert "not a result in JSON" in rows["damaged"]["problem"]


@pytest.mark.parametrize("column", COLUMNS)
def test_every_column_sorts(folder: Path, column: str) -> None:
    values = [row[column] for row in listing(folder, column) if row[column] is not None]
    down = column in ("text", "semantic", "gap", "shots", "date")
    assert values == sorted(values, reverse=down)


def test_the_command_and_the_frame(
    cli: Cli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = cli("runs", folder, "--sort", "name")
    assert done.status == 0, done.err
    assert done.out.splitlines()[0].split() == [
        "text",
        "semantic",
        "gap",
        "shots",
        "date",
        "data",
        "method",
        "run",
    ]
    assert [row["name"] for row in json.loads(cli("runs", folder, "--json").out)] == [
        "b",
        "a",
        "s",
        "damaged",
    ]
    pytest.importorskip("pandas")
    frame = spaner.frame(folder)
    assert frame["name"].tolist() == ["b", "a", "s", "damaged"]
    assert frame["date"].is_monotonic_decreasing
    assert frame.set_index("name")["text"].to_dict()["a"] == listing(folder)[1]["text"]
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "runs")
    for age, name in enumerate(("b", "a")):
        os.utime(Path("runs") / name / "result.json", (1_700_000_000 + age, 1_700_000_000 + age))
    assert newest() == Path("runs/a")


def test_mistakes(cli: Cli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="did you mean `--sort text`"):
        listing(folder, "txt")
    with pytest.raises(RunError, match="no folder"):
        listing(tmp_path / "nothing")
    monkeypatch.chdir(tmp_path)
    assert "no run in runs" in cli("report").err
