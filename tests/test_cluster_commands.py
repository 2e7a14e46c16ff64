"""Commands on a Ray cluster, each a process of its own: caches in S3, several caches, a part that kills."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spaner.cluster import joined
from spaner.errors import RunError
from spaner.extract import actors, parts
from spaner.extract.config import ExtractConfig
from spaner.extract.extract import extract
from spaner.extract.fleet import Tally
from spaner.head import QUIET, STORE_BYTES
from tests.conftest import make_toy_cache
from tests.extract.test_killed_extraction import bytes_of
from tests.s3_server import S3Server

ray = pytest.importorskip("ray", reason="the extra ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default::ResourceWarning")]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where a head with two processors is; nobody has joined it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        each = {"num_cpus": 2, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        found = Cluster(initialize_head=True, head_node_args=each)
        yield str(found.address)
        found.shutdown()


def run(*words: object) -> str:
    """A command as typed; what it prints."""
    line = [sys.executable, "-m", "spaner", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_cache_in_s3_is_filled_and_swept_by_nodes(address: str, s3: S3Server, tmp_path: Path) -> None:
    """Nodes get the credentials and the server's name from who typed the command."""
    place, on = f"{s3.bucket}/made/cache", ("--on", f"ray:{address}")
    for modality in ("image", "text"):
        run("extract", "--dataset", "digits", "--modality", modality, "--cache", place, *on, "--processes", 2)
        extract(dataset="digits", modality=modality, cache=tmp_path / "cache")
    objects = s3.contents(place)
    assert {f"cache/{name}": data for name, data in bytes_of(tmp_path / "cache").items()} == objects
    cells = ["--method", "gda", "--shots", "1,2", "--json"]
    there = json.loads(run("sweep", "--cache", place, *cells, "--out", tmp_path / "there", *on))
    here = json.loads(run("sweep", "--cache", tmp_path / "cache", *cells, "--out", tmp_path / "here"))
    assert [cell["metrics"] for cell in there] == [cell["metrics"] for cell in here]
    quick = ["--dataset", "digits", "--cache", place, "--seeds", 1, "--epochs", 1, "--out", tmp_path / "fig7"]
    assert "Figure 7" in run("reproduce", "fig7", *quick, *on)
    assert jobs(address, "reproduce") == 1


def jobs(address: str, word: str) -> int:
    """How often a command whose line has this word has joined the cluster."""
    told = ray._raylet.GcsClient(address=address).get_all_job_info().values()
    return sum(f" {word} " in job.entrypoint for job in told)


def test_several_caches_join_the_cluster_once_and_finished_cells_never(address: str, tmp_path: Path) -> None:
    line: list[object] = ["compare", "--methods", "zero_shot,gda", "--shots", 1, "--seeds", 1, "--json"]
    for i, name in enumerate(("one", "two")):
        make_toy_cache(tmp_path / name, classes=5 + i)
        line += ["--cache", tmp_path / name]
    line += ["--out", tmp_path / "compare", "--on", f"ray:{address}"]
    first = run(*line)
    assert jobs(address, "compare") == 1
    assert run(*line) == first
    assert jobs(address, "compare") == 1


def deadly() -> type:
    """An actor's hand that dies whenever it is to fill a part."""

    class Deadly:
        def __init__(self, config: Any) -> None: ...

        def ready(self) -> None: ...

        def told(self) -> dict[str, int]:
            return {}

        def fill(self, cache: Path, share: tuple[int, int]) -> dict[str, int]:
            import os

            os._exit(9)

    return Deadly


def test_a_part_whose_actor_always_dies_is_named_with_its_line(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: Callable[..., None]
) -> None:
    monkeypatch.setattr(actors, "Hand", deadly())
    config = ExtractConfig(dataset="digits", modality="text", cache=tmp_path / "cache", on=f"ray:{address}")
    planned, found = parts.placed(
        ExtractConfig(dataset="digits", modality="text", cache=tmp_path / "cache"), 2
    )
    line = parts.line(planned, 0, 2)
    with joined(f"ray:{address}") as cluster:
        crew = actors.Crew(cluster, replace(config, on=f"ray:{address}"), cluster.slot("cpu"), 1)
        with pytest.raises(RunError) as refused:
            crew.fill(found, [0], Tally(parts.sizes(found), progress))
        crew.stop()
    said = str(refused.value)
    assert said.startswith("the actor of part 1 of 2 died 3 times in a row (")
    assert "\n" not in said
    assert line == f"spaner extract --dataset digits --modality text --cache {tmp_path / 'cache'} --part 1/2"
    assert said.endswith(f", or `{line}` to look at this part alone")
    assert len(crew.actors) == 0, "the last one that died was the third"


@pytest.fixture
def progress() -> Callable[..., None]:
    return lambda done, total, what: None
