"""A disk that takes no more: one line, nothing that looks finished, and the same command continues.

The limit is the kernel's limit on file size, set in a child process: it refuses writes as a full disk does.
"""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spaner import cache
from spaner.errors import CacheError, Unsealed

ROWS, DIM, CHUNK = 97, 509, 31  # a chunk of features is 63 kB, all of them 197 kB

WRITE = """
import resource, sys
import numpy as np
from spaner import cache
from spaner.errors import CacheError

path, limit, rows, dim, chunk = sys.argv[1], *map(int, sys.argv[2:])
features = np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float32)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with cache.create(path, "pets", ["a"]) as made:
        made.add("image", "train", features, np.zeros(rows, int), encoder="toy", chunk_rows=chunk)
except CacheError as error:
    print(error)
"""


def write(path: Path, limit: int = 0) -> str:
    """Output of the child: the message of its CacheError, if any."""
    command = [sys.executable, "-c", WRITE, str(path), *map(str, (limit, ROWS, DIM, CHUNK))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize(
    ("name", "limit", "where"),
    [
        ("cache", 40_000, "cache/image/train/features/c.0.0.0"),
        ("cache", 200, "cache/zarr.json"),
        ("cache.h5", 40_000, "cache.h5.parts/image/train/features/c.0.0.0"),
        ("cache.h5", 100_000, "cache.h5"),  # the rows fit, the published file does not
    ],
)
def test_full_disk_is_one_line_and_the_same_command_continues(
    tmp_path: Path, name: str, limit: int, where: str
):
    path = tmp_path / name
    said = write(path, limit)
    assert said == (
        f"disk full while writing {tmp_path / where}; free space or choose another --cache, "
        "then run the same command again to continue\n"
    )
    assert not [file for file in tmp_path.rglob("*") if file.name.endswith((".partial", ".lock"))]
    if limit == 40_000:
        with pytest.raises(Unsealed, match="holds 0 of 97 rows"):
            cache.open(path)
    assert write(path) == ""
    with cache.open(path) as opened:
        assert opened.verify() == []
        expected = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
        np.testing.assert_array_equal(opened.table("image/train").read()[:, 0], expected)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_room_is_taken_before_a_file_is_filled_through_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A page without room would end the process with a signal."""
    assert write(tmp_path / "cache") == ""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with cache.open(tmp_path / "cache") as opened:
        cache.export(opened, tmp_path / "out")
        rows = np.load(tmp_path / "out/image/train/features.npy")
        np.testing.assert_array_equal(rows, opened.table("image/train").read())
        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(CacheError, match=r"disk full while writing .*train; free space"):
            cache.export(opened, tmp_path / "full")
