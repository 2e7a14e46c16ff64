"""Many processes fill one cache: bit-identical to one, whatever dies, in whatever order."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

import spaner.cache
from spaner.cache.lock import Lock, lock_path
from spaner.errors import Busy, CacheError, Mismatch, RecipeError, RunError, Unsealed
from spaner.extract import fleet, parts, shared
from spaner.extract.config import ExtractConfig
from spaner.extract.extract import extract
from tests.extract.conftest import fill_folder
from tests.extract.test_killed_extraction import bytes_of
from tests.s3_server import S3Server

SMALL: dict[str, Any] = {"pretrained": "random", "chunk_rows": 3, "batch_size": 2}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parts") / "photos"
    for c, name in enumerate(("ant", "bee")):
        fill_folder(root / "train" / name, 19, 100 * c)
        fill_folder(root / "test" / name, 5, 1000 + 100 * c)
    (root / "train" / "bee" / "7.jpg").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def settings(photos: Path, tiny_model: Path) -> dict[str, Any]:
    return {"dataset": f"folder:{photos}", "model": str(tiny_model), "max_failed": 0.2, **SMALL}


@pytest.fixture(scope="module")
def whole(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes."""
    path = tmp_path_factory.mktemp("whole") / "cache"
    extract(**settings, cache=path)
    return path


def neighbours(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.parent.iterdir() if path != cache)


