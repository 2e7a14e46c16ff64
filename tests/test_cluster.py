"""Work on a Ray cluster of this machine: the same bits, whatever dies, and one line where it cannot be."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spaner import cluster, head
from spaner.align.paper.reproduce import Setup, reproduce
from spaner.align.train import compare as comparing
from spaner.align.train.sweep import sweep
from spaner.cluster import Cluster, Slot, check_seen, joined
from spaner.errors import Mismatch, RecipeError, RunError
from spaner.extract import actors
from spaner.extract.extract import extract
from tests.extract.test_killed_extraction import bytes_of

pytest.importorskip("ray", reason="the extra ray")

TRAINED: dict[str, Any] = {"heads": 4, "epochs": 1, "batch_size": 32, "device": "cpu"}
CLOSED: dict[str, Any] = {"method": "gda", "device": "cpu"}
"""Solved at once, and without the optimiser for which torch imports its compiler in every process."""
ON = "ray:local"


# --- no cluster ---


@pytest.mark.parametrize("on", ["spark", "ray:", "ray:host", "ray:host:port", "ray:ray://host:1", "rays"])
def test_an_address_is_ray_or_a_host_with_a_port(on: str) -> None:
    if on == "ray:":
        assert head.address_of(on) == "auto"
        return
    with pytest.raises(RecipeError, match=rf"--on {on}: expected ray, ray:HOST:PORT or ray:local"):
        head.address_of(on)


def test_a_cluster_that_is_not_there_is_one_line_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(RecipeError, match=r"no Ray cluster to join \(.*refused\); .*type `ray start --head`"):
        refused("ray:127.0.0.1:1")
    assert time.monotonic() - began < 60, "Ray waits for two minutes"


def test_what_listens_there_but_is_no_cluster_is_one_line() -> None:
    def answer(server: socket.socket) -> None:
        with server.accept()[0] as line:
            line.sendall(b"HTTP/1.1 400")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, args=(server,), daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(RecipeError, match=f"what listens at {address} is not Ray's head"):
            refused(f"ray:{address}")


def test_without_ray_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RecipeError, match=r'Ray is not installed; type: pip install "spaner\[ray\]"'):
        refused("ray")


def refused(on: str) -> None:
    with joined(on):
        raise AssertionError("it joined")


# --- one small cluster ---


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Cluster]:
    """Every command below finds itself part of it. It has two processors, and sweeps take one of them: one
    process imports torch for all, and who kills it comes last. Ray would give its processes a tenth of a core
    that is busy with other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 2}')
        patch.setenv("RAY_worker_niceness", "0")
        with joined(ON) as found:
            yield found


def metrics_of(results: list[dict[str, Any]]) -> list[Any]:
    return [(result["varied"], result["status"], result.get("metrics")) for result in results]


@pytest.mark.parametrize(
    ("base", "grid"),
    [
        (CLOSED, {"shots": [2, 4], "draw_seed": [1]}),
        pytest.param(TRAINED, {"prompt_length": [1, 2], "seed": [1]}, marks=pytest.mark.slow),
    ],
    ids=["closed", "trained"],
)
def test_a_sweep_gives_the_bits_of_this_machine(
    base: dict[str, Any], grid: dict[str, list[int]], ray_cluster: Cluster, toy_cache: Path, tmp_path: Path
) -> None:
    told: list[int] = []
    here = sweep(toy_cache, grid, base, tmp_path / "here", workers=1)
    there = sweep(
        toy_cache, grid, base, tmp_path / "there", on=ON, workers=1, progress=lambda n, *_: told.append(n)
    )
    assert metrics_of(there) == metrics_of(here)
    assert told == [0, 1, 2]
    names = [
        sorted(file.name for file in (tmp_path / each / "cells").iterdir()) for each in ("here", "there")
    ]
    assert names[0] == names[1]


