"""The page's server: Python's own `http.server`, on the loopback address alone.

The standard library, because one reader on one machine asks for a page, some JSON and thumbnails: there is
nothing that a framework would add but a dependency. What its manual warns of is met here: it listens on
127.0.0.1, answers only its own host name (so that no foreign site can reach it through a name of its own that
points here), refuses requests that another site sends, knows rows by number and no path, and writes nothing.
"""

import json
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from os import close, fdopen
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from spaner.errors import RunError, SpanerError
from spaner.search.browse.answers import Answers
from spaner.search.browse.media import Unseen

HOST = "127.0.0.1"
LARGEST_DROP = 64 << 20
"""Bytes of a dropped file."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
PAGE = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css")}
PAGE |= {"/page.js": ("page.js", "text/javascript"), "/cards.js": ("cards.js", "text/javascript")}


def serve(answers: Answers, port: int) -> "BrowseServer":
    """A server that listens; `serve_forever` runs it. Port 0 takes any that is free.

    Raises:
        RunError: the port is in use, or may not be used.
    """
    try:
        return BrowseServer(answers, port)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise RunError(
            f"--port {port}: {why}; expected a free port; type `--port {port + 1}`, or `--port 0` for any"
        ) from None


class BrowseServer(ThreadingHTTPServer):
    """One index, one run, one page."""

    daemon_threads = True
    allow_reuse_address = False

    def __init__(self, answers: Answers, port: int) -> None:
        self.answers = answers
        here = files("spaner.search.browse")
        self.page = {way: (kind, (here / name).read_bytes()) for way, (name, kind) in PAGE.items()}
        super().__init__((HOST, port), _Handler)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: BrowseServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "spaner", ""

    def do_GET(self) -> None:
        """A page, a list of hits, or what a row looks or sounds like."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """A dropped file that asks."""
        self._answer(self._post)

    def _answer(self, respond: Callable[[str, dict[str, list[str]]], tuple[str, bytes]]) -> None:
        asked = urlsplit(self.path)
        try:
            if not self._is_ours():
                return self._send(HTTPStatus.FORBIDDEN, "text/plain", b"spaner answers 127.0.0.1 alone\n")
            kind, body = respond(asked.path, parse_qs(asked.query, keep_blank_values=True))
            return self._send(HTTPStatus.OK, kind, body)
        except (Unseen, LookupError) as error:
            return self._send(HTTPStatus.NOT_FOUND, "application/json", _said(error))
        except (SpanerError, ValueError) as error:
            return self._send(HTTPStatus.BAD_REQUEST, "application/json", _said(error))
        except (BrokenPipeError, ConnectionResetError):
            return None  # the reader went elsewhere

    def _is_ours(self) -> bool:
        """Whether the request names this server, and comes from no other site."""
        port = self.server.server_address[1]
        own = {f"{HOST}:{port}", f"localhost:{port}"}
        origin = self.headers.get("Origin")
        site = self.headers.get("Sec-Fetch-Site", "none")
        foreign = origin is not None and origin not in {f"http://{name}" for name in own}
        return self.headers.get("Host") in own and not foreign and site in ("none", "same-origin")

    def _get(self, way: str, query: dict[str, list[str]]) -> tuple[str, bytes]:
        if way in self.server.page:
            return self.server.page[way]
        answers = self.server.answers
        _, kind, *rest = way.split("/")
        if kind == "api" and rest and rest[0] in answers.known:
            return "application/json", json.dumps(answers.known[rest[0]](query)).encode()
        if kind in answers.shown and len(rest) == 1 and rest[0].isdecimal():
            return answers.shown[kind](int(rest[0]))
        raise LookupError("nothing here")

    def _post(self, way: str, query: dict[str, list[str]]) -> tuple[str, bytes]:
        length = int(self.headers.get("Content-Length") or 0)
        if way != "/api/drop":
            raise LookupError("nothing here")
        if not 0 < length <= LARGEST_DROP:
            self.close_connection = True
            raise ValueError(
                f"the file has {length / 1e6:,.0f} MB; expected at most {LARGEST_DROP >> 20} MiB"
            )
        body = self.rfile.read(length)
        with _in_memory(body) as file:
            found = self.server.answers.dropped(file, query)
        return "application/json", json.dumps(found).encode()

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        text = kind.startswith("text/") or kind.endswith("json")
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if text else kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store" if text else "private, max-age=3600")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silence: the terminal is for what matters."""


def _said(error: Exception) -> bytes:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return json.dumps({"error": line}).encode()


@contextmanager
def _in_memory(body: bytes) -> Any:
    """A path at which the bytes can be read, without a file on a disk where the system can do that."""
    try:
        from os import memfd_create  # Linux
    except ImportError:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "dropped"
            file.write_bytes(body)
            yield file
        return
    handle = memfd_create("dropped")
    try:
        with fdopen(handle, "wb", closefd=False) as stream:
            stream.write(body)
        yield Path(f"/proc/self/fd/{handle}")
    finally:
        close(handle)
