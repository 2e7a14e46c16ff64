"""Sweeps: which cells there are, when one runs again, what is shared between processes, what is reported."""

import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import clip_like
import numpy as np
import pytest
import torch

from spaner import cache as caches
from spaner.align.methods import step
from spaner.align.score.evaluate import evaluate
from spaner.align.score.intervals import Number
from spaner.align.train import cells as cells_
from spaner.align.train import stack as stacks
from spaner.align.train import sweep as sweeps
from spaner.align.train.config import TrainConfig
from spaner.align.train.fit import fit
from spaner.align.train.sweep import plan, summary, sweep
from spaner.errors import RecipeError, RunError

BASE: dict[str, Any] = {"heads": 4, "epochs": 1, "batch_size": 64, "device": "cpu"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return caches.open(clip_like.build(tmp_path_factory.mktemp("sweep") / "cache", per_class=5))


def metrics_of(results: list[dict[str, Any]]) -> list[Any]:
    return [result["metrics"] for result in results]


def written(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (folder / "cells").iterdir()}


# --- which cells ---


def test_cells_come_in_the_order_of_the_grid_and_repeated_values_count_once(cache):
    cells = plan(cache, {"prompt_length": [3, 1, 3], "seed": [2, 1]}, BASE)
    assert [cell.varied for cell in cells] == [
        {"prompt_length": 3, "seed": 2},
        {"prompt_length": 3, "seed": 1},
        {"prompt_length": 1, "seed": 2},
        {"prompt_length": 1, "seed": 1},
    ]
    assert cells[2].config == TrainConfig(**BASE, prompt_length=1, seed=2)
    assert len({cell.key for cell in cells}) == 4


def test_recipe_is_an_axis_and_the_grid_wins_over_the_base(cache):
    cells = plan(cache, {"recipe": ["paper", "anchored"], "lr": [0.5]}, {"lr": 0.1, "heads": 4})
    assert [(cell.config.init, cell.config.blend, cell.config.lr) for cell in cells] == [
        ("random", 0.0, 0.5),
        ("identity", 0.5, 0.5),
    ]


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"colour": [1]}, r"unknown setting 'colour' for method spaner"),
        ({"seed": []}, r"the list for seed is empty; give at least one value"),
        ({"prompt_length": [2, -1]}, r"prompt_length is -1; expected .* use prompt_length=0"),
    ],
)
def test_a_grid_without_meaning_is_refused_before_anything_is_trained(cache, tmp_path, grid, said):
    with pytest.raises(RecipeError, match=said):
        sweep(cache, grid, BASE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_there_is_refused(cache, tmp_path):
    with pytest.raises(RecipeError, match="--device tpu"):
        sweep(cache, {"seed": [1]}, BASE | {"device": "tpu"}, tmp_path)


# --- what a cell is ---


@pytest.fixture(scope="module")
def done(cache, tmp_path_factory):
    """Four cells from one worker: (folder, results)."""
    folder = tmp_path_factory.mktemp("done")
    return folder, sweep(cache, {"prompt_length": [1, 3], "seed": [1, 2]}, BASE, folder, workers=1)


def test_a_cell_is_the_run_that_fit_makes(cache, done):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = evaluate(fit(cache, TrainConfig(**BASE, prompt_length=3, seed=1)), cache)
    torch.set_num_threads(threads)
    assert json.loads(json.dumps(alone)) == done[1][2]["metrics"]


def test_two_workers_give_the_same_bits_as_one(cache, done, tmp_path):
    results = sweep(cache, {"prompt_length": [1, 3], "seed": [1, 2]}, BASE, tmp_path, workers=2)
    assert metrics_of(results) == metrics_of(done[1])
    assert [r["facts"]["final"] for r in results] == [r["facts"]["final"] for r in done[1]]


def test_stacked_cells_write_the_same_files_with_the_same_numbers_within_rounding(cache, done, tmp_path):
    grid = {"prompt_length": [1, 3], "seed": [1, 2]}
    results = sweep(cache, grid, BASE, tmp_path, workers=1, stack=2)
    assert set(written(tmp_path)) == set(written(done[0]))
    for a, b in zip(results, done[1], strict=True):
        assert a.keys() == b.keys()
        assert a["varied"] == b["varied"]
        assert a["facts"]["final"] == pytest.approx(b["facts"]["final"], rel=1e-4)
        assert sweeps.scores(a) == pytest.approx(sweeps.scores(b), abs=2e-2)
        assert a["metrics"]["zero_shot"] == b["metrics"]["zero_shot"]


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1, 1, 1, 1, 1, 1]), (2, [2, 1, 2, 1]), (8, [3, 3])], ids=["alone", "two", "all"]
)
def test_only_cells_of_one_shape_are_stacked(cache, most, sizes):
    cells = plan(cache, {"prompt_length": [1, 3], "lam": [0.1, 1.0, 3.0]}, BASE)
    stacks = list(cells_.stacks(cells, most))
    assert [len(members) for members in stacks] == sizes
    assert sorted(cell.key for members in stacks for cell in members) == sorted(cell.key for cell in cells)
    assert all(len({cell.config.prompt_length for cell in members}) == 1 for members in stacks)


