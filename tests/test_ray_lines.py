"""The lines about Ray in docs/scale.md as a user types them, on two nodes of which one is killed in between.

They run in namespaces of their own: `ray stop` ends all of Ray that it sees, and port 6379 is as documented.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from spaner.extract.extract import extract
from tests.extract.test_killed_extraction import bytes_of

pytest.importorskip("ray", reason="the extra ray")
pytestmark = pytest.mark.slow

ALONE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc", "--net"]
SAID = re.compile(r"[\w/]+ [\d,]+/[\d,]+ (rows|cells).*|next: spaner .*")
"""What a command may say beside its results."""


@dataclass(frozen=True)
class Told:
    """One documented line, and what it did in a folder."""

    line: str
    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Session:
    """All of them, and the folder."""

    folder: Path
    lines: list[Told]


def documented() -> list[str]:
    text = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()
    block = re.search(r"^    ray get-auth-token.*?(?=^\S)", text, re.MULTILINE | re.DOTALL)
    assert block, "the lines are there"
    return [line.strip() for line in block[0].splitlines() if line.strip()]


def raylets(temp: str) -> list[int]:
    """Processes of nodes that are not the head, of the cluster that has its sockets in this folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            mine = words[0].endswith(b"/raylet") and any(temp.encode() in word for word in words)
            found += [int(folder.name)] if mine and b"--head" not in words else []
    return found


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Every line, one after another; a node dies as soon as the sweep has finished a cell."""
    if not shutil.which("unshare") or subprocess.run([*ALONE, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces here")
    place, temp = tmp_path_factory.mktemp("lines"), tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    (place / "home").mkdir()
    home = {"HOME": str(place / "home"), "RAY_TMPDIR": temp, "MPLCONFIGDIR": str(Path.home() / ".cache")}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    lines = [line.replace("HEAD", "127.0.0.1") for line in documented()]
    script = "ip link set lo up\n" + "".join(
        f"{{ {line}\n}} >{i}.out 2>{i}.err; echo $? >{i}.status\n" for i, line in enumerate(lines)
    )
    killed: list[int] = []

    def kill() -> None:
        while not list((place / "sweeps/digits/cells").glob("*.json")):
            time.sleep(0.1)
        for process in raylets(temp):
            killed.append(process)
            os.kill(process, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        subprocess.run([*ALONE, "bash", "-c", script], cwd=place, env=kept | home, check=True)
        assert len(killed) == 1
        lines_told = [_read(place, i, line) for i, line in enumerate(lines)]
        yield Session(place, lines_told)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _read(place: Path, number: int, line: str) -> Told:
    status, out, err = ((place / f"{number}.{kind}").read_text() for kind in ("status", "out", "err"))
    return Told(line, int(status), out, err)


def test_every_line_ends_well_and_says_nothing_odd(session: Session) -> None:
    for each in session.lines:
        assert each.status == 0, (each.line, each.err)
        if each.line.startswith("spaner"):  # and nothing of Ray's own
            assert [line for line in each.err.splitlines() if not SAID.fullmatch(line)] == [], each.line
            assert not re.search(r"raylet|node id|WARNING", each.out), each.line
    assert "Stopped all" in session.lines[-1].out


def test_the_extraction_gave_the_bits_of_one_process(session: Session, tmp_path: Path) -> None:
    extract(dataset="digits", cache=tmp_path / "cache")
    assert bytes_of(session.folder / "cache/digits") == bytes_of(tmp_path / "cache")


def test_no_cell_is_missing_though_a_node_died(session: Session) -> None:
    place = session.folder
    cells = json.loads((place / "sweeps/digits/sweep.json").read_text())
    assert [cell["status"] for cell in cells] == ["ok"] * 12
    compared = json.loads((place / "compare/digits/compare.json").read_text())
    assert [cell["status"] for cell in compared["cells"]] == ["ok"] * 18
