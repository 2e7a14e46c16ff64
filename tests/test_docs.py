"""What the documents tell a user to type works: every command and every Python block of the README is run."""

import json
import os
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spaner.cli import main
from tests.conftest import Outcome

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BEGIN = "spaner extract --dataset digits"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> Iterator[str]:
    for block in blocks("console"):
        for line in block.splitlines():
            if line.startswith("$ "):
                yield line[2:]


SPANER = [c for c in commands() if c.startswith("spaner ")]


def test_every_command_is_accounted_for() -> None:
    others = [c for c in commands() if not c.startswith("spaner ")]
    assert others == ["pip install uv && uv run spaner demo", "uv run pytest"]
    assert len(SPANER) >= 8


def test_the_readme_keeps_its_order() -> None:
    marks = [
        "# spaner",
        "docs/two-stages.svg",
        "uv run spaner demo",
        "uv run pytest",
        "## ImageNet",
        "import spaner",
    ]
    places = [README.index(mark) for mark in marks]
    assert places == sorted(places)


def test_links_and_files_named_in_the_documents_exist() -> None:
    for file in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", file.read_text()):
            assert (file.parent / target).exists(), f"{file.name} links to {target}, which is not there"


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder in which the command was typed that the sessions and the Python block begin with."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", shlex.split(BEGIN))
        with pytest.raises(SystemExit) as end:
            main()
    assert not end.value.code
    return folder


def copied(begun: Path, place: Path) -> Path:
    return Path(shutil.copytree(begun, place, dirs_exist_ok=True))


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_blocks_run(number: int, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied(begun, tmp_path))
    exec(compile(blocks("python")[number], f"README block {number}", "exec"), {"__name__": "readme"})


def sessions() -> list[list[str]]:
    """Console blocks that begin by extracting the digits: they need nothing and must work as written."""
    found = [[line[2:] for line in b.splitlines() if line.startswith("$ ")] for b in blocks("console")]
    return [lines for lines in found if lines[0] == BEGIN]


def used() -> list[str]:
    """The chapter that uses the runs of the sessions, but for the page, which waits for a reader
    (tests/search/test_browse.py opens it)."""
    found = [[line[2:] for line in b.splitlines() if line.startswith("$ ")] for b in blocks("console")]
    (lines,) = [lines for lines in found if lines[0].startswith("spaner index")]
    return [line for line in lines if not line.startswith("spaner browse")]


OFFLINE = [command for session in [*sessions(), used()] for command in session]


@pytest.mark.usefixtures("one_core", "few_rows_in_the_plane")
def test_the_digits_commands_work_one_after_another(
    cli: Callable[..., Outcome], begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied(begun, tmp_path))
    assert len(OFFLINE) >= 4
    assert OFFLINE[0] == BEGIN
    for command in OFFLINE:
        done = cli(*shlex.split(command)[1:])
        assert done.status == 0, f"{command}: {done.err}"
    assert Path("report.html").exists()


@pytest.mark.parametrize("command", [c for c in SPANER if c not in OFFLINE])
def test_commands_parse_and_name_what_is_missing(
    command: str, cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an empty folder a command ends in one line that says what to type, never in a traceback."""
    monkeypatch.chdir(tmp_path)
    for root in ("IMAGENET_ROOT", "ESC50_ROOT"):
        monkeypatch.delenv(root, raising=False)
    done = cli(*shlex.split(command)[1:])
    assert done.status == 1, done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert ";" in line, "an error says what to do next"


@pytest.mark.slow
def test_the_demo_shows_spaner_above_the_frozen_encoder(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    done = cli("demo", "--out", tmp_path / "demo")
    assert done.status == 0, done.err
    for recipe in ("paper", "anchored"):
        result = json.loads((tmp_path / "demo" / "runs" / f"digits-{recipe}" / "result.json").read_text())
        ours, frozen = result["metrics"]["semantic"], result["metrics"]["zero_shot"]["semantic"]
        assert ours["accuracy"] > frozen["accuracy"]
        assert ours["positive_cosine"] > frozen["positive_cosine"]


def test_the_tables_of_settings_are_those_of_the_code() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "settings"))
    page = (ROOT / "docs" / "settings.md").read_text()
    assert script["written"](page) == page, "type `uv run scripts/settings`"
    assert "`--prompt-lengths`" in page


def test_no_download_address_or_lock_file_is_committed() -> None:
    assert "uv.lock" in (ROOT / ".gitignore").read_text().split()
    assert "index-url" not in (ROOT / "pyproject.toml").read_text()
    assert os.linesep == "\n"
