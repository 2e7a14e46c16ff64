"""Comparing methods: who takes part, what is run again, what a row says, and what is refused."""

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from spaner.align.report import comparison as drawing
from spaner.align.train.base_to_new import base_to_new
from spaner.align.train.compare import Comparison, average, compare, entrants, refused, rows_of
from spaner.align.train.config import RECIPES, TrainConfig
from spaner.align.train.fit import fit
from spaner.errors import RecipeError
from tests.conftest import make_toy_cache

METHODS = ["zero_shot", "linear_probe", "gda", "anchored"]
SMALL = {"epochs": 1, "heads": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One cache of the same classes, and one of fewer."""
    folder = tmp_path_factory.mktemp("shifted")
    for name, classes in (("same", 11), ("fewer", 7)):
        make_toy_cache(folder / name, classes)
    return [folder / "same", folder / "fewer"]


@pytest.fixture(scope="module")
def found(toy_cache: Path, shifted: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    out = tmp_path_factory.mktemp("compare")
    (one,) = compare([toy_cache], METHODS, (1, 4), (1, 2), out, shift=shifted, recipe_base=SMALL, workers=1)
    return one


def written(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (folder / "cells").iterdir()}


# --- who takes part ---


def test_everybody_but_spaner_by_its_recipes():
    names = list(entrants(None))
    assert names[0] == "zero_shot"
    assert names[-len(RECIPES) :] == [f"SPANER, {recipe}" for recipe in RECIPES]
    assert "gda" in names
    assert "spaner" not in names
    assert entrants(["spaner", "gda"])["SPANER, anchored"] == {"recipe": "anchored"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"methods": ["gdaa"]}, r"no method or recipe 'gdaa'; .* did you mean gda\?"),
        ({"methods": ["anchord"]}, r"did you mean anchored\?"),
        ({"methods": []}, r"the list for methods is empty; give at least one value"),
        ({"shots": ()}, r"the list for shots is empty"),
        ({"seeds": ()}, r"the list for seeds is empty"),
        ({"shots": (0,)}, r"shots is 0; expected .* use shots=1"),
        ({"base": {"select": "test"}}, r"select is 'test'"),
    ],
)
def test_what_means_nothing_costs_no_time(toy_cache: Path, tmp_path: Path, change: dict[str, Any], said: str):
    with pytest.raises(RecipeError, match=said):
        compare([toy_cache], **{"methods": ["gda"], **change}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_several_caches_want_names_of_their_own_and_no_shift(toy_cache: Path, tmp_path: Path):
    with pytest.raises(RecipeError, match="two caches are named toy"):
        compare([toy_cache, toy_cache], ["gda"], out=tmp_path)
    with pytest.raises(RecipeError, match="--shift with 2 caches; expected one"):
        compare([toy_cache, toy_cache], ["gda"], out=tmp_path, shift=[toy_cache])


# --- what a row says ---


def test_rows_are_means_over_seeds_in_the_order_asked(found: Comparison):
    titles = ["zero_shot", "linear_probe", "gda", "SPANER, anchored"]
    assert [(row["method"], row["shots"]) for row in found.rows] == [(t, k) for k in (1, 4) for t in titles]
    gda = [r for r in found.results if r["varied"]["method"] == "gda" and r["varied"]["shots"] == 4]
    assert [(r["config"]["seed"], r["config"]["draw_seed"]) for r in gda] == [(1, 1), (2, 2)]
    row = found.rows[6]
    accuracies = [r["metrics"]["text"]["accuracy"] for r in gda]
    assert row["text"].value == pytest.approx(statistics.mean(accuracies))
    assert row["text"].std == pytest.approx(statistics.stdev(accuracies))
    assert row["ece"].value == pytest.approx(statistics.mean(r["metrics"]["text"]["ece"] for r in gda))
    assert row["chosen"] == "val"
    assert gda[0]["selection"]["scores"]


def test_what_a_method_does_not_have_is_nothing(found: Comparison):
    frozen, probe, _, anchored = found.rows[4:]
    assert probe["semantic"] is probe["gap"] is probe["cosine"] is probe["margin"] is None
    assert frozen["cosine"].value > 0
    assert anchored["margin"] is not None
    assert (frozen["parameters"].value, probe["parameters"].value) == (0, 11 * 24 + 11)
    assert frozen["chosen"] == "none"


def test_shift_is_the_mean_over_caches_and_a_head_on_other_classes_says_why_not(
    found: Comparison, shifted: list[Path]
):
    frozen, probe, *_ = found.rows[4:]
    one = found.results[8]["shift"]
    assert [each["dataset"] for each in one] == ["toy", "toy"]
    assert frozen["shift"].value == pytest.approx(statistics.mean(each["text"] for each in one))
    assert probe["shift"] is None
    assert any(
        line.startswith("linear_probe on toy: linear_probe was fitted on 11") for line in refused(found)
    )


def test_a_cell_is_the_fit_that_one_would_make(found: Comparison, toy_cache: Path):
    cell = next(r for r in found.results if r["varied"] == {"method": "gda", "shots": 4, "seed": 2})
    run = fit(toy_cache, method="gda", shots=4, seed=2, draw_seed=2)
    assert cell["selection"] == json.loads(json.dumps(run.selection))
    assert cell["facts"]["draw"] == run.draw


def test_new_classes_give_their_harmonic_mean_and_a_head_of_fixed_classes_says_why_not(
    tmp_path: Path, toy_cache: Path
):
    (one,) = compare(
        [toy_cache], ["zero_shot", "gda"], (4,), (1,), tmp_path / "out", base_to_new=True, workers=1
    )
    frozen, head = one.rows
    halves = base_to_new(toy_cache, TrainConfig(method="zero_shot", shots=4))
    assert frozen["H"].value == pytest.approx(halves["text"]["H"])
    assert head["H"] is None
    assert any(line.startswith("gda on new classes: gda was fitted on 6 classes") for line in refused(one))
    (without,) = compare([toy_cache], ["zero_shot"], (4,), (1,), tmp_path / "out", workers=1)
    assert without.rows[0]["H"] is None, "a cell that was asked less is another cell"


# --- what is kept ---


def test_finished_cells_are_not_run_again(found: Comparison, toy_cache: Path, shifted: list[Path]):
    before = written(found.folder)
    (again,) = compare(
        [toy_cache], METHODS, (1, 4), (1, 2), found.folder, shift=shifted, recipe_base=SMALL, workers=1
    )
    assert written(found.folder) == before
    assert again.rows == found.rows
    with (found.folder / "compare.csv").open(newline="") as file:
        assert float(next(csv.DictReader(file))["text"]) == found.rows[0]["text"].value


def test_a_cell_that_fails_says_why_and_stops_no_other(tmp_path: Path):
    """Five heads do not divide 24 dimensions."""
    make_toy_cache(tmp_path / "toy", dim=24)
    (one,) = compare([tmp_path / "toy"], ["anchored", "zero_shot"], (1,), (1,), tmp_path / "out",
                     recipe_base=SMALL | {"heads": 5}, workers=1)  # fmt: skip
    bad, good = one.rows
    assert (bad["cells"], bad["failed"], good["cells"]) == (0, 1, 1)
    assert "heads" in one.results[0]["reason"]


def test_the_average_is_taken_seed_by_seed_and_lacks_what_one_data_set_lacks(tmp_path: Path):
    def result(text: float, seed: int, gap: float | None = 0.1, status: str = "ok") -> dict[str, Any]:
        told = {"varied": {"method": "m", "shots": 1, "seed": seed}, "selection": {"by": "val"}}
        return told | {"status": status, "numbers": {"text": text, "gap": gap}}

    a = [result(0.5, 1), result(0.7, 2, 0.9), result(0.1, 3)]
    b = [result(0.6, 1), result(0.4, 2, None), result(0.9, 3, status="failed")]
    both = average([Comparison("a", tmp_path, a, rows_of(a)), Comparison("b", tmp_path, b, [])], tmp_path)
    (row,) = both.rows
    assert (row["text"].value, row["text"].std) == (pytest.approx(0.55), pytest.approx(0.0))
    assert (row["gap"].value, row["gap"].n) == (pytest.approx(0.1), 1)
    assert (row["cells"], row["failed"], both.name) == (2, 1, "average of 2")


def test_the_figures_name_every_method(found: Comparison, tmp_path: Path):
    files = drawing.draw(found.rows, tmp_path)
    assert {"shots.png", "shots.svg", "gap.png", "gap.svg", "shift.svg"} <= {file.name for file in files}
    assert "linear_probe" in (tmp_path / "shots.svg").read_text()
    assert (tmp_path / "gap.svg").read_text().count("linear_probe") == 1
    assert "left out, without such a number: linear_probe" in (tmp_path / "gap.svg").read_text()
    assert drawing.draw([row | {"cells": 0} for row in found.rows], tmp_path) == []
