"""Objects of an address in memory: fetched several at once, each once while it is near.

A round trip costs as much as megabytes, so whoever knows what is read next asks for it (`ask`), and `get`
waits only for what is not there yet. What was fetched is kept up to a number of bytes, since the rows that a
check has read are those that are handed out next. Nothing is fetched that nobody asked for.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future

from spaner.cache.address import Address, fetch

KEEP = 1 << 26
"""Bytes that are kept."""
WINDOW = 1 << 24
"""Bytes that are asked for together."""
MOST = 512
"""Objects that are asked for together, however small."""


def window(size: int) -> int:
    """How many objects of so many bytes to ask for together."""
    return max(1, min(MOST, WINDOW // max(1, size)))


class Objects:
    """Objects by name.

    Args:
        keep: whether objects may be kept, which is so where nobody changes them.
    """

    def __init__(self, *, keep: bool) -> None:
        self.keep = keep
        self._lock = threading.Lock()
        self._here: OrderedDict[str, tuple[int, Future[bytes | None]]] = OrderedDict()

    def __reduce__(self) -> tuple[type["Objects"], tuple[()], dict[str, bool]]:
        """Another process fetches for itself."""
        return _fresh, (self.keep,)  # pyright: ignore[reportReturnType]

    def ask(self, wanted: Sequence[tuple[str, int]]) -> None:
        """Begin to fetch those of these objects (name, bytes expected) that are not here."""
        with self._lock:
            new = [(name, size) for name, size in wanted if name not in self._here]
            for name, size in new:
                self._here[name] = size, Future()
            futures = [self._here[name][1] for name, _ in new]
        if new:  # a thread for each time: one that is kept would be missing after a fork
            threading.Thread(target=_fetch, args=(new, futures), daemon=True).start()

    def get(self, name: str, size: int) -> bytes | None:
        """One object, or None if there is none. It may have one byte more than expected, never two.

        Raises:
            CacheError: what kept it from coming.
        """
        while (entry := self._here.get(name)) is None:
            self.ask([(name, size)])
        try:
            data = entry[1].result()
        except BaseException:
            self.forget(name)
            raise
        if self.keep:
            self._trim(name)
        else:
            self.forget(name)
        return data

    def forget(self, name: str | None = None) -> None:
        """Let go of one object, or of all."""
        with self._lock:
            if name is None:
                self._here.clear()
            else:
                self._here.pop(name, None)

    def _trim(self, last: str) -> None:
        """Let those go that were used longest ago; what is still on its way was asked for since."""
        with self._lock:
            if last in self._here:
                self._here.move_to_end(last)
            kept = sum(size for size, _ in self._here.values())
            for name in list(self._here)[:-1]:
                if kept <= KEEP:
                    return
                if self._here[name][1].done():
                    kept -= self._here.pop(name)[0]


def _fresh(keep: bool) -> Objects:  # noqa: FBT001 - called by pickle
    return Objects(keep=keep)


def _fetch(wanted: list[tuple[str, int]], futures: list[Future[bytes | None]]) -> None:
    try:
        found = fetch([(Address(name), size) for name, size in wanted])
    except BaseException as error:
        for future in futures:
            future.set_exception(error)
        return
    for future, data in zip(futures, found, strict=True):
        future.set_result(data)
