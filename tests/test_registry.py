"""A name becomes an object, or one line that names the nearest; packages add names, ours win."""

import math
import sys
from pathlib import Path

import pytest

from spaner import registry
from spaner.errors import DatasetError, RecipeError, SpanerError

ENTRIES = {"pi": "math:pi", "root": "math:sqrt", "broken": "math:no_such"}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with three entries in the group of a kind that nobody else uses."""
    (tmp_path / "acme_plugin.py").write_text("ANSWER = 42\n")
    info = tmp_path / "acme_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-plugin\nVersion: 1\n")
    lines = ["[spaner.toys]", "answer = acme_plugin:ANSWER", "pi = acme_plugin:ANSWER", "gone = acme_gone:X"]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "acme_plugin", raising=False)


def test_a_name_becomes_its_object() -> None:
    assert registry.load(ENTRIES, "toy", "root", RecipeError) is math.sqrt


def test_packages_add_names_and_ours_win(package: None) -> None:
    assert registry.names(ENTRIES, "toy") == ["answer", "broken", "gone", "pi", "root"]
    assert registry.load(ENTRIES, "toy", "answer", RecipeError) == 42
    assert registry.load(ENTRIES, "toy", "pi", RecipeError) == math.pi


def test_a_package_that_cannot_be_imported_is_one_line(package: None) -> None:
    with pytest.raises(RecipeError, match=r"--toy gone: an installed package offers it as 'acme_gone:X'"):
        registry.load(ENTRIES, "toy", "gone", RecipeError)


def test_a_broken_entry_of_our_own_is_a_bug_and_shows_its_traceback() -> None:
    with pytest.raises(AttributeError):
        registry.load(ENTRIES, "toy", "broken", RecipeError)


@pytest.mark.parametrize("error", [RecipeError, DatasetError])
def test_an_unknown_name_names_all_and_the_nearest(error: type[SpanerError]) -> None:
    with pytest.raises(error, match=r"--toy rot: unknown; expected one of broken, pi, root; .*`--toy root`"):
        registry.check(ENTRIES, "toy", "rot", error)
    with pytest.raises(error, match="type for example `--toy broken`"):
        registry.load(ENTRIES, "toy", "zzzzzz", error)


def test_nearest_always_answers_unless_told_how_near() -> None:
    assert registry.nearest("imagnet", ["digits", "imagenet"]) == "imagenet"
    assert registry.nearest("zzz", ["digits"]) == "digits"
    assert registry.nearest("zzz", ["digits"], cutoff=0.6) == ""
    assert registry.nearest("zzz", []) == ""
