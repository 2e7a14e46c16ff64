"""kill -9 at several moments of a real process; the same command again ends bit-identical."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import spaner.cache
from spaner.errors import Unsealed
from spaner.extract.extract import extract
from tests.extract.conftest import fill_folder

SERVER = """
import os, sys, time
import spaner.extract.encoders.clip, spaner.extract.datasets.folder, spaner.extract.extract
from spaner.errors import SpanerError

for line in sys.stdin:  # importing torch takes seconds, so one process imports and each run is a fork of it
    photos, model, cache = line.rstrip("\\n").split("|")
    go, announced = os.pipe()
    if child := os.fork():
        print("pid", child, flush=True)
        os.write(announced, b"!")
        print("end", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.read(go, 1)
    settings = dict(dataset="folder:" + photos, model=model, cache=cache, pretrained="random")
    settings |= dict(chunk_rows=3, batch_size=2, templates=("classname",))
    # a fast machine must not be through before it is killed
    settings["progress"] = lambda done, total, what: (print(what, done, flush=True), time.sleep(0.005))
    try:
        spaner.extract.extract.extract(**settings)
    except SpanerError as error:
        print(error, flush=True)
        os._exit(1)
    os._exit(0)
"""


class Server:
    """Starts extractions as processes of their own."""

    def __init__(self, photos: Path, model: Path) -> None:
        self.photos, self.model = photos, model
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def start(self, cache: Path) -> int:
        """Begin a run; its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{self.photos}|{self.model}|{cache}\n")
        self.process.stdin.flush()
        return int(self.line().removeprefix("pid "))

    def line(self) -> str:
        """What the server or a run prints next."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def end(self) -> tuple[int, str]:
        """Wait for the run: its exit status and its last line."""
        before = ""
        while not (line := self.line()).startswith("end "):
            before = line
        return int(line.removeprefix("end ")), before


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kill")
    for c, name in enumerate(("ant", "bee")):
        fill_folder(root / "photos" / "train" / name, 25, 100 * c)
    return root / "photos"


@pytest.fixture(scope="module")
def server(photos: Path, tiny_model: Path) -> Iterator[Server]:
    server = Server(photos, tiny_model)
    yield server
    server.process.communicate()


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_kill_9_at_several_moments_and_continue(server: Server, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    server.start(whole)
    assert server.end()[0] == 0
    for batches in (1, 4, 9, 14):  # each run is killed a moment after it has finished so many batches
        process = server.start(parts)
        for _ in range(batches):
            assert not server.line().startswith("end"), "the run was through before it could be killed"
        time.sleep(0.002 * batches)
        os.kill(process, signal.SIGKILL)
        assert server.end()[0] == -signal.SIGKILL
    with pytest.raises(Unsealed):
        spaner.cache.open(parts)
    server.start(parts)
    assert server.end()[0] == 0
    assert bytes_of(parts) == bytes_of(whole)


def test_a_second_extraction_refuses_while_the_first_lives(server: Server, tmp_path: Path) -> None:
    refused: list[tuple[int, str]] = []

    def second(done: int, total: int, what: str) -> None:
        if not refused:
            server.start(tmp_path / "c")
            refused.append(server.end())

    settings: dict[str, Any] = {
        "dataset": f"folder:{server.photos}",
        "model": str(server.model),
        "pretrained": "random",
    }
    extract(**settings, cache=tmp_path / "c", chunk_rows=3, templates=(), progress=second)
    (status, line), *_ = refused
    assert status == 1
    assert "is being written" in line
