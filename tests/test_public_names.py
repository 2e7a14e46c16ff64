"""The public interface is pinned: adding or removing a name is a decision, not an accident."""

import subprocess
import sys

import pytest

import spaner

NAMES = ["create", "encode", "evaluate", "few_shot", "fit", "frame", "load", "open", "sweep"]


def test_public_names() -> None:
    assert sorted(set(spaner.__all__) - {"__version__"}) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_a_documented_function(name: str) -> None:
    value = getattr(spaner, name)
    assert callable(value)
    assert value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = spaner.nothing


@pytest.mark.parametrize("code", ["import spaner", "import spaner.cache", "import spaner.cli"])
def test_importing_is_light_and_silent(code: str) -> None:
    check = f"{code}; import sys; assert not {{'torch', 'open_clip', 'matplotlib'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_help_needs_no_torch() -> None:
    check = (
        "import sys; sys.modules['torch'] = None; sys.argv[1:] = ['--help']; import spaner.cli as c; c.main()"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "extract" in done.stdout
