"""A file is replaced, never changed: whoever reads it meanwhile sees the old bytes or the new ones."""

import os
import re
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


def test_what_killed_writes_left_is_cleared_by_name(tmp_path: Path):
    for name in ("c.0", "c.1", "c"):
        files.temporary(tmp_path / name).write_bytes(b"torn")
    files.temporary(tmp_path / "c.0", "old").mkdir()
    (tmp_path / ".c.0.partial").write_text("not ours")
    files.clear(tmp_path, chosen={"c.0"}.__contains__)
    left = sorted(re.sub("[0-9a-f]{16}", "*", file.name) for file in tmp_path.iterdir())
    assert left == [".c.*.partial", ".c.0.partial", ".c.1.*.partial"]


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
