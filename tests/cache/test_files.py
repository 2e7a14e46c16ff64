"""A file is replaced, never changed: whoever reads it meanwhile sees the old bytes or the new ones."""

import os
from pathlib import Path

import pytest

from spaner.cache import files
from spaner.errors import CacheError


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path):
    file, reader = tmp_path / "zarr.json", tmp_path / "open elsewhere"
    files.write(file, b"old")
    os.link(file, reader)
    files.write(file, b"new bytes")
    assert (file.read_bytes(), reader.read_bytes()) == (b"new bytes", b"old")
    assert sorted(other.name for other in tmp_path.iterdir()) == ["open elsewhere", "zarr.json"]


def test_what_a_killed_write_left_is_taken_over(tmp_path: Path):
    file = tmp_path / "c.0"
    files.partial(file).write_bytes(b"a longer piece that was torn")
    files.write(file, b"whole")
    assert [other.name for other in tmp_path.iterdir()] == ["c.0"]
    assert file.read_bytes() == b"whole"


def test_refusals_name_the_file_and_the_remedy(tmp_path: Path):
    with pytest.raises(
        CacheError, match=r"cannot write .*/none/x: No such file or directory; make the folder"
    ):
        files.write(tmp_path / "none" / "x", b"")
    with (
        pytest.raises(CacheError, match="disk full while writing there; free space"),
        files.writing(Path("there")),
    ):
        raise OSError(28, "No space left on device")
