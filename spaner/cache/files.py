"""Small files that are either wholly there or not there, and what to say when the disk refuses.

Every file of a cache is written through `write`: a temporary neighbour, then a rename. The temporary name
is a function of the final one, so that work repeated after a kill replaces what the kill left behind.
It does not wait for the disk (see `settle`): the order of chunk writes is checked by hash when work resumes.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spaner.errors import CacheError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def partial(path: Path) -> Path:
    """The temporary neighbour of `path`; names that start with a dot are no part of a cache."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating-system error into one line about `path`.

    Raises:
        CacheError: the disk is full, or `path` cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise CacheError(_refusal(error, path)) from error


def _refusal(error: OSError, path: Path) -> str:
    if error.errno in FULL:
        return (
            f"disk full while writing {path}; free space or choose another --cache, "
            "then run the same command again to continue"
        )
    return (
        f"cannot write {path}: {error.strerror or error}; make the folder writable or choose another --cache"
    )


def write(path: Path, data: bytes | memoryview) -> None:
    """Replace `path` by `data` in one step."""
    temporary = partial(path)
    with writing(path):
        try:
            temporary.unlink(missing_ok=True)
            with temporary.open("xb") as stream:  # never through a link that somebody put there
                stream.write(data)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def remove(path: Path) -> None:
    """Delete a file or folder, and what an interrupted write of it left."""
    for victim in (path, partial(path)):
        if victim.is_dir():
            shutil.rmtree(victim)
        else:
            victim.unlink(missing_ok=True)


def settle() -> None:
    """Wait until everything written so far is on the disk, so that a seal never outlives its rows."""
    if hasattr(os, "sync"):
        os.sync()
