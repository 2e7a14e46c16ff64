"""Claims: what keeps two writers apart where the file system passes no locks on.

A claim is a file made with O_EXCL, which the server of a network file system decides, that holds host,
process and a beat: a number that its holder raises every few seconds. Who finds a claim watches it by his own
clock: if the beat has stood still for the stated silence, or the process has ended on this very host, it is
taken over. No two clocks are compared, so that a host whose clock is wrong harms nobody.

At an address a claim is an object, put on the condition that there is none, which the store decides.

Even a claim that is taken over wrongly (its holder was suspended) damages nothing: both write the same bits,
and the holder stops when it next looks at its claim.
"""

import glob
import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from spaner.cache.address import Address
from spaner.errors import Busy, CacheError

SILENCE = 60.0
"""Seconds without a beat after which a claim is taken over."""
BEATS = 6
"""Beats in a silence."""
DEAD, ALIVE, UNKNOWN = "dead", "alive", "unknown"


def host() -> str:
    """This host, as far as process numbers mean anything on it: containers may share a name."""
    told = [socket.gethostname()]
    for file in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            place = Path(file)
            told.append(str(place.readlink()) if place.is_symlink() else place.read_text().strip())
    return " ".join(told)


class _Watch:
    """What was seen of another's claim, by the clock of who looks."""

    def __init__(self) -> None:
        self.content: bytes | None = None  # not b"", which a claim holds while it is being made
        self.since = 0.0

    def look(self, file: Path, where: str, silence: float) -> str:
        """DEAD, ALIVE, or UNKNOWN: not silent for long enough, and not seen to beat yet."""
        content, now = _bytes(file), time.monotonic()
        if content is None:  # it has let go
            return UNKNOWN
        if content != self.content:
            before = _parsed(self.content or b"").get("token")
            beaten = _parsed(content).get("token") == before is not None
            self.content, self.since = content, now
            return ALIVE if beaten else DEAD if _has_ended(_parsed(content), where) else UNKNOWN
        return DEAD if now - self.since > silence else UNKNOWN


def _has_ended(told: dict[str, Any], where: str) -> bool:
    """Whether the holder was a process of this host and is none any more."""
    if told.get("host") != where or not isinstance(told.get("process"), int):
        return False
    try:
        os.kill(told["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


class Claim:
    """Holds `path` until `release`.

    Args:
        what: named in the message.
        shared: several holders may share it, none of them alone.
        wait: until it is free, instead of raising.
        silence: seconds without a beat after which the holder counts as dead.

    Raises:
        Busy: another live process holds it.
    """

    def __init__(
        self,
        path: Path,
        what: str,
        *,
        shared: bool = False,
        wait: bool = False,
        silence: float = SILENCE,
        where: str | None = None,
    ) -> None:
        self.path, self.shared, self.silence = path, shared, silence
        self.where = where or host()
        self.token = secrets.token_hex(8)
        self.file = path.with_name(f"{path.name}.{self.token}.share") if shared else path
        self._watched: dict[Path, _Watch] = {}
        self._looked = time.monotonic()
        self._acquire(what, wait=wait)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether somebody has taken it over, since this process was silent for too long."""
        if isinstance(self.file, Address) and time.monotonic() - self._looked < self.silence / BEATS:
            return False  # asked for after every batch, and a request each time
        return self._is_lost()

    def release(self) -> None:
        """Let go."""
        self._done.set()
        self._thread.join()
        if not self._is_lost():
            self.file.unlink(missing_ok=True)

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    # -- inside ----------------------------------------------------------------------------------

    def _is_lost(self) -> bool:
        self._looked = time.monotonic()
        return (_read(self.file) or {}).get("token") != self.token

    def _acquire(self, what: str, *, wait: bool) -> None:
        pause = self.silence / 1000
        while True:
            against = self._try()
            if against is None:
                return
            state = self._watched.setdefault(against, _Watch()).look(against, self.where, self.silence)
            if state == DEAD:
                self._break(against, self._watched.pop(against).content or b"")
            elif state == ALIVE and not wait:
                told = _read(against) or {}
                who = f"process {told.get('process')} on {str(told.get('host')).split(' ')[0]}"
                raise Busy(f"{what} is being written by {who}; wait for it to end, or stop it")
            else:
                time.sleep(pause * (0.5 + secrets.randbelow(100) / 100))
                pause = min(2 * pause, self.silence / BEATS)

    def _try(self) -> Path | None:
        """None if the claim is ours now, else the claim that stands against it."""
        if not _is_created(self.file, self._content(0)):
            return self.file
        for other in self._opponents():
            self.file.unlink(missing_ok=True)
            return other
        return None

    def _opponents(self) -> list[Path]:
        """Shared claims stand against one that is not, and the other way round."""
        if self.shared:
            return [self.path] if self.path.exists() else []
        return sorted(self.path.parent.glob(f"{glob.escape(self.path.name)}.*.share"))

    def _break(self, file: Path, content: bytes) -> None:
        """Remove a dead claim, if it is still the one that was seen; one process at a time does so."""
        guard = file.with_name(file.name + ".breaking")
        if not _is_created(guard, secrets.token_bytes(8)):
            watch = self._watched.setdefault(guard, _Watch())
            if watch.look(guard, self.where, 10 * self.silence) == DEAD:  # it died in these few lines
                guard.unlink(missing_ok=True)
            time.sleep(self.silence / 100)
            return
        try:
            if _bytes(file) == content:
                file.unlink(missing_ok=True)
        finally:
            guard.unlink(missing_ok=True)

    def _keep(self) -> None:
        beat = 0
        while not self._done.wait(self.silence / BEATS):
            beat += 1
            with suppress(OSError, CacheError):  # the network may be back at the next beat
                if self._is_lost():
                    return
                _overwrite(self.file, self._content(beat))

    def _content(self, beat: int) -> bytes:
        told = {"host": self.where, "process": os.getpid(), "token": self.token, "beat": beat}
        return json.dumps(told).encode().ljust(400)


def _create(file: Path, content: bytes) -> None:
    if isinstance(file, Address):
        file.create(content)
        return
    handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        os.write(handle, content)
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_created(file: Path, content: bytes) -> bool:
    """Whether the file is ours now. A store whose answer was lost says the second time that there is one: it
    may be the one that was made the first time."""
    try:
        _create(file, content)
    except FileExistsError:
        return isinstance(file, Address) and _bytes(file) == content
    return True


def _overwrite(file: Path, content: bytes) -> None:
    """In place and of one length, so that a reader sees the one beat or the other."""
    if isinstance(file, Address):
        file.write_bytes(content)
        return
    handle = os.open(file, os.O_WRONLY | os.O_NOFOLLOW)  # who can write here could have put a link there
    try:
        os.pwrite(handle, content, 0)
        os.fsync(handle)
    finally:
        os.close(handle)


def _bytes(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _read(file: Path) -> dict[str, Any] | None:
    content = _bytes(file)
    return None if content is None else _parsed(content)


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        told = json.loads(content)
    except ValueError:  # it is being made just now
        return {}
    return told if isinstance(told, dict) else {}
