"""A run to the hub and back: safetensors, JSON and a card; hashes in a file of their own, checked.

    ORG/NAME/model.safetensors  config.json  result.json  loss.csv  README.md  classes.txt  hashes.json

Only these names are fetched, whatever else a repository holds; nothing is unpickled or executed. The way to
the cache on the pusher's disk stays behind. The hub's address is huggingface_hub's own (`HF_ENDPOINT`).
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError

from spaner.align.train import run_folder
from spaner.align.train.run import load
from spaner.cache import files as disk
from spaner.errors import RunError
from spaner.search.share.card import card

NEEDED = ("model.safetensors", "config.json", "result.json", "hashes.json")
FILES = (*NEEDED, "loss.csv", "README.md", "classes.txt")
SCHEMA = "spaner-hub/1"
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
LARGEST = 1 << 30
"""Bytes of one file of a run; the largest there is has some tens of megabytes."""


@dataclass(frozen=True)
class Upload:
    """What is sent: the repository, and each file's bytes by name."""

    repository: str
    files: dict[str, bytes]


def prepare(folder: str | Path, repository: str) -> Upload:
    """The files of a run as they are sent; nothing is sent.

    Raises:
        RunError: no finished run there, or a name that is no ORG/NAME.
    """
    folder = Path(folder)
    check_name(repository)
    load(folder)  # strict: nothing damaged leaves
    result = run_folder.read_result(folder)
    result.pop("cache", None)
    files = {
        "model.safetensors": (folder / "model.safetensors").read_bytes(),
        "config.json": _json(result["config"]),
        "result.json": _json(result),
        "README.md": card(result, repository).encode(),
        "classes.txt": "".join(f"{_line(name)}\n" for name in result["class_names"]).encode(),
    }
    if (folder / "loss.csv").is_file():
        files["loss.csv"] = (folder / "loss.csv").read_bytes()
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    return Upload(repository, files | {"hashes.json": _json({"schema": SCHEMA, "sha256": hashes})})


def push(upload: Upload, *, private: bool = False) -> str:
    """Send a run in one commit; returns its address.

    Raises:
        RunError: the hub is out of reach, or refuses.
    """
    api = huggingface_hub.HfApi(library_name="spaner")
    operations = [
        huggingface_hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=data)
        for name, data in upload.files.items()
    ]
    try:
        api.create_repo(upload.repository, private=private, exist_ok=True)
        done = api.create_commit(upload.repository, operations, commit_message="A run of spaner")
    except Exception as error:  # the client raises its own, its transport's and ValueError
        raise RunError(
            _failed(f"push to {upload.repository}", error, "log in with `hf auth login`")
        ) from None
    return str(done.commit_url)


def pull(name: str, out: str | Path | None = None) -> Path:
    """Fetch a run into a folder, checked; default: runs/NAME.

    Args:
        name: ORG/NAME, or ORG/NAME@REVISION.

    Raises:
        RunError: no such run, the hub is out of reach, a hash that differs, or the folder holds another run.
    """
    source = fetched(name)
    target = Path(out) if out is not None else Path("runs") / name.partition("@")[0].rpartition("/")[2]
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunError(f"{target} exists already; expected a new folder; choose another with --out")
    with disk.writing(target, RunError, "--out"):
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        try:
            part.chmod(0o755)
            for file in FILES:
                if (source / file).is_file():
                    shutil.copyfile(source / file, part / file)  # the cache holds links
            if target.is_dir():
                target.rmdir()
            part.replace(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target


def fetched(name: str) -> Path:
    """The folder of a run in the hub client's own cache, downloaded where it is not there, and checked.

    Raises:
        RunError: as for `pull`.
    """
    repository, _, revision = name.partition("@")
    check_name(repository)
    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=list(FILES), library_name="spaner"
        )
    except Exception as error:  # the client raises its own, its transport's and OSError
        raise RunError(_failed(f"pull of {name}", error, "check the name and `HF_ENDPOINT`")) from None
    place = Path(folder)
    check_files(place, name)
    load(place)
    return place


def check_files(folder: Path, name: str) -> None:
    """Compare every file with hashes.json.

    Raises:
        RunError: a file is missing, too many bytes long, or differs.
    """
    missing = [file for file in NEEDED if not (folder / file).is_file()]
    if missing:
        raise RunError(f"{name} is no run: it has no {missing[0]}; expected what `spaner push` sends")
    for file in FILES:
        if (folder / file).is_file() and (folder / file).stat().st_size > LARGEST:
            raise RunError(
                f"{name}: {file} is larger than {LARGEST >> 30} GiB; expected a run; choose another"
            )
    try:
        told: Any = json.loads((folder / "hashes.json").read_bytes())["sha256"]
        told = {str(file): str(digest) for file, digest in told.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RunError(
            f"{name}: hashes.json is damaged; expected {SCHEMA!r}; ask its author to push again"
        ) from None
    for file in FILES:
        if file in ("hashes.json", "README.md") or not (folder / file).is_file():
            continue  # a card may be edited on the hub
        found, wanted = hashlib.sha256((folder / file).read_bytes()).hexdigest(), told.get(file, "nothing")
        if found != wanted:
            raise RunError(
                f"{name}: {file} has SHA-256 {found[:12]}, hashes.json says {wanted[:12]}; "
                "expected equal; fetch it again, or ask its author to push again"
            )


def check_name(repository: str) -> None:
    """Raise RunError unless this can be a repository of the hub."""
    if not NAME.fullmatch(repository):
        raise RunError(
            f"{repository!r} is no repository; expected ORG/NAME; type for example `ORG/digits-spaner`"
        )


def _failed(what: str, error: Exception, hint: str) -> str:
    code = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    line = (str(error).splitlines() or [type(error).__name__])[0]
    where = os.environ.get("HF_ENDPOINT", huggingface_hub.constants.ENDPOINT)
    status = f"status {code}, " if code else ""
    return f"{what} failed at {where}: {status}{line[:200]}; expected a hub that answers; {hint}"


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def _line(name: str) -> str:
    return " ".join(name.split())
