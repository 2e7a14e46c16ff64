"""Repair: damaged chunks come back as they were, with the same encoder or not at all."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spaner.cache
from spaner.errors import Corrupt, DatasetError, EncoderError, Mismatch, Unsealed
from spaner.extract.encoders import clip
from spaner.extract.encoders.clip_weights import resolve
from spaner.extract.extract import extract
from spaner.extract.repair import repair


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    torch.save(clip.build(resolve(str(tiny_model), "random"), seed=5).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def source(class_folders: Path, tiny_model: Path, checkpoint: Path) -> dict[str, Any]:
    return {"dataset": f"folder:{class_folders}", "model": str(tiny_model), "pretrained": str(checkpoint)}


@pytest.fixture(scope="module")
def sound(source: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    path = tmp_path_factory.mktemp("sound") / "c"
    extract(**source, cache=path, shots=(2,), templates=("mined",), chunk_rows=4)
    return path


@pytest.fixture
def cache(sound: Path, tmp_path: Path) -> Path:
    """One's own, to spoil."""
    return shutil.copytree(sound, tmp_path / "c")


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


def flip_bit(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    "name",
    [
        "image/train/labels/c.0",
        "image/train/ids/c.0.0",
        "image/train/draws/2-shot-seed-1/c.0",
        "image/train/draws/zarr.json",
        "image/train/ids/zarr.json",
        "image/train/features/zarr.json",
        "image/train/done/c.1",
        "image/train/stat/c.1.0",
        "image/zarr.json",
        "text/mined/labels/c.0",
        "zarr.json",
    ],
)
def test_one_bit_anywhere_is_mended_beside_a_damaged_chunk(
    cache: Path, source: dict[str, Any], name: str
) -> None:
    """By the repair, and by the same extraction again; both end with the bytes of before."""
    before = bytes_of(cache)
    flip(cache, "image/train", 0)
    flip_bit(cache / name, 2 if "done" in name else 8 * 3 + 2)
    assert bytes_of(cache) != before
    summary = repair(cache, **source)
    assert summary.repaired >= 1
    assert bytes_of(cache) == before


def test_damage_of_every_kind_in_a_finished_table_is_mended_by_extracting_again(
    cache: Path, source: dict[str, Any]
) -> None:
    before = bytes_of(cache)
    names = ["zarr.json", "labels/c.0", "draws/2-shot-seed-1/c.0", "ids/zarr.json"]
    for name in names:
        flip_bit(cache / "image/train" / name, 8 * 3 + 2)
    flip(cache, "image/train", 1)
    flip(cache, "text/mined", 0)
    (cache / "image/test/zarr.json").unlink()
    summary = extract(cache=cache, shots=(2,), templates=("mined",), chunk_rows=4, **source)
    assert bytes_of(cache) == before
    for words in [*(f"train/{name}" for name in names[:1]), "labels of image/train", "text/mined: 1 damaged"]:
        assert any(words in note for note in summary.notes), (words, summary.notes)
    assert extract(cache=cache, shots=(2,), templates=("mined",), chunk_rows=4, **source).notes == []


def test_a_repair_that_was_killed_is_finished(cache: Path, source: dict[str, Any]) -> None:
    before = bytes_of(cache)
    flip(cache, "image/train", 0)
    with spaner.cache.open(cache) as opened:
        name, classes, manifest = opened.dataset, opened.class_names, opened.manifest("image/train")
        ids, labels, draws = opened.listing("image/train") or ([], np.empty(0), {})
    with spaner.cache.create(cache, name, classes) as opened:
        opened.begin(manifest, ids, labels, draws).reset([0])  # and dies
    assert repair(cache, **source).repaired == 1
    assert bytes_of(cache) == before


def test_an_extraction_that_was_killed_is_finished_by_repair(
    cache: Path, source: dict[str, Any], tmp_path: Path
) -> None:
    class Killed(Exception):
        """Raised in the middle of the first table."""

    def die(done: int, total: int, what: str) -> None:
        raise Killed

    with pytest.raises(Killed):
        extract(
            cache=tmp_path / "d",
            shots=(2,),
            modality="image",
            templates=(),
            chunk_rows=4,
            progress=die,
            **source,
        )
    with pytest.raises(Unsealed):
        spaner.cache.open(tmp_path / "d")
    repair(tmp_path / "d", **source)
    tables = {name: data for name, data in bytes_of(tmp_path / "d").items() if name.count("/") > 1}
    assert len(tables) > 10
    assert tables.items() <= bytes_of(cache).items()


def test_a_flipped_row_of_an_hdf5_file_is_repaired(
    cache: Path, source: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "c.h5"
    spaner.cache.copy(cache, file)
    whole = file.read_bytes()
    with spaner.cache.open(cache) as opened:
        row = opened.table("image/train").read(np.array([4])).tobytes()
    for bit in (whole.index(row) * 8 + 5, 300 * 8):  # a feature; the space that HDF5 leaves to the user
        flip_bit(file, bit)
        with spaner.cache.open(file) as opened:
            assert opened.verify()
        repair(file, **source)
        assert file.read_bytes() == whole
    flip_bit(file, whole.index(row) * 8 + 5)
    extract(cache=file, shots=(2,), templates=("mined",), chunk_rows=4, **source)
    assert file.read_bytes() == whole


def test_a_truncated_hdf5_file_is_replaced_as_the_line_says(
    cache: Path, source: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "c.h5"
    spaner.cache.copy(cache, file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-4_000])
    again: dict[str, Any] = {"cache": file, "shots": (2,), "templates": ("mined",), "chunk_rows": 4} | source
    with pytest.raises(Corrupt, match=r"copy it again, or delete it and run the same `spaner extract` again"):
        extract(**again)
    file.unlink()
    extract(**again)
    assert file.read_bytes() == whole


def test_the_users_own_arrays_cannot_be_extracted_again(tmp_path: Path) -> None:
    with spaner.cache.create(tmp_path / "c", "mine", ["a", "b"]) as opened:
        opened.add("image", "train", np.ones((4, 3), np.float32), np.array([0, 1, 0, 1]), encoder="arrays")
    flip(tmp_path / "c", "image/train", 0)
    with pytest.raises(EncoderError, match="its rows came from 'arrays', which spaner cannot run"):
        repair(tmp_path / "c")