def test_the_command_is_resumable_and_independent_of_workers(cli, cache, tmp_path, monkeypatch):
    """Here, where the two processes of the test above still wait for work."""
    monkeypatch.chdir(tmp_path)
    words = ["sweep", "--cache", cache.path, "--epochs", 2, "--prompt-lengths", "1,3", "--seeds", "1,2"]
    two = cli(*words, "--out", "two", "--workers", 2)
    assert two.status == 0, two.err
    cli(*words, "--out", "one", "--workers", 1)
    cells = {file.name: file for file in Path("two/cells").iterdir()}
    assert len(cells) == 4
    for name, file in cells.items():
        metrics = [json.loads(f.read_text())["metrics"] for f in (file, Path("one/cells") / name)]
        assert metrics[0] == metrics[1]
    before = written(Path("two"))
    next(iter(cells.values())).unlink()
    again = cli(*words, "--out", "two", "--workers", 1)
    assert again.status == 0
    changed = [name for name, when in written(Path("two")).items() if when != before[name]]
    assert changed == [next(iter(cells))], "only the missing cell runs again"
    assert {"sweep.json", "sweep.csv", "prompt_length.png"} <= {file.name for file in Path("two").iterdir()}
    assert "±" in again.out


# --- when a cell runs again ---


@pytest.mark.parametrize(
    "damage", [b"", b'{"varied": {"se', b"\xff\xfe\x00", b"[]", b'{"status": "ok"}', b"null"], ids=repr
)
def test_a_damaged_cell_file_runs_again_and_no_other(cache, done, tmp_path, damage):
    folder = shutil.copytree(done[0], tmp_path / "out")
    cells, before = plan(cache, {"prompt_length": [1, 3], "seed": [1, 2]}, BASE), written(folder)
    name = f"{cells[1].key}.json"
    (folder / "cells" / name).write_bytes(damage)
    results = sweep(cache, {"prompt_length": [1, 3], "seed": [1, 2]}, BASE, folder, workers=1)
    assert metrics_of(results) == metrics_of(done[1])
    assert [n for n, when in written(folder).items() if when != before[n]] == [name]


def test_another_table_makes_another_cell(cache, tmp_path):
    path = shutil.copytree(cache.path, tmp_path / "cache")
    before = plan(cache, {"seed": [1]}, BASE)[0].key
    assert plan(caches.open(path), {"seed": [1]}, BASE)[0].key == before, "the path is no part of a cell"
    for table in ("text/mined", "text/classname", "image/test"):
        changed = shutil.copytree(path, tmp_path / table.replace("/", "-"))
        shutil.rmtree(changed / table)
        with caches.create(changed, "synthetic", cache.class_names) as opened:
            labels = np.arange(clip_like.CLASSES)
            vectors = np.random.default_rng(1).normal(size=(clip_like.CLASSES, 1, clip_like.DIM))
            modality, split = table.split("/")
            spec = clip_like.spec(modality, weights="other")
            opened.add(modality, split, vectors.astype(np.float32), labels, encoder=spec)
        assert plan(caches.open(changed), {"seed": [1]}, BASE)[0].key != before, table


def test_a_failed_cell_is_recorded_stops_no_other_and_runs_again(cache, tmp_path):
    grid = {"lr": [1e-3, 1e30], "seed": [1]}
    for stack in (1, 2):
        results = sweep(cache, grid, BASE, tmp_path, workers=1, stack=stack)
        assert [r["status"] for r in results] == ["ok", "failed"]
        assert "lower lr (now 1e+30)" in results[1]["reason"]
    calls = []
    sweep(cache, grid, BASE, tmp_path, workers=1, progress=lambda *call: calls.append(call))
    assert calls == [(1, 2, "cells"), (2, 2, "cells")], "the good cell is kept"


