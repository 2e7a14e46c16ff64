"""Small caches whose sizes are different primes, so that a swapped axis cannot pass."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spaner import cache
from spaner.cache import EncoderSpec, Manifest, drawn_sha256, few_shot, ids_sha256

N, V, D, C, CHUNK = 23, 2, 7, 3, 5
CLASSES = ["cat", "dog", "Häher"]


@pytest.fixture(params=["zarr", "h5"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where a cache may be made, in both formats."""
    return tmp_path / ("cache.h5" if request.param == "h5" else "cache")


def toy() -> EncoderSpec:
    return EncoderSpec(
        name="toy",
        weights="random",
        weights_sha256="0" * 64,
        modality="image",
        dim=D,
        preprocessing={"size": 11, "mean": [0.5, 0.25]},
        precision="float32",
        synthetic=True,
    )


@pytest.fixture
def encoder() -> EncoderSpec:
    return toy()


class Source:
    """One table's worth of made-up rows, listing and manifest; every row is a function of its number."""

    def __init__(self, encoder: EncoderSpec, rows: int = N, chunk_rows: int = CHUNK, **changes: Any) -> None:
        self.ids = [f"train/{CLASSES[row % C]}/{row:03d}.jpg" for row in range(rows)]
        self.labels = np.arange(rows) % C
        self.features = np.random.default_rng(17).normal(size=(rows, V, D)).astype(np.float32)
        self.reasons = {1: {2: "image file is truncated"}}  # row 2 of chunk 1
        drawn = few_shot(self.labels, 2, 1)
        self.draws = {"2-shot-seed-1": drawn}
        manifest = Manifest(
            dataset="pets",
            modality="image",
            split="train",
            rows=rows,
            views=("centre", "random crop"),
            dim=D,
            dtype="float32",
            chunk_rows=chunk_rows,
            encoder=encoder,
            seed=3,
            rows_sha256=ids_sha256(self.ids),
            draws={"2-shot-seed-1": drawn_sha256(self.ids, drawn)},
        )
        self.manifest = replace(manifest, **changes)

    def begin(self, opened: cache.Cache, **options: Any) -> cache.Writer:
        return opened.begin(self.manifest, self.ids, self.labels, self.draws, **options)

    def write(self, writer: cache.Writer, chunks: list[int] | None = None) -> None:
        for chunk in writer.pending if chunks is None else chunks:
            writer.write(chunk, self.features[writer.rows(chunk)], reasons=self.reasons.get(chunk))

    def stored(self) -> np.ndarray:
        """What must be read back: the failed row is zeros."""
        expected = self.features.copy()
        expected[CHUNK + 2] = 0
        return expected


@pytest.fixture
def source(encoder: EncoderSpec) -> Source:
    return Source(encoder)


def build(path: Path, source: Source) -> Path:
    """A whole cache of two tables, image/train and text/vanilla."""
    with cache.create(path, "pets", CLASSES) as made:
        with source.begin(made) as writer:
            source.write(writer)
            assert writer.seal({"purity": 0.0})
        text = np.random.default_rng(5).normal(size=(C, D)).astype(np.float16)
        made.add("text", "vanilla", text, np.arange(C), CLASSES, encoder="toy", views=["a photo of a {}."])
    return path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One finished cache of each format, by suffix; not to be changed."""
    folder = tmp_path_factory.mktemp("built")
    return {suffix: build(folder / f"cache{suffix}", Source(toy())) for suffix in ("", ".h5")}


@pytest.fixture
def make(built: dict[str, Path]) -> Callable[[Path], Path]:
    """A copy of the finished cache at a path of your choice."""

    def copy(path: Path) -> Path:
        whole = built[path.suffix]
        return Path(shutil.copytree(whole, path) if whole.is_dir() else shutil.copyfile(whole, path))

    return copy


def contents(path: Path) -> dict[str, bytes]:
    """Every file at and beside `path` (locks and leftovers too) with its bytes."""
    root = path.parent
    return {
        str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()
    }


@pytest.fixture(name="contents")
def contents_fixture() -> Callable[[Path], dict[str, bytes]]:
    return contents
