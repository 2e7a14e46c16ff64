"""Runs and sweeps that the first version wrote: still read, still finished."""

import shutil
from pathlib import Path

import pytest

from spaner.align.score.evaluate import evaluate
from spaner.align.train import run as checkpoint
from spaner.align.train.sweep import sweep

ARCHIVE = Path(__file__).parent / "archives" / "v1"
GRID = {"prompt_length": [1, 2], "seed": [1, 2]}


def test_a_run_of_the_first_version_scores_what_it_scored():
    run = checkpoint.load(ARCHIVE / "run")
    assert run.config.prompt_length == 3
    assert run.cache is not None
    found, stored = evaluate(run, run.cache), run.metrics
    assert stored is not None
    for kind in ("text", "semantic"):
        assert found[kind]["accuracy"] == stored[kind]["accuracy"]
        assert found[kind]["positive_cosine"] == pytest.approx(stored[kind]["positive_cosine"], abs=1e-5)


def test_cells_that_the_first_version_finished_are_not_run_again(tmp_path):
    folder = shutil.copytree(ARCHIVE / "sweep", tmp_path / "sweep")
    before = {file.name: file.read_bytes() for file in (folder / "cells").iterdir()}
    calls = []
    base = {"epochs": 2, "shots": 2}
    sweep(ARCHIVE / "cache", GRID, base, folder, workers=1, progress=lambda *call: calls.append(call))
    assert calls == [(4, 4, "cells")]
    assert {file.name: file.read_bytes() for file in (folder / "cells").iterdir()} == before


def test_a_setting_that_the_first_version_did_not_know_makes_another_cell(tmp_path):
    folder = shutil.copytree(ARCHIVE / "sweep", tmp_path / "sweep")
    base = {"epochs": 2, "shots": 2, "select": "published"}
    sweep(ARCHIVE / "cache", {"prompt_length": [1], "seed": [1]}, base, folder, workers=1)
    assert len(list((folder / "cells").iterdir())) == 5
