"""One writer at a time, without leaving anything behind when it is killed.

The lock is the kernel's (flock), so it ends with the process that holds it, however that ends. The lock file
only says who holds it; it lies beside the cache, never in it, and is removed on release. flock reaches
other hosts only on network file systems that pass it on: elsewhere a claim stands in for it (see `claim`).
"""

import errno
import importlib
import os
import socket
import stat
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from spaner.cache.address import BUCKETS, Address
from spaner.cache.claim import Claim
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
    """The lock file of one part of a cache, a hidden neighbour of it.

    Raises:
        CacheError: the cache is to be a whole bucket, which has no neighbours.
    """
    if isinstance(cache, Address) and cache.scheme in BUCKETS and len(cache.parts) < 3:
        raise CacheError(f"{cache} is a bucket, expected a name in it; type for example {cache}/cache")
    return cache.with_name(f".{cache.name}.{name.replace('/', '=')}.lock")


LOCAL = {"nfs": ("nolock", "local_lock=flock", "local_lock=all"), "lustre": ("localflock", "noflock")}
"""Network file systems that pass flock on, unless they are mounted with one of these."""
NO_REACH = ("9p", "afs", "beegfs", "cifs", "fuse", "glusterfs", "smb", "virtiofs")
"""How the names of file systems begin on which a flock stays within its host, or may."""
OVERRIDE = "SPANER_LOCKS"


def hold(path: Path, what: str, *, shared: bool = False, wait: bool = False) -> "Lock | Claim":
    """Hold `path` by a lock, or by a claim where locks do not reach; see `Lock` and `Claim`."""
    far = isinstance(path, Address)
    kind = Claim if far or method_of(path.parent)[0] != "flock" else Lock
    return kind(path, what, shared=shared, wait=wait)


def method_of(folder: Path) -> tuple[str, str]:
    """How writers in this folder are kept apart, "flock" or "claims", and why.

    $SPANER_LOCKS decides where it is set.

    Raises:
        CacheError: it is set to something else.
    """
    if asked := os.environ.get(OVERRIDE):
        if asked not in ("flock", "claims"):
            raise CacheError(
                f"${OVERRIDE} is {asked!r}; expected flock or claims; unset it to decide by folder"
            )
        return asked, f"${OVERRIDE} says so"
    return _method_of(folder.absolute())


@lru_cache(maxsize=64)
def _method_of(folder: Path) -> tuple[str, str]:
    kind, options = mount_of(folder)
    if kind.startswith(NO_REACH):
        return "claims", f"flock does not reach other hosts on {kind}"
    for name, local in LOCAL.items():
        if kind.startswith(name) and (found := [option for option in options if option in local]):
            return "claims", f"{kind} is mounted with {found[0]}"
    if not _locks(folder):
        return "claims", f"{kind or 'this file system'} has no flock"
    return "flock", f"{kind or 'this file system'} has it"


def mount_of(folder: Path) -> tuple[str, list[str]]:
    """Type and options of the file system that holds a folder, "" where the system does not tell."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return "", []
    place, found = folder.resolve(), (0, "", [""])
    for line in lines:
        words, (kind, _, options) = line.split(" - ")[0].split(), line.split(" - ")[1].split(" ", 2)
        point = Path(words[4].encode().decode("unicode_escape"))
        if place.is_relative_to(point) and len(point.parts) >= found[0]:
            found = len(point.parts), kind, [*words[5].split(","), *options.split(",")]
    return found[1], found[2]


def _locks(folder: Path) -> bool:
    """Whether the file system has locks at all."""
    fcntl = _fcntl()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in NO_LOCKS
    return True


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

    @property
    def lost(self) -> bool:
        """Never: the kernel keeps it."""
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
