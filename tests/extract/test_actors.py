"""Actors of a two-node Ray cluster fill one cache: the bits of one process, whichever node or driver dies."""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spaner.cluster import QUIET, STORE_BYTES
from spaner.extract import parts
from spaner.extract.config import ExtractConfig
from spaner.extract.extract import extract
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
    seed: int, nodes: Any, digits: Path, tmp_path: Path
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
