"""kill -9 at any moment: continuing ends bit-identical to an undisturbed run, in every file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed.py")


def killed(folder: Path, *arguments: str) -> int:
    """Run the script; the number of processes that were killed."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.parametrize(("name", "least"), [("cache", 3), ("cache.h5", 4)])
def test_killed_between_file_operations(tmp_path: Path, name: str, least: int):
    assert killed(tmp_path / "work", name, "every", "131") >= least


@pytest.mark.parametrize("name", ["cache", "cache.h5"])
def test_killed_at_random_moments(tmp_path: Path, name: str):
    assert killed(tmp_path / "work", name, "random", "8") >= 1


@pytest.mark.parametrize(("name", "least"), [("cache", 3), ("cache.h5", 4)])
def test_a_killed_copy_continues_and_never_looks_finished(tmp_path: Path, name: str, least: int):
    assert killed(tmp_path / "work", name, "every", "211", "copy") >= least


@pytest.mark.parametrize("name", ["cache", "cache.h5"])
def test_a_killed_merge_continues_and_never_looks_finished(tmp_path: Path, name: str):
    assert killed(tmp_path / "work", name, "every", "401", "merge") >= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cache", "cache.h5"])
def test_a_copy_killed_at_random_moments(tmp_path: Path, name: str):
    assert killed(tmp_path / "work", name, "random", "8", "copy") >= 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("cache", 250), ("cache.h5", 400)])
@pytest.mark.parametrize("what", ["make", "copy", "merge"])
def test_killed_at_every_single_file_operation(tmp_path: Path, name: str, least: int, what: str):
    assert killed(tmp_path / "work", name, "every", "1", what) >= least