@pytest.mark.parametrize("order", [[1, 2, 3], [3, 1, 2]])
def test_parts_in_any_order_are_one_process(
    order: list[int], settings: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    for number in order:
        assert not cache.exists() or spaner.cache.create(cache, "photos", ["ant", "bee"]).unsealed()
        summary = extract(**settings, cache=cache, part=f"{number}/3")
    assert bytes_of(cache) == bytes_of(whole)
    assert neighbours(cache) == []
    assert summary.notes == []
    assert {table.name: table.rows for table in summary.tables}["image/train"] < 38


@pytest.mark.slow
def test_a_lost_part_is_named_with_the_line_that_runs_it(
    settings: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    extract(**settings, cache=cache, part="1/3")
    notes = extract(**settings, cache=cache, part="3/3").notes
    assert len(notes) == 1
    assert notes[0].startswith("part 2 of 3 has 5 chunks left and nobody works on it; type `spaner extract")
    line = notes[0].split("`")[1]
    words = line.split()
    assert words[-2:] == ["--part", "2/3"] or "--part 2/3" in line
    assert f"--cache {cache}" in line
    assert subprocess.run([sys.executable, "-m", *words], capture_output=True).returncode == 0
    assert bytes_of(cache) == bytes_of(whole)


def test_who_joins_lists_nothing(
    settings: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    extract(**settings, cache=cache, part="1/2")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the data set was listed again")

    monkeypatch.setattr("spaner.extract.plan.read", refuse)
    extract(**settings, cache=cache, part="2/2")
    assert bytes_of(cache) == bytes_of(whole)


def test_a_data_set_without_files_is_read_by_every_part(tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"dataset": "digits", "modality": "audio", "chunk_rows": 16, "splits": ("test",)}
    extract(**chosen, cache=tmp_path / "whole")
    for number in (2, 1):
        extract(**chosen, cache=tmp_path / "cache", part=f"{number}/2")
    assert bytes_of(tmp_path / "cache") == bytes_of(tmp_path / "whole")


def test_hdf5_is_published_by_who_is_last(settings: dict[str, Any], tmp_path: Path) -> None:
    for number in (1, 2):
        extract(**settings, cache=tmp_path / "c.h5", part=f"{number}/2")
    extract(**settings, cache=tmp_path / "whole.h5")
    assert (tmp_path / "c.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert neighbours(tmp_path / "c.h5") == ["whole.h5"]


def test_one_process_continues_what_parts_began(
    settings: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    extract(**settings, cache=tmp_path / "cache", part="2/3")
    extract(**settings, cache=tmp_path / "cache")
    assert bytes_of(tmp_path / "cache") == bytes_of(whole)


# -- a driver and its workers --------------------------------------------------------------------


def workers_of(driver: int) -> list[int]:
    """Process numbers of a driver's workers."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == driver and b"spaner.extract.fleet" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (OSError, ValueError):  # it has just ended
            continue
    return found


DIGITS: dict[str, Any] = {"dataset": "digits", "modality": "image", "splits": ("test",), "chunk_rows": 37}
DIGITS |= {"batch_size": 8, "templates": ("vanilla", "classname")}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of the embedded scans."""
    path = tmp_path_factory.mktemp("digits") / "cache"
    extract(**DIGITS, cache=path)
    return path


@pytest.mark.slow
def test_processes_are_one_process_although_one_is_killed(digits: Path, tmp_path: Path) -> None:
    killed, seen = [], []

    def kill(done: int, total: int, what: str) -> None:
        seen.append((done, total, what))
        if not killed and len(seen) == 5:
            killed.extend(workers_of(os.getpid())[:1])
            os.kill(killed[0], signal.SIGKILL)

    summary = extract(**DIGITS, cache=tmp_path / "cache", processes=2, progress=kill)
    assert len(killed) == 1
    assert bytes_of(tmp_path / "cache") == bytes_of(digits)
    assert neighbours(tmp_path / "cache") == []
    rows = {table.name: table.rows for table in summary.tables}
    assert rows == {"image/test": 997, "text/vanilla": 10, "text/classname": 10}
    assert max(done for done, _, what in seen if what == "image/test") == 997


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_workers_and_driver_may_die_at_random_moments(seed: int, digits: Path, tmp_path: Path) -> None:
    rng, cache = random.Random(seed), tmp_path / "cache"
    words = parts.line(ExtractConfig(**DIGITS, cache=cache), 0, 2).replace("--part 1/2", "--devices cpu,cpu")
    for _ in range(2):
        driver = subprocess.Popen([sys.executable, "-m", *words.split()], stderr=subprocess.PIPE, text=True)
        wait_for(lambda: bool(list((cache / "image/test/done").glob("c.*"))))
        for _ in range(rng.randrange(3)):
            time.sleep(rng.random())
            for victim in workers_of(driver.pid)[:1]:
                os.kill(victim, signal.SIGKILL)
        time.sleep(rng.random())
        workers = workers_of(driver.pid)
        driver.kill()
        driver.communicate()
        wait_for(lambda gone=tuple(workers): not any(Path(f"/proc/{each}").exists() for each in gone))
    extract(**DIGITS, cache=cache, devices=("cpu", "cpu"))
    assert bytes_of(cache) == bytes_of(digits)
    assert neighbours(cache) == []


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def test_a_worker_that_dies_again_and_again_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "COMMAND", [sys.executable, "-c", "raise SystemExit('no memory left')"])
    with pytest.raises(RunError, match=r"worker 1 of 1 died 3 times in a row \(status 1: no memory left\)"):
        extract(**DIGITS, cache=tmp_path / "cache", processes=1)


DIES_IN_THE_SECOND_CHUNK = """
import json, sys, pathlib
told = json.loads(sys.stdin.readline())
count = pathlib.Path(told["cache"] + ".lives")
lives = len(count.read_text()) if count.exists() else 0
count.write_text("x" * (lives + 1))
if lives > 30:
    raise SystemExit(0)
for done in ((8, 37, 45) if lives < 2 else (45, 53) if lives < 4 else (45,)):
    print(json.dumps({"done": done, "what": "image/test"}), flush=True)
raise SystemExit("no memory left")
"""


def test_a_batch_that_was_finished_before_is_no_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "COMMAND", [sys.executable, "-c", DIES_IN_THE_SECOND_CHUNK])
    with pytest.raises(RunError, match=r"worker 1 of 1 died 3 times in a row \(status 1: no memory left\)"):
        extract(**DIGITS, cache=tmp_path / "cache", processes=1)
    # two lives to row 45, two more to row 53, one that came no further
    assert len((tmp_path / "cache.lives").read_text()) == 5


@pytest.mark.slow
def test_what_a_worker_refuses_is_the_drivers_line(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shared.prepared(ExtractConfig(**DIGITS, cache=cache), 1)
    manifest = cache / "image/test/zarr.json"
    manifest.write_text(manifest.read_text().replace('"precision": "float32"', '"precision": "float64"'))
    with pytest.raises(Mismatch, match=r"filled by another encoder: precision 'float64' there, 'float32'"):
        extract(**DIGITS, cache=cache, processes=1)


# -- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"part": "5/4"}, "--part 5/4: expected I/N with I from 1 to N; type for example `--part 1/4`"),
        ({"part": "0/4"}, "--part 0/4: expected I/N"),
        ({"part": "two"}, "--part two: expected I/N"),
        ({"part": "1/4", "processes": 2}, "--part and --processes were given; expected one of them"),
        ({"part": "1/4", "cache": None}, "--part 1/4 without --cache; parts meet there"),
        ({"part": "1/4", "overwrite": True}, "--part 1/4 with --overwrite: every part would begin anew"),
        ({"processes": 0}, "--processes 0: expected at least 1"),
        ({"devices": ()}, "--devices: expected at least one"),
        (
            {"devices": ("cpu", "cuda:99")},
            "--devices cpu,cuda:99: this machine has no cuda:99;",
        ),
    ],
)
def test_options_that_cannot_be(given: dict[str, Any], line: str, tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"dataset": "digits", "cache": tmp_path / "cache", **given}
    with pytest.raises(RecipeError) as refused:
        extract(**chosen)
    assert str(refused.value).startswith(line)
    assert not (tmp_path / "cache").exists()


def test_another_number_of_parts_is_refused_while_one_is_at_work(
    settings: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    extract(**settings, cache=cache, part="1/3")
    with (
        Lock(lock_path(cache, "part.1-of-3"), "part 2 of 3"),
        pytest.raises(Busy, match=r"is being filled in 3 parts, asked for 2; type `--part I/3`"),
    ):
        extract(**settings, cache=cache, part="1/2")
    extract(**settings, cache=cache, part="1/2")  # nobody is at work: shared out anew
    extract(**settings, cache=cache, part="2/2")
    assert bytes_of(cache) == bytes_of(whole)


def test_parts_fill_a_cache_at_an_address(
    settings: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    address = "memory://parts/cache"
    first = extract(**settings, cache=address, part="2/2")
    assert f"--cache {address} " in first.notes[-1]
    assert "--part 1/2" in first.notes[-1]
    with pytest.raises(Unsealed):
        spaner.cache.open(address)
    extract(**settings, cache=address, part="1/2")
    spaner.cache.copy(address, tmp_path / "cache")
    assert bytes_of(tmp_path / "cache") == bytes_of(whole)
    beside = fsspec.filesystem("memory").ls("/parts", detail=False)
    assert beside == ["/parts/cache"]  # plan and claims are gone
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [30, 60, 90])
def test_processes_fill_a_cache_in_s3_although_all_are_killed(
    number: int, digits: Path, tmp_path: Path, s3: S3Server
) -> None:
    address = f"{s3.bucket}/made/cache"
    words = ["extract", "--dataset", "digits", "--modality", "text", "--cache", address, "--chunk-rows", "3"]
    line = [sys.executable, "-m", "spaner", *words, "--processes", "2"]
    child = subprocess.Popen(line, start_new_session=True)

    def kill(method: str, _path: str) -> None:
        if method == "PUT" and len(s3.asked("PUT")) >= number and child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)

    s3.fault = kill
    assert child.wait(120) == -signal.SIGKILL
    s3.forget()
    with pytest.raises(CacheError):
        spaner.cache.open(address).table("text/classname")
    subprocess.run(line, check=True)
    spaner.cache.copy(address, tmp_path / "cache")
    extract(dataset="digits", modality="text", chunk_rows=3, cache=tmp_path / "whole")
    assert bytes_of(tmp_path / "cache") == bytes_of(tmp_path / "whole")
    assert not [name for name in s3.contents(address) if name.startswith(".")]


def test_a_part_has_one_worker(settings: dict[str, Any], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with (
        Lock(lock_path(cache, "part.0-of-3"), "part 1 of 3"),
        pytest.raises(Busy, match=r"part 1 of 3 of .*cache is being written by process"),
    ):
        extract(**settings, cache=cache, part="1/3")


def test_a_part_with_other_settings_weights_or_version_is_refused(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    extract(**settings, cache=cache, part="1/3")
    larger: dict[str, Any] = settings | {"batch_size": 4}
    with pytest.raises(Mismatch, match=r"is being filled with --batch-size 2, asked for 4; give every part"):
        extract(**larger, cache=cache, part="2/3")
    manifest = cache / "image/train/zarr.json"
    plain = manifest.read_text()
    told = json.loads(plain)
    weights = told["attributes"]["manifest"]["encoder"]["weights_sha256"]
    manifest.write_text(plain.replace(weights, "0" * 64))
    with pytest.raises(Mismatch, match=r"filled by another encoder: weights_sha256 '0000.*' there, '"):
        extract(**settings, cache=cache, part="2/3")
    manifest.write_text(plain)
    monkeypatch.setattr("spaner.__version__", "9.9")
    with pytest.raises(Mismatch, match=r"was planned by spaner .*, this is 9.9; use one version in all"):
        extract(**settings, cache=cache, part="2/3")
