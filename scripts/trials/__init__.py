"""What the trials of `scripts/reliability` share: small inputs, children to be killed, a line per kind."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEAD = f"{'':44s}{'tried':>8s}{'found':>8s}{'survived':>10s}"
TINY: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 19, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
PATIENCE = 120  # seconds after which a child counts as hanging


@dataclass
class Outcome:
    """One kind of harm: how often it was tried and noticed, and how often it ended as promised."""

    what: str
    tried: int = 0
    found: int = 0
    failed: list[str] = field(default_factory=list)

    def add(self, *, found: bool, failure: str | None, when: str) -> None:
        """Count one trial."""
        self.tried += 1
        self.found += found
        if failure is not None:
            self.failed.append(f"{self.what}, {when}: {failure}")

    def __str__(self) -> str:
        return f"{self.what:44s}{self.tried:8,d}{self.found:8,d}{self.tried - len(self.failed):10,d}"


def warm_up() -> None:
    """Import now what children would each import for seconds."""
    for module in (
        "open_clip",
        "spaner.align.train.sweep",
        "spaner.extract.repair",
        "spaner.extract.extract",
    ):
        import_module(module)
    for module in ("extract", "encoders.clip", "datasets.folder", "datasets.csv_list", "datasets.audio"):
        import_module(f"spaner.extract.{module}")


def in_child(work: Callable[[], object], kill_after: float | None = None) -> tuple[int, str]:
    """Run work in a forked process: its exit status (negative: the signal) and what it said.

    0: it returned; 1: a SpanerError, said in one line; 2: anything else.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        os._exit(_status(work, writer))
    os.close(writer)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader, "rb") as stream:
        said = stream.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def _status(work: Callable[[], object], writer: int) -> int:
    from spaner.errors import SpanerError

    signal.alarm(PATIENCE)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        found = work()
    except SpanerError as error:
        os.write(writer, str(error).encode("utf-8", "replace")[:4000])
        return 1 if "\n" not in str(error) else 2
    except BaseException as error:
        os.write(writer, f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:4000])
        return 2
    if found is not None:
        os.write(writer, str(found).encode("utf-8", "replace")[:4000])
    return 0


def pictures(root: Path, train: int = 9, test: int = 4) -> None:
    """Three classes of small photographs made of noise."""
    for split, count in (("train", train), ("test", test)):
        for c, name in enumerate(("ant", "bee", "cat")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                noise = np.random.default_rng([c, i, count]).integers(0, 256, (7, 7, 3), np.uint8)
                Image.fromarray(noise).resize((41, 37)).save(root / split / name / f"{i}.jpg")


def settings(folder: Path) -> dict[str, Any]:
    """An extraction of such pictures in a few chunks; makes what it needs."""
    if not (folder / "model.json").exists():
        (folder / "model.json").write_text(json.dumps(TINY))
        pictures(folder / "photos")
    model = {"model": str(folder / "model.json"), "pretrained": "random", "precision": "float32"}
    size = {"chunk_rows": 4, "batch_size": 4, "views": 1, "templates": ("vanilla", "classname")}
    return {"dataset": f"folder:{folder / 'photos'}", "shots": (2,), **model, **size}


def bytes_of(path: Path) -> dict[str, bytes]:
    """Every file below a path (or the file itself), by name."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def different(found: dict[str, bytes], expected: dict[str, bytes]) -> str | None:
    """What differs, None if nothing does."""
    names = sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n))
    return f"{len(names)} files differ from an undisturbed run, first {names[0] or 'it'}" if names else None


def flip(file: Path, draw: random.Random) -> str:
    """Flip one random bit of a file; which."""
    data = bytearray(file.read_bytes())
    bit = draw.randrange(len(data) * 8)
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)
    return f"bit {bit} of {file.name}"
