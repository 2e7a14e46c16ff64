"""Small files that are either wholly there or not there, and what to say when the disk refuses.

Every file is written through `write`: a temporary neighbour, then a rename. The temporary name is random and
the file must not exist, so that nobody can put a link there first. What must outlive a power cut is waited
for with `settle`: a file, then the folder that names it. One call for many files costs the disk one journal.
An object at an address needs none of that: it is there, whole and for good, once it is written.
"""

import csv
import errno
import io
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from spaner.cache.address import Address
from spaner.errors import CacheError, RunError, SpanerError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
THREADS = 16
LEFT = re.compile(r"\.(.+)\.[0-9a-f]{16}\.(partial|new|old)")
"""Names of what a killed process leaves behind."""


def temporary(path: Path, kind: str = "partial") -> Path:
    """A neighbour of `path` under a name that nobody foresees; a dot at the start is no part of a cache."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.{kind}")


@contextmanager
def writing(path: Path, error: type[SpanerError] = CacheError, option: str = "--cache") -> Iterator[None]:
    """Turn an operating-system error into one line about `path`.

    Args:
        error: what to raise.
        option: how the user chooses another place.

    Raises:
        CacheError: the disk is full, or `path` cannot be written.
    """
    try:
        yield
    except OSError as refused:
        raise error(_refusal(refused, path, option)) from refused


def _refusal(error: OSError, path: Path, option: str) -> str:
    if error.errno in FULL:
        return (
            f"disk full while writing {path}; free space or choose another {option}, "
            "then run the same command again to continue"
        )
    return (
        f"cannot write {path}: {error.strerror or error}; make the folder writable or choose another {option}"
    )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A neighbour to write into, which takes the place of `path` at the end, or goes where that fails."""
    part = temporary(path)
    try:
        yield part
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write(path: Path, data: bytes | memoryview, *, durable: bool = False) -> None:
    """Replace `path` by `data` in one step; `durable` waits until it is on the disk."""
    if isinstance(path, Address):
        path.write_bytes(data)
        return
    _write(path, data, durable=durable, error=CacheError, option="--cache")


def _write(
    path: Path, data: bytes | memoryview, *, durable: bool, error: type[SpanerError], option: str
) -> None:
    with writing(path, error, option):
        with replacing(path) as part, part.open("xb") as stream:
            stream.write(data)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        if durable:
            _sync(path.parent)


def open_array(path: Path, dtype: str | type, shape: tuple[int, ...]) -> np.memmap:
    """A new .npy file to be filled through memory.

    Its room on the disk is taken first: a page that finds none later would end the process with a signal.

    Raises:
        OSError: the disk is full.
    """
    array = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    return array


def write_result(path: Path, text: str) -> None:
    """Replace a file of results by `text` in one step and for good, making its folder.

    Raises:
        RunError: the disk is full, or the place cannot be written.
    """
    with writing(path, RunError, "--out"):
        path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, text.encode("utf-8"), durable=True, error=RunError, option="--out")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The same for rows as CSV; a column is named once, wherever it first appears."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_result(path, stream.getvalue())


def settle(paths: Iterable[Path]) -> None:
    """Wait until these files, and their names in their folders, are on the disk.

    Many at once: a disk takes about as long for sixteen that ask together as for one.
    """
    found = [path for path in paths if not isinstance(path, Address)]
    folders = list(dict.fromkeys(path.parent for path in found))
    with ThreadPoolExecutor(THREADS) as pool:
        for each in (found, folders):
            list(pool.map(_settle, each))


def _settle(path: Path) -> None:
    with writing(path):
        _sync(path)


def settle_folder(folder: Path) -> None:
    """Wait until a folder with all that is in it is on the disk."""
    if isinstance(folder, Address):
        return
    settle([*(path for path in folder.rglob("*")), folder])


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot sync folders
            raise
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it, if it is there."""
    if isinstance(path, Address):
        path.remove()
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def clear(folder: Path, *, chosen: Callable[[str], bool] = lambda name: True) -> None:
    """Delete what killed processes left in a folder, of the files with a chosen name.

    Only under a lock that keeps others from writing them. At an address nothing is left behind.
    """
    if isinstance(folder, Address):
        return
    with suppress(FileNotFoundError):
        for entry in list(os.scandir(folder)):
            left = LEFT.fullmatch(entry.name)
            if left and chosen(left[1]):
                remove(Path(entry.path))
