"""One writer at a time, without leaving anything behind when it is killed.

The lock is the kernel's (flock), so it ends with the process that holds it, however that ends. The lock file
only says who holds it; it lies beside the cache, never in it, and is removed on release. flock reaches
other hosts only on network file systems that pass it on: elsewhere, keep two hosts off one table.
"""

import errno
import importlib
import os
import socket
import stat
from pathlib import Path
from typing import Any, Self

from spaner.cache.files import writing
from spaner.errors import Busy, CacheError

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


def _fcntl() -> Any:
    try:
        return importlib.import_module("fcntl")
    except ImportError:
        raise CacheError(
            "writing a cache needs flock, which this system lacks; write it on Linux or macOS"
        ) from None


def lock_path(cache: Path, name: str) -> Path:
    """The lock file of one part of a cache, a hidden neighbour of it."""
    return cache.with_name(f".{cache.name}.{name.replace('/', '=')}.lock")


class Lock:
    """Holds `path` until `release`.

    Args:
        what: named in the message, e.g. "image/train of cache/digits".
        shared: several holders may share it, none of them alone.
        wait: block until it is free instead of raising.

    Raises:
        Busy: another live process holds it.
    """

    def __init__(self, path: Path, what: str, *, shared: bool = False, wait: bool = False) -> None:
        self.path = path
        self._fcntl = _fcntl()
        with writing(path):
            self._file = self._acquire(what, shared=shared, wait=wait)

    def _acquire(self, what: str, *, shared: bool, wait: bool) -> int:
        fcntl = self._fcntl
        mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        while True:
            file = self._open()
            try:
                fcntl.flock(file, mode)
            except BlockingIOError:
                holder = os.read(file, 200).decode("utf-8", "replace") or "another process"
                os.close(file)
                raise Busy(f"{what} is being written by {holder}; wait for it to end, or stop it") from None
            except OSError as error:
                os.close(file)
                if error.errno not in NO_LOCKS:
                    raise
                self.path.unlink(missing_ok=True)
                raise CacheError(
                    f"{what} cannot be locked: the file system of {self.path.parent} has no locks "
                    f"({error.strerror}), so that nothing keeps two writers apart; expected one with flock; "
                    "write the cache on a local disk and copy it when it is finished"
                ) from None
            if self._is_current(file):
                os.ftruncate(file, 0)
                os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return file
            os.close(file)  # the previous holder removed the file between our open and our lock

    def _open(self) -> int:
        """The lock file: a plain file of one name, since through a link we would empty another one."""
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise CacheError(f"{self.path} is a link, expected a lock file; remove it") from None
            raise
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            os.close(file)
            raise CacheError(f"{self.path} is a link, pipe or device, expected a lock file; remove it")
        return file

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self.path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let go, and remove the file unless another holder shares it."""
        if self._file < 0:
            return
        try:
            self._fcntl.flock(self._file, self._fcntl.LOCK_EX | self._fcntl.LOCK_NB)
            self.path.unlink(missing_ok=True)
        except BlockingIOError:
            pass
        os.close(self._file)
        self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
