"""Fixtures that several rooms share."""

import os
import sys

# One thread a process: the tests run on all cores already, and torch reads this when it is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Workers and commands import torch dozens of times: what Python compiles of it is kept, also if told not to.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Nothing is downloaded, and what is not on this disk is said so at once and not after minutes of retrying.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import spaner.cache
from spaner.cache import EncoderSpec

if TYPE_CHECKING:
    from tests.s3_server import S3Server


def pytest_configure() -> None:
    """Keep compiled modules in this process too; the children are told above."""
    sys.dont_write_bytecode = False


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Folder with real photographs, sounds and split files; tests that want it skip where it is absent."""
    default = Path(__file__).parents[1].parent / "shared" / "data"
    root = Path(os.environ.get("SPANER_SAMPLE_DATA", default))
    if not (root / "photos").is_dir():
        pytest.skip("sample data not found; set SPANER_SAMPLE_DATA to its folder")
    return root


def made_up_spec(modality: str, dim: int, weights_sha256: str = "ab") -> EncoderSpec:
    """An encoder that never was: its rows are drawn."""
    return EncoderSpec(
        "toy", "made-up", weights_sha256, modality, dim, {}, "float32", logit_scale=20.0, synthetic=True
    )


@pytest.fixture(scope="session")
def toy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven classes of drawn embeddings in two modalities with an offset each; treat it as read-only."""
    path = tmp_path_factory.mktemp("toy") / "toy"
    make_toy_cache(path)
    return path


def make_toy_cache(path: Path, classes: int = 11, dim: int = 24, weights_sha256: str = "ab") -> None:
    """Write a cache of drawn embeddings: 7 training and 13 test rows a class, three template sets."""
    rng = np.random.default_rng(0)
    means, image_offset, text_offset = rng.normal(size=(classes, dim)), *rng.normal(size=(2, dim))
    with spaner.cache.create(path, "toy", [f"class {i}" for i in range(classes)]) as cache:
        for split, rows in (("train", 7), ("test", 13)):
            labels = np.repeat(np.arange(classes, dtype=np.int32), rows)
            sample = means[labels][:, None] + 0.8 * rng.normal(size=(len(labels), 1, dim)) + image_offset
            views = sample + 0.2 * rng.normal(size=(len(labels), 2, dim))
            spec = made_up_spec("image", dim, weights_sha256)
            cache.add("image", split, views.astype(np.float32), labels, encoder=spec)
        for templates, count in (("mined", 5), ("vanilla", 1), ("classname", 1)):
            texts = means[:, None] + text_offset + 0.3 * rng.normal(size=(classes, count, dim))
            spec = made_up_spec("text", dim, weights_sha256)
            labels = np.arange(classes, dtype=np.int32)
            cache.add("text", templates, texts.astype(np.float32), labels, encoder=spec)


@pytest.fixture(scope="module")
def few_rows_in_the_plane() -> Iterator[None]:
    """For tests that look elsewhere: t-SNE is most of a report's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spaner.align.report.measured.PLANE_ROWS", 11)
        yield


@pytest.fixture(scope="module")
def one_core() -> Iterator[None]:
    """Cells run in this process unless a test says how many at once: the tests are on all cores already, and
    each worker imports torch anew. tests/align/test_sweep.py runs two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spaner.align.train.cells.cores", lambda: 1)
        yield


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    status: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command line in this process, with its own error handling."""

    def run(*words: object) -> Outcome:
        from spaner.cli import main

        monkeypatch.setattr(sys, "argv", ["spaner", *map(str, words)])
        capfd.readouterr()
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capfd.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def s3_server() -> "Iterator[S3Server]":
    from tests.s3_server import serving  # two seconds of import that no other test needs

    with serving() as server:
        yield server


@pytest.fixture
def s3(s3_server: "S3Server", request: pytest.FixtureRequest) -> "S3Server":
    """A real S3 server with an empty bucket: `s3.bucket` is its address."""
    s3_server.forget()
    s3_server.make_bucket(request.node.name)
    s3_server.forget()
    return s3_server
