"""The page about machine and data tells the truth, and a line that mends each problem."""

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

import spaner.cache
from spaner.cache import Manifest
from spaner.cache.survey import survey
from spaner.cli import doctor
from spaner.extract.datasets.dataset import LOOKED_FOR, roots
from tests.conftest import Outcome, made_up_spec

VIEWS = ("table", "strokes", "path", "speech", "morse")
PARTS = {"train": 700, "test": 997}


@pytest.fixture
def here(tmp_path: Path, toy_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with one sound cache."""
    shutil.copytree(toy_cache, tmp_path / "cache" / "toy")
    monkeypatch.chdir(tmp_path)
    for name in ("IMAGENET_ROOT", "ESC50_ROOT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def flip(cache: Path) -> None:
    chunk = cache / "image" / "test" / "features" / "c.0.0.0"
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(data)


def unfinish(path: Path) -> None:
    """One more table, begun and left."""
    with spaner.cache.create(path, "toy", [f"class {i}" for i in range(11)]) as cache:
        ids = [str(i) for i in range(5)]
        manifest = Manifest(
            "toy",
            "audio",
            "test",
            5,
            ("whole",),
            3,
            "float32",
            5,
            made_up_spec("audio", 3),
            0,
            spaner.cache.ids_sha256(ids),
        )
        with cache.begin(manifest, ids, np.arange(5)):
            pass


def test_data_sets_are_counted_by_split_or_say_what_to_type(here: Path) -> None:
    found = {root.name: root for root in roots()}
    assert list(found) == list(LOOKED_FOR)
    digits = found.pop("digits")
    assert digits.classes == 10
    scans = {f"{name}/{part}": rows for name in ("image", *VIEWS) for part, rows in PARTS.items()}
    assert digits.splits == scans | {"audio/train": 320, "audio/test": 320}
    assert digits.problem is None
    for name, root in found.items():
        assert root.problem, name
        assert "--data-root PATH" in root.problem
        assert not root.splits


def test_a_data_set_is_found_where_its_variable_points(
    here: Path, sample_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESC50_ROOT", str(sample_data / "esc50_sample"))
    found = {root.name: root for root in roots()}["esc50"]
    assert found.problem is None
    assert sum(found.splits.values()) >= 5


def test_caches_sealed_unfinished_and_damaged(here: Path) -> None:
    for name in ("flipped", "begun"):
        shutil.copytree("cache/toy", f"cache/{name}")
    flip(Path("cache/flipped"))
    unfinish(Path("cache/begun"))
    spaner.cache.copy(Path("cache/toy"), Path("cache/toy.h5"))
    Path("cache/notes").mkdir()
    found = {each.path.name: each for each in survey(Path("cache"))}
    assert list(found) == ["begun", "flipped", "toy", "toy.h5"]
    assert {each.verified for each in found.values()} == {None}
    assert found["toy"].tables == found["toy.h5"].tables
    assert found["toy"].tables["image/test"] == 11 * 13
    assert found["begun"].unsealed == ["audio/test"]
    (line,) = found["begun"].problems
    assert "0 of 5 rows" in line
    assert "run the same `spaner extract` again" in line
    looked = {each.path.name: each for each in survey(Path("cache"), verify=True)}
    assert [looked[name].verified for name in ("toy", "toy.h5", "flipped")] == [True, True, False]
    (line,) = looked["flipped"].problems
    assert "image/test" in line
    assert line.endswith("type `spaner cache repair cache/flipped`")


def test_what_is_no_cache_any_more_is_a_finding(here: Path) -> None:
    Path("cache/cut.h5").write_bytes(b"spaner")
    (Path("cache") / "empty").mkdir()
    Path("cache/empty/zarr.json").write_text("{}")
    found = {each.path.name: each for each in survey(Path("cache"))}
    assert all(found[name].problems and not found[name].tables for name in ("cut.h5", "empty"))
    assert survey(Path("nowhere")) == []


def test_the_page_names_machine_data_caches_and_what_to_mend(here: Path, cli: Callable[..., Outcome]) -> None:
    unfinish(Path("cache/toy"))
    done = cli("doctor", "--verify")
    assert done.status == 0, done.err
    for said in (
        f"torch {version('torch')}",
        f"{torch.get_num_threads()} threads",
        "precision: extraction",
        "image/train 700",
        "cache/toy",
        "free disk",
        "ImageNet not found at data/imagenet",
        "run the same `spaner extract` again",
    ):
        assert said in done.out, said


def test_json_has_it_all(here: Path, cli: Callable[..., Outcome]) -> None:
    page = json.loads(cli("doctor", "--json").out)
    assert page["packages"]["torch"] == version("torch")
    assert page["free_bytes"] > 0
    assert [cache["path"] for cache in page["caches"]] == ["cache/toy"]
    assert page["machine"]["extract_precision"] in ("float32", "bfloat16", "float16")
    assert all(isinstance(line, str) and ";" in line for line in page["problems"])


def test_no_cache_a_full_disk_and_too_many_threads(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_FREE", 10**18)
    before = torch.get_num_threads()
    torch.set_num_threads(97)
    try:
        problems = doctor.examine(Path("nowhere"))["problems"]
    finally:
        torch.set_num_threads(before)
    assert any("no cache in nowhere; type `spaner extract --dataset digits`" in line for line in problems)
    assert any("wants 1e+06 TB; free some" in line for line in problems)
    assert any("97 threads on" in line and "export OMP_NUM_THREADS=" in line for line in problems)


def test_a_package_that_does_not_import_says_how_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", {"torchaudio": "torchaudio_is_not_here", "numpy": "numpy"})
    versions, broken = doctor.installed()
    assert list(broken) == ["torchaudio"]
    assert "does not import (No module named" in broken["torchaudio"]
    assert "pip install --force-reinstall spaner" in broken["torchaudio"]
    assert versions["numpy"] == np.__version__
