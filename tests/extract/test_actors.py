"""Actors of a two-node Ray cluster fill one cache: the bits of one process, whichever node or driver dies."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from spaner.errors import Mismatch
from spaner.extract import parts, shared
from spaner.extract.config import ExtractConfig
from spaner.extract.extract import extract
from spaner.head import QUIET, STORE_BYTES
from tests.extract.test_killed_extraction import bytes_of
from tests.extract.test_parts import DIGITS, neighbours, wait_for

pytest.importorskip("ray", reason="the extra ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default::ResourceWarning")]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of the embedded scans."""
    path = tmp_path_factory.mktemp("digits") / "cache"
    extract(**DIGITS, cache=path)
    return path


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head with one processor; its address is where commands join."""
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    each = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args=each)
    yield found
    found.shutdown()


def another(nodes: Any) -> Any:
    node = nodes.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    nodes.wait_for_nodes()
    return node


@pytest.mark.parametrize("seed", [1, 2])
def test_a_node_that_dies_leaves_its_parts_to_the_others(
    seed: int, nodes: Any, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    node, cache, told, removed = another(nodes), tmp_path / "cache", [], []
    after = random.Random(seed).randrange(1, 400)

    def kill(done: int, total: int, what: str) -> None:
        told.append((done, total, what))
        if what == "image/test" and done >= after and not removed:
            removed.append(node)
            nodes.remove_node(node, allow_graceful=False)

    summary = extract(**DIGITS, cache=cache, on=f"ray:{nodes.address}", progress=kill)
    assert removed
    assert capfd.readouterr().out == ""  # Ray tells the results' stream of it
    assert bytes_of(cache) == bytes_of(digits)
    assert neighbours(cache) == []
    assert {table.name: table.rows for table in summary.tables}["image/test"] == 997
    assert max(done for done, _, what in told if what == "image/test") == 997


@pytest.mark.parametrize("seed", [1, 2])
def test_a_driver_that_dies_is_continued_by_the_same_command(
    seed: int, nodes: Any, digits: Path, tmp_path: Path
) -> None:
    another(nodes)
    cache, on = tmp_path / "cache", f"ray:{nodes.address}"
    words = parts.line(ExtractConfig(**DIGITS, cache=cache), 0, 1).replace("--part 1/1", f"--on {on}")
    driver = subprocess.Popen([sys.executable, "-m", *words.split()], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: bool(list((cache / "image/test/done").glob("c.*"))))
    time.sleep(random.Random(seed).random())
    driver.kill()
    driver.communicate()
    assert neighbours(cache), "it had ended"
    again = subprocess.run([sys.executable, "-m", *words.split()], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert bytes_of(cache) == bytes_of(digits)
    assert neighbours(cache) == []


def test_an_actor_that_is_killed_costs_its_chunk_in_flight(nodes: Any, digits: Path, tmp_path: Path) -> None:
    another(nodes)
    told: list[tuple[int, int, str]] = []
    killed: list[int] = []

    def kill(done: int, total: int, what: str) -> None:
        told.append((done, total, what))
        if what == "image/test" and not killed and (fillers := processes_of_actors()):
            killed.append(fillers[0])
            os.kill(killed[0], signal.SIGKILL)

    summary = extract(
        **DIGITS, cache=tmp_path / "there", on=f"ray:{nodes.address}", processes=2, progress=kill
    )
    assert len(killed) == 1
    assert bytes_of(tmp_path / "there") == bytes_of(digits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]
    rows = {table.name: table.rows for table in summary.tables}
    assert rows == {"image/test": 997, "text/vanilla": 10, "text/classname": 10}
    assert max(done for done, _, what in told if what == "image/test") == 997


def processes_of_actors() -> list[int]:
    """Of the actors of this machine that are alive."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"ray::Holder" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def test_other_weights_on_a_node_are_one_line(nodes: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shared.prepared(ExtractConfig(**DIGITS, cache=cache), 4)
    manifest = cache / "image/test/zarr.json"
    plain = manifest.read_text()
    weights = json.loads(plain)["attributes"]["manifest"]["encoder"]["weights_sha256"]
    manifest.write_text(plain.replace(weights, "0" * 64))
    with pytest.raises(Mismatch, match=r"node .*: image/test .* filled by another encoder: weights_sha256"):
        extract(**DIGITS, cache=cache, on=f"ray:{nodes.address}")