def test_a_cell_that_cannot_be_built_does_not_fail_its_stack(tmp_path):
    """The encoder has no scale of its own, so "auto" has no meaning; a number beside it has."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 5)
    with caches.create(tmp_path / "cache", "arrays", ["a", "b", "c"]) as own:
        for split in ("train", "test"):
            own.add("image", split, rng.normal(size=(15, 16)).astype(np.float32), labels, encoder="mine")
        for name in ("mined", "vanilla", "classname"):
            own.add("text", name, rng.normal(size=(3, 16)).astype(np.float32), np.arange(3), encoder="mine")
    grid = {"logit_scale": ["auto", 10.0], "seed": [1, 2]}
    results = sweep(tmp_path / "cache", grid, BASE, tmp_path / "out", workers=1, stack=4)
    assert [r["status"] for r in results] == ["failed", "failed", "ok", "ok"]
    assert all("logit_scale is auto" in r["reason"] for r in results[:2])
    assert [r["facts"]["logit_scale"] for r in results[2:]] == [10.0, 10.0]


# --- what is shared ---


def test_cells_that_share_their_rows_load_them_once(cache, tmp_path, monkeypatch):
    loaded = []
    real = cells_.task
    monkeypatch.setattr(cells_, "task", lambda *a: loaded.append(a[1].shots) or real(*a))
    monkeypatch.setattr(cells_, "_kept", {})
    sweep(cache, {"shots": [1, 2], "seed": [1, 2, 3]}, BASE, tmp_path, workers=1)
    assert sorted(loaded) == [1, 2]


PARENT = """
import sys, spaner
base = {"heads": 4, "epochs": 3, "device": "cpu"}
spaner.sweep(sys.argv[1], {"seed": list(range(1, 400))}, base, sys.argv[2], workers=2)
"""


def children(pid: int) -> set[int]:
    """Processes below this one, at any depth."""
    found, todo = set(), [pid]
    while todo:
        for task in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
            new = {int(word) for word in task.read_text().split()} - found
            found |= new
            todo += new
    return found


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux to see who lives")
@pytest.mark.parametrize(
    "how", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL]
)
def test_a_killed_parent_leaves_no_worker_behind(cache, tmp_path, how):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(cache.path), str(tmp_path)], stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 300
        while not any((tmp_path / "cells").glob("*.json")):
            assert parent.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        workers = children(parent.pid)
        assert len(workers) >= 2
        parent.send_signal(how)
        parent.wait(60)
        deadline = time.monotonic() + 60
        while any(map(alive, workers)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not [pid for pid in workers if alive(pid)]
    finally:
        parent.kill()
        parent.wait()


class Dies:
    """What arrives with a cell and kills the worker, as the system does when memory is short."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


def test_a_dead_worker_is_one_line_and_finished_cells_stay(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(cells_, "frozen_result", lambda *_: Dies())
    with pytest.raises(RunError, match=r"a worker process .* died .* --workers 1"):
        sweep(cache, {"seed": [1, 2]}, BASE, tmp_path, workers=2)


# --- what is reported ---


def cell(text: float, seed: int, status: str = "ok", **varied: Any) -> dict[str, Any]:
    side = {"positive_cosine": text / 2, "margin": 0.1}
    metrics = {"text": {"accuracy": text, **side}, "semantic": {"accuracy": text - 0.1, **side}, "gap": 0.1}
    found = {"metrics": metrics} if status == "ok" else {"reason": "broke"}
    return {"varied": {**varied, "seed": seed}, "status": status, **found}


def test_summary_averages_over_repeats_and_counts_failures():
    accuracies = [0.5, 0.7, 0.61]
    results = [cell(a, seed, prompt_length=2) for seed, a in enumerate(accuracies)]
    results += [cell(0.0, 9, "failed", prompt_length=2), cell(0.4, 1, prompt_length=4)]
    results += [cell(0.0, 1, "failed", prompt_length=8)]
    two, four, eight = summary(results)
    assert two["prompt_length"] == 2
    assert (two["cells"], two["failed"]) == (3, 1)
    assert two["text"].value == pytest.approx(statistics.mean(accuracies))
    assert two["text"].std == pytest.approx(statistics.stdev(accuracies))
    assert two["semantic"].std == pytest.approx(np.std([0.4, 0.6, 0.51], ddof=1))
    assert four["text"] == Number(0.4)
    assert eight == {"prompt_length": 8, "cells": 0, "failed": 1}


def test_json_and_csv_hold_every_cell(cache, done):
    folder, results = done
    assert json.loads((folder / "sweep.json").read_text()) == results
    with (folder / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["prompt_length"], row["seed"], row["status"]) for row in rows] == [
        ("1", "1", "ok"),
        ("1", "2", "ok"),
        ("3", "1", "ok"),
        ("3", "2", "ok"),
    ]
    assert float(rows[3]["text"]) == results[3]["metrics"]["text"]["accuracy"]


def test_csv_of_a_failed_cell_leaves_its_numbers_empty(tmp_path):
    sweeps.write(tmp_path, [cell(0.0, 1, "failed", lam=1), cell(0.5, 2, lam=1)])
    failed, good = (tmp_path / "sweep.csv").read_text().splitlines()[1:]
    assert failed == "1,1,failed,,,,,,"
    assert good.startswith("1,2,ok,0.5,0.4")


def test_a_stack_too_large_for_the_memory_is_trained_cell_by_cell(cache, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(stacks._Program, "step", full)
    results = sweep(cache, {"seed": [1, 2]}, BASE, tmp_path, workers=1, stack=2)
    assert [result["status"] for result in results] == ["ok", "ok"]


def test_a_cell_too_large_for_the_memory_fails_and_says_what_to_lower(cache, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(step, "update", full)
    (result,) = sweep(cache, {"seed": [1]}, BASE, tmp_path, workers=1)
    assert result["status"] == "failed"
    assert "the memory of cpu is full; lower batch_size" in result["reason"]
