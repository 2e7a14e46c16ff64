"""A run to the hub and back through the real client, against a small stand-in of the hub's HTTP interface."""

import base64
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

import spaner
from spaner.align.train.run import Run
from spaner.errors import RunError
from spaner.search.encoding import open_run, run_sha256
from spaner.search.share import hub
from spaner.search.share.card import wilson
from tests.conftest import Outcome

Cli = Callable[..., Outcome]


class Hub(ThreadingHTTPServer):
    """Repositories in memory, name -> file -> bytes: what the client needs to make, fill and read one."""

    daemon_threads = True

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def revision(self, name: str) -> str:
        files = self.repositories[name]
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        way = urlsplit(self.path).path.split("/")
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'ORG'}/{asked['name'].rpartition('/')[2]}"
            self.server.repositories.setdefault(name, {})
            return self._json({"url": f"{self.server.url}/{name}"})
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        name = "/".join(way[3:5])
        if way[5] == "preupload":
            files = [f | {"uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]
            return self._json({"files": files})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                value = line["value"]
                self.server.repositories[name][value["path"]] = base64.b64decode(value["content"])
        sha = self.server.revision(name)
        return self._json(
            {"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{name}/commit/{sha}"}
        )

    def do_GET(self) -> None:
        way = [unquote(part) for part in urlsplit(self.path).path.split("/")]
        self.server.asked.append("/".join(way))
        name = "/".join(way[3:5]) if way[1] == "api" else "/".join(way[1:3])
        if name not in self.server.repositories:
            return self._send(
                404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            )
        files, sha = self.server.repositories[name], self.server.revision(name)
        if way[5:6] == ["tree"]:
            digests = {file: hashlib.sha1(data).hexdigest() for file, data in files.items()}
            entries = [
                {"type": "file", "path": file, "size": len(files[file]), "oid": digest}
                for file, digest in digests.items()
            ]
            return self._json(entries)
        if way[1] == "api":
            siblings = [{"rfilename": file, "size": len(data)} for file, data in files.items()]
            return self._json({"id": name, "sha": sha, "private": False, "siblings": siblings, "tags": []})
        data = files["/".join(way[5:])]
        tags = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": sha}
        return self._send(200, data, tags)

    do_HEAD = do_GET

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, and a client that knows no other hub and no older cache."""
    with Hub() as listening:
        Thread(target=listening.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", listening.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        template = listening.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setenv("HF_ENDPOINT", listening.url)
        monkeypatch.setenv("HF_TOKEN", "hf_none")
        yield listening
        listening.shutdown()


def test_there_and_back(server: Hub, cli: Cli, run: Run, run_folder: Path, tmp_path: Path) -> None:
    done = cli("push", run_folder, "ORG/digits")
    assert done.status == 0, done.err
    sent = server.repositories["ORG/digits"]
    assert set(sent) == set(hub.FILES)
    result = json.loads(sent["result.json"])
    assert "cache" not in result, "where the pusher's cache lies is nobody's business"
    done = cli("pull", "ORG/digits", "--out", tmp_path / "runs" / "mine")
    assert done.status == 0, done.err
    again = spaner.load(tmp_path / "runs" / "mine")
    assert run_sha256(again) == run_sha256(run)
    assert again.metrics == run.metrics
    assert run_sha256(open_run("hf:ORG/digits")) == run_sha256(run)
    revision = server.revision("ORG/digits")
    assert run_sha256(open_run(f"hf:ORG/digits@{revision}")) == run_sha256(run)


def test_a_dry_run_sends_nothing_and_shows_all(server: Hub, cli: Cli, run: Run, run_folder: Path) -> None:
    done = cli("push", run_folder, "ORG/digits", "--dry-run")
    assert done.status == 0, done.err
    assert server.repositories == {}
    for file in hub.FILES:
        assert file in done.out
    assert run.metrics is not None
    accuracy = run.metrics["text"]["accuracy"]
    low, high = wilson(accuracy, run.metrics["rows"])
    assert f"| text | {100 * accuracy:.1f} ({100 * low:.1f} – {100 * high:.1f}) |" in done.out
    for line in (
        "16 shots a class",
        "997 rows of image/test",
        "audio joined later",
        "## Limits",
        "zero, one",
    ):
        assert line in done.out
    assert run.encoders["image"].weights_sha256[:16] in done.out


def test_wilson() -> None:
    assert wilson(0.2, 10) == pytest.approx((0.0567, 0.5098), abs=1e-3)  # two of ten, Wilson's own formula
    assert wilson(1.0, 5)[1] == 1
    assert wilson(0.0, 5)[0] == 0


def test_only_files_of_a_run_are_fetched(server: Hub, run_folder: Path, tmp_path: Path) -> None:
    files = dict(hub.prepare(run_folder, "ORG/digits").files)
    server.repositories["ORG/digits"] = files | {"pytorch_model.bin": b"\x80\x04", "setup.py": b"boom"}
    folder = hub.pull("ORG/digits", tmp_path / "run")
    assert sorted(path.name for path in folder.iterdir()) == sorted(hub.FILES)
    assert not [way for way in server.asked if way.endswith(("bin", "py"))]


@pytest.mark.parametrize("file", ["model.safetensors", "result.json", "config.json", "classes.txt"])
def test_a_file_that_differs_from_its_hash(server: Hub, run_folder: Path, tmp_path: Path, file: str) -> None:
    files = dict(hub.prepare(run_folder, "ORG/digits").files)
    files[file] = files[file][:-1] + b" "
    server.repositories["ORG/digits"] = files
    with pytest.raises(RunError, match=rf"{file} has SHA-256 .*hashes.json says"):
        hub.pull("ORG/digits", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_repositories_that_are_no_run(server: Hub, cli: Cli, run_folder: Path, tmp_path: Path) -> None:
    server.repositories["ORG/other"] = {"README.md": b"x"}
    with pytest.raises(RunError, match=r"is no run: it has no model\.safetensors"):
        hub.fetched("ORG/other")
    files = dict(hub.prepare(run_folder, "ORG/digits").files)
    server.repositories["ORG/digits"] = files | {"hashes.json": b"[]"}
    with pytest.raises(RunError, match=r"hashes\.json is damaged"):
        hub.fetched("ORG/digits")
    done = cli("pull", "ORG/nothing")
    assert done.status == 1
    assert "pull of ORG/nothing failed at http://127.0.0.1" in done.err
    for name in ("digits", "../x/y", "a/b/c", "-a/b", "hf:"):
        with pytest.raises(RunError, match="is no repository"):
            hub.check_name(name)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").touch()
    server.repositories["ORG/digits"] = files
    with pytest.raises(RunError, match="exists already"):
        hub.pull("ORG/digits", tmp_path / "full")


def test_a_hub_that_does_not_answer(run_folder: Path, monkeypatch: pytest.MonkeyPatch, server: Hub) -> None:
    upload = hub.prepare(run_folder, "ORG/digits")
    server.shutdown()
    server.server_close()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match=r"push to ORG/digits failed at .*; expected a hub that answers"):
        hub.push(upload)


def test_a_damaged_run_does_not_leave(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    weights = tmp_path / "run" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(RunError, match="cannot be read"):
        hub.prepare(tmp_path / "run", "ORG/digits")