def test_a_node_without_spaner_can_say_so(ray_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = ray_cluster.ray.cloudpickle.dumps(cluster._sides("0.1")[0])
    monkeypatch.setitem(sys.modules, "spaner", None)
    told = ray_cluster.ray.cloudpickle.loads(sent)(b"")
    assert "has no spaner, the command is of spaner 0.1; install one version" in told["error"]


def test_a_node_with_another_version_is_one_line(
    ray_cluster: Cluster, toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spaner.__version__", "9.9")
    said = r"node .* has spaner 0\..*, the command is of spaner 9.9; install one version on all nodes"
    with pytest.raises(Mismatch, match=said):
        sweep(toy_cache, {"seed": [1]}, CLOSED, tmp_path, on=ON)


def test_a_cluster_that_has_ended_is_one_line(ray_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_cluster.check_there()
    monkeypatch.setattr(cluster, "TRIES", 1)
    monkeypatch.setattr(ray_cluster, "address", "127.0.0.1:1")
    said = r"^--on ray:local: the cluster at 127.0.0.1:1 has ended; what was finished is kept; start it again"
    with pytest.raises(RunError, match=said):
        ray_cluster.check_there()


JOIN = "import sys; from spaner.cluster import joined; joined(sys.argv[1]).__enter__()"


@pytest.mark.parametrize(
    ("token", "said"),
    [("0" * 40, "this machine has another"), pytest.param(None, "none was shown", marks=pytest.mark.slow)],
)
def test_a_cluster_that_asks_for_another_token_is_one_line(
    token: str | None, said: str, ray_cluster: Cluster, tmp_path: Path
) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment = kept | {"HOME": str(tmp_path)} | ({"RAY_AUTH_TOKEN": token} if token else {})
    words = [sys.executable, "-c", JOIN, f"ray:{ray_cluster.address}"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Unauthenticated" not in done.stderr  # Ray's own twenty lines
    line = done.stderr.splitlines()[-1]
    assert (
        f"the cluster at {ray_cluster.address} asks for its token, and {said}; copy ~/.ray/auth_token" in line
    )


def test_a_gpu_that_no_node_has_is_refused(ray_cluster: Cluster) -> None:
    with pytest.raises(RecipeError, match=r"--device cuda: no node of the cluster has a GPU; start nodes"):
        ray_cluster.slot("cuda")


def test_a_folder_that_a_node_does_not_see(ray_cluster: Cluster, tmp_path: Path) -> None:
    def soon(*paths: Path) -> None:
        from spaner import cluster

        cluster.SEEN_SECONDS = 0.1
        cluster.check_seen(*paths)

    check_seen(tmp_path)
    reference = ray_cluster.start(ray_cluster.slot("cpu"), soon, tmp_path, tmp_path / "elsewhere")
    with pytest.raises(RunError, match=r"node .*: .*elsewhere is not seen here; expected a folder that all"):
        ray_cluster.value(reference)


# --- extraction ---

DIGITS: dict[str, Any] = {"dataset": "digits", "modality": "image", "splits": ("test",), "chunk_rows": 37}
DIGITS |= {"batch_size": 8, "templates": ("vanilla", "classname")}


def test_an_extraction_gives_the_bits_of_one_process(ray_cluster: Cluster, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    summary = extract(**DIGITS, cache=tmp_path / "there", on=ON, progress=lambda *each: told.append(each))
    extract(**DIGITS, cache=tmp_path / "here")
    assert bytes_of(tmp_path / "there") == bytes_of(tmp_path / "here")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "there"]
    rows = {table.name: table.rows for table in summary.tables}
    assert rows == {"image/test": 997, "text/vanilla": 10, "text/classname": 10}
    assert max(done for done, _, what in told if what == "image/test") == 997


def test_a_table_whose_runs_are_no_sweep_runs_here_alone(tmp_path: Path) -> None:
    setup = Setup("table1", "digits", tmp_path / "cache", tmp_path / "out", on=ON)
    said = r"^reproduce table1 --on ray:local: its runs are trained here in turn; expected one of fig6, fig7,"
    with pytest.raises(RecipeError, match=said):
        reproduce(setup)


def test_a_cluster_without_room_is_one_line_after_a_while(
    ray_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "START_SECONDS", 1.0)
    taken = ray_cluster.hold(Slot(2), Path, ".")
    ray_cluster.done([ray_cluster.ask(taken, "exists")])
    said = (
        r"^--on ray:local: no actor of 2 processors and 0 GPUs could start for 1 s; finished chunks are kept;"
    )
    with pytest.raises(RunError, match=said):
        extract(**DIGITS, cache=tmp_path / "cache", on=ON)
    ray_cluster.end(taken)
    assert not list(tmp_path.iterdir())


def test_a_cluster_and_named_devices_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--on and --devices were given; expected one of them"):
        extract(**DIGITS, cache=tmp_path / "cache", on=ON, devices=("cpu",))
    with pytest.raises(RecipeError, match=r"--part and --on were given; expected one of them"):
        extract(**DIGITS, cache=tmp_path / "cache", on=ON, part="1/2")


# --- what kills the process comes last ---


def deadly(deaths: dict[str, int], lives: Path) -> Any:
    """What comes with the cells and kills the process that has one of these methods, so many times."""

    class Deadly:
        def __call__(self, cache: Path, method: str, device: str = "auto") -> dict[str, Any]:
            file = lives / method
            count = len(file.read_text()) if file.exists() else 0
            if count < deaths.get(method, 0):
                file.write_text("x" * (count + 1))
                os._exit(9)
            return {}

    return Deadly()


@pytest.mark.parametrize(
    ("deaths", "tries", "status"),
    [
        (9, 1, "failed"),
        *(pytest.param(n, 2, s, marks=pytest.mark.slow) for n, s in ((9, "failed"), (1, "ok"))),
    ],
)
def test_a_killed_worker_costs_its_cell_alone(
    deaths: int,
    tries: int,
    status: str,
    ray_cluster: Cluster,
    toy_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spaner.align.train.remote.TRIES", tries)
    names, towers = ["zero_shot", "gda"], deadly({"gda": deaths}, tmp_path)
    found = comparing.compare(
        [toy_cache], names, [1], [1], tmp_path / "there", on=ON, workers=1, towers=towers
    )[0]
    here = comparing.compare([toy_cache], names, [1], [1], tmp_path / "here", workers=1)[0]
    assert [result["status"] for result in found.results] == ["ok", status]
    assert len((tmp_path / "gda").read_text()) == min(deaths, tries)
    assert found.results[0]["metrics"] == here.results[0]["metrics"]
    if status == "ok":  # tried again
        assert found.results[1]["metrics"] == here.results[1]["metrics"]
    else:
        assert found.results[1]["reason"].startswith(f"its process on the cluster died {tries} times (")
