"""The head of a Ray cluster: where it is, whether it answers, and how a command comes in.

Ray takes minutes, twenty warnings or a crash of the whole process to say that there is no cluster, or that it
wants another token. So whoever comes in asks the head himself first, and says what is wrong in one line.
"""

import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from spaner.errors import RecipeError

CONNECT_SECONDS = 3.0
"""How long a cluster may take to accept a connection. Ray itself would try for two minutes."""
STORE_BYTES = 100 << 20
"""Object store of a cluster that is started here: only settings and results pass through it."""
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What an HTTP/2 client says first: Ray's head, which speaks it, answers at once with settings of its own."""
SETTINGS_FRAME = 4
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
"""Ray tells nobody, and sends no copy of the folder where `uv run` was typed to its nodes."""
NUMBERS = re.compile(r"\b(class_name|actor_id|job_id|namespace|node_id|worker_id|pid|ip): \S+ ?")
TOKEN = Path("~/.ray/auth_token")
"""Where Ray keeps the token of its clusters, unless the environment says otherwise."""


def address_of(on: str) -> str:
    """What to join: ``auto``, ``local`` or HOST:PORT.

    Raises:
        RecipeError: anything but ``ray`` or ``ray:ADDRESS``.
    """
    kind, _, address = on.partition(":")
    address = address or "auto"
    host, _, port = address.rpartition(":")
    if kind != "ray" or not (address in ("auto", "local") or (host and port.isdecimal() and "/" not in host)):
        client = "; a command runs on a machine of the cluster, not through ray://" if "//" in on else ""
        raise RecipeError(
            f"--on {on}: expected ray, ray:HOST:PORT or ray:local{client}; type `--on ray` for the cluster "
            "that this machine is part of"
        )
    return address


def prepare() -> None:
    """Set what Ray reads when it is first imported, where the user has not."""
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})


@contextmanager
def inside(ray: Any, on: str, address: str) -> Iterator[None]:
    """This process is part of the cluster at `address`, see `address_of`.

    Raises:
        RecipeError: no cluster answers there, or it wants another token.
    """
    asked = "RAY_AUTH_MODE" in os.environ
    _enter(ray, on, address)
    # what happens to nodes Ray prints among the results, on standard output, whatever `init` was told
    worker = ray._private.worker
    printed, worker.print_to_stdstream = worker.print_to_stdstream, lambda *_, **__: None
    try:
        yield
    finally:
        ray.shutdown()
        worker.print_to_stdstream = printed
        if not asked and "RAY_AUTH_MODE" in os.environ:  # the next cluster may want none
            _set_mode(ray, None)


def _enter(ray: Any, on: str, address: str) -> None:
    started = {"include_dashboard": False, "object_store_memory": STORE_BYTES} if address == "local" else {}
    if os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0":  # it may have been imported before we said so
        ray._private.ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
    try:
        with _own_signals(), _hushed():
            place = _found(address)
            if place != "local":
                _show_token(ray, on, place)
            ray.init(address=place, logging_level="ERROR", log_to_driver=False, **started)
    except RecipeError:
        raise
    except (Exception, SystemExit) as error:  # Ray ends a process whose cluster does not answer
        said = words(error) if isinstance(error, Exception) else "it does not answer as Ray does"
        raise RecipeError(
            f"--on {on}: no Ray cluster to join ({said}); expected one that this machine is part of; type "
            "`ray start --head` here, or `ray start --address HOST:PORT` to make it one"
        ) from None


def words(error: BaseException) -> str:
    """What Ray says, as one line, without the numbers that it gives to everything."""
    text = NUMBERS.sub("", " ".join(str(error).split()))
    return text[:200].rstrip(". ") or type(error).__name__


def _found(address: str) -> str:
    """Where the cluster is, after it has answered."""
    if address == "auto":
        from ray._private import services

        # what `ray.init("auto")` does first; we need the address to see whether anybody is there
        address = services.canonicalize_bootstrap_address_or_die("auto")
    if address != "local":
        check_answer(address)
    return address


def check_answer(address: str) -> None:
    """Whether somebody speaks HTTP/2 there, as Ray's head does.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS) as line:
        line.sendall(GREETING)
        with suppress(OSError):
            answer = line.recv(9)
            if len(answer) == 9 and answer[3] == SETTINGS_FRAME:
                return
    raise ConnectionError(f"what listens at {address} is not Ray's head")


def _show_token(ray: Any, on: str, address: str) -> None:
    """Ask once, without a token and with the one that lies here, as nobody but the head says whether it wants
    one: a driver that shows one to a cluster without gets no answers back. Ray itself would ask twenty times,
    and abort where it is told to show one that is not there.

    Raises:
        RecipeError: the cluster wants another one.
    """
    if not hasattr(ray.exceptions, "AuthenticationError"):  # a Ray of the time before tokens
        return
    here, asked = _has_token(), os.environ.get("RAY_AUTH_MODE")
    if (asked != "token" or here) and _is_let_in(ray, address):
        return
    if asked is None and here:
        _set_mode(ray, "token")
        if _is_let_in(ray, address):
            return
        _set_mode(ray, None)
    shown = "this machine has another" if here and asked in (None, "token") else "none was shown"
    raise RecipeError(
        f"--on {on}: the cluster at {address} asks for its token, and {shown}; copy {TOKEN} from the machine "
        "of its head to here, and set RAY_AUTH_MODE=token or leave it unset"
    )


def _is_let_in(ray: Any, address: str) -> bool:
    try:
        ray._raylet.GcsClient(address=address)
    except ray.exceptions.AuthenticationError:
        return False
    return True


def _set_mode(ray: Any, mode: str | None) -> None:
    """Show a token from now on, or none; Ray may have read the environment already."""
    os.environ.pop("RAY_AUTH_MODE", None)
    if mode:
        os.environ["RAY_AUTH_MODE"] = mode
    ray._raylet.Config.initialize("")


def _has_token() -> bool:
    """Whether a token of Ray lies here."""
    told = (os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return any(told) or TOKEN.expanduser().exists()


@contextmanager
def _hushed() -> Iterator[None]:
    """What Ray's own libraries write past Python to standard error is not for who typed the command."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself; the command line has its own way to stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
