"""Repair: damaged chunks come back as they were, with the same encoder or not at all."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spaner.cache
from spaner.errors import Corrupt, DatasetError, EncoderError, Mismatch
from spaner.extract.encoders import clip
from spaner.extract.encoders.clip_weights import resolve
from spaner.extract.extract import extract
from spaner.extract.repair import repair


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    torch.save(clip.build(resolve(str(tiny_model), "random"), seed=5).state_dict(), path)
    return path


@pytest.fixture
def cache(class_folders: Path, tiny_model: Path, checkpoint: Path, tmp_path: Path) -> Path:
    settings: dict[str, Any] = {"model": str(tiny_model), "pretrained": str(checkpoint), "chunk_rows": 4}
    extract(
        dataset=f"folder:{class_folders}", cache=tmp_path / "c", shots=(2,), templates=("mined",), **settings
    )
    return tmp_path / "c"


@pytest.fixture
def source(class_folders: Path, tiny_model: Path, checkpoint: Path) -> dict[str, Any]:
    return {"dataset": f"folder:{class_folders}", "model": str(tiny_model), "pretrained": str(checkpoint)}


def flip(cache: Path, table: str, chunk: int) -> None:
    """Flip one bit of a chunk of features."""
    path = cache / table / "features" / f"c.{chunk}.0.0"
    data = bytearray(path.read_bytes())
    data[7] ^= 4
    path.write_bytes(data)


def content(cache: Path) -> dict[str, np.ndarray]:
    with spaner.cache.open(cache) as opened:
        return {name: opened.table(name).read().copy() for name in opened.tables()}


def test_only_the_damaged_chunks_are_extracted_again(cache: Path, source: dict[str, Any]) -> None:
    before = content(cache)
    for table, chunk in (("image/train", 1), ("image/test", 0), ("text/mined", 0)):
        flip(cache, table, chunk)
    with spaner.cache.open(cache) as opened:
        assert len(opened.verify()) == 3
    summary = repair(cache, **source)
    assert summary.repaired == 3
    assert {t.name: t.rows - t.resumed for t in summary.tables} == {
        "image/test": 4,
        "image/train": 2,
        "text/mined": 3,
    }
    with spaner.cache.open(cache) as opened:
        assert opened.verify() == []
        assert opened.table("image/train").draw(2, 1).size == 6
        assert opened.table("image/train").measured["purity"]["pure"]
    after = content(cache)
    assert all(np.array_equal(after[name], before[name]) for name in before)


def test_a_sound_cache_is_left_alone(cache: Path) -> None:
    assert repair(cache).repaired == 0


def test_what_is_missing_is_asked_for(
    cache: Path, source: dict[str, Any], class_folders: Path, tmp_path: Path
) -> None:
    flip(cache, "image/train", 0)
    with pytest.raises(
        EncoderError, match=r"its model tiny was a config file; type `--model PATH/TO/CONFIG.json`"
    ):
        repair(cache)
    with pytest.raises(
        EncoderError, match=r"its weights were the file tiny.pt; type `--pretrained PATH/tiny.pt`"
    ):
        repair(cache, model=source["model"])
    without = {name: value for name, value in source.items() if name != "dataset"}
    with pytest.raises(
        DatasetError, match=r"does not say where data set 'photos' lies.*type for example `--dataset"
    ):
        repair(cache, **without)
    shutil.copytree(class_folders, tmp_path / "less")
    shutil.rmtree(tmp_path / "less" / "train" / "sea")
    shutil.rmtree(tmp_path / "less" / "test" / "sea")
    less: dict[str, Any] = source | {"dataset": f"folder:{tmp_path / 'less'}"}
    with pytest.raises(DatasetError, match=r"image/train: 2 of 6 ids are not in folder:.*check --dataset"):
        repair(cache, **less)


def test_other_weights_are_refused_before_anything_is_written(cache: Path, source: dict[str, Any]) -> None:
    flip(cache, "image/train", 0)
    other: dict[str, Any] = source | {"pretrained": "random"}
    with pytest.raises(Mismatch, match="image/train was made by another encoder: weights_sha256"):
        repair(cache, **other)
    with spaner.cache.open(cache) as opened:
        assert len(opened.verify()) == 1


def test_damaged_ids_cannot_be_mended_by_rows(cache: Path, source: dict[str, Any]) -> None:
    path = cache / "image" / "train" / "labels" / "c.0"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with pytest.raises(Corrupt, match=r"chunks alone cannot mend it.*--overwrite"):
        repair(cache, **source)


def test_the_users_own_arrays_cannot_be_extracted_again(tmp_path: Path) -> None:
    with spaner.cache.create(tmp_path / "c", "mine", ["a", "b"]) as opened:
        opened.add("image", "train", np.ones((4, 3), np.float32), np.array([0, 1, 0, 1]), encoder="arrays")
    flip(tmp_path / "c", "image/train", 0)
    with pytest.raises(EncoderError, match="its rows came from 'arrays', which spaner cannot run"):
        repair(tmp_path / "c")
