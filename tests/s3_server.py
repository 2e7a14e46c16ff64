"""A real S3 server in this process (moto's), with what networks do: refusals, silence, bodies cut short.

Every request is counted. `fault(method, path)` may name what happens to one: "503", "403", "silence" (no
answer in time), "cut" (half of the body), "unconditional" (If-None-Match is not heard), or None.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import fsspec.config
from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

TIMEOUT = 1.0
STATUS = {
    "503": ("503 Slow Down", "<Error><Code>SlowDown</Code></Error>"),
    "403": ("403 Forbidden", "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"),
}
Fault = Callable[[str, str], str | None]


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None: ...


class S3Server:
    """The server, and what was asked of it.

    Attributes:
        requests: (method, path) in order. sent: bytes of all answers to GET.
    """

    def __init__(self) -> None:
        self._app = create_backend_app("s3")  # without moto's search for the service at each request
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        words = (
            f"server/{self._server.server_port}"  # other options than those of another server: another client
        )
        self.options = {
            "config_kwargs": {
                "read_timeout": TIMEOUT,
                "connect_timeout": TIMEOUT,
                "user_agent_extra": words,
            }
        }
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "FSSPEC_S3": json.dumps(self.options),
        }
        self.delay = 0.0
        self.forget()

    def forget(self) -> None:
        """Count anew, and have no faults."""
        self.requests: list[tuple[str, str]] = []
        self.sent = 0
        self.fault: Fault = lambda method, path: None

    def make_bucket(self, name: str) -> None:
        """An empty bucket, named in `bucket`."""
        word = hashlib.sha256(f"{name} {time.time_ns()}".encode()).hexdigest()[:12]
        fsspec.filesystem("s3", use_listings_cache=False).mkdir(word)
        self.bucket = f"s3://{word}"

    def contents(self, place: str) -> dict[str, bytes]:
        """Every object below an address, and beside it, with its bytes."""
        fs = fsspec.filesystem("s3", use_listings_cache=False)
        folder = place.removeprefix("s3://").rpartition("/")[0]
        return {key.removeprefix(folder + "/"): data for key, data in fs.cat(fs.find(folder)).items()}

    def asked(self, method: str, word: str = "") -> list[str]:
        """Paths of requests of a method that hold a word."""
        return [path for kind, path in self.requests if kind == method and word in path]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        what = self.fault(method, path)
        time.sleep(2 * TIMEOUT if what == "silence" else self.delay)
        if what in STATUS:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            body = STATUS[what][1].encode()
            start(STATUS[what][0], [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [body]
        if what == "unconditional":
            environ.pop("HTTP_IF_NONE_MATCH", None)
        body = b"".join(self._app(environ, start))
        self.sent += len(body) if method == "GET" else 0
        return _cut(body) if what == "cut" else [body]


def _cut(body: bytes) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    raise ConnectionAbortedError("the test cuts this answer short")


@contextmanager
def serving() -> Iterator[S3Server]:
    """A server, and this process (and its children) set to use it."""
    server = S3Server()
    before = {name: os.environ.get(name) for name in server.environment}
    configured = fsspec.config.conf.get("s3")
    os.environ.update(server.environment)
    fsspec.config.conf["s3"] = server.options
    try:
        yield server
    finally:
        server.close()
        fsspec.config.conf.pop("s3")
        if configured is not None:
            fsspec.config.conf["s3"] = configured
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
