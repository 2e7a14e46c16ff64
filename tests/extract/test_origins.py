"""Files that change under the same name: never old and new rows in one table, and never without a word."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import spaner.cache
from spaner.errors import Mismatch
from spaner.extract.extract import extract


@pytest.fixture
def settings(class_folders: Path, tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "dataset": f"folder:{class_folders}",
        "model": str(tiny_model),
        "pretrained": "random",
        "cache": tmp_path / "c",
        "templates": (),
        "chunk_rows": 2,
        "modality": "image",
        "views": 1,
    }


def first_file(root: Path) -> Path:
    return sorted(file for file in (root / "train").rglob("*") if file.is_file())[0]


def another_picture(file: Path, *, padded_to: int | None = None) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 40, 3), np.uint8)).save(file)
    if padded_to is not None:
        data = file.read_bytes()
        file.write_bytes(data[:padded_to].ljust(padded_to, b"\0"))


def rows(cache: Path) -> np.ndarray:
    return spaner.cache.open(cache).table("image/train").read().copy()


def test_a_finished_table_refuses_a_file_of_another_size(
    settings: dict[str, Any], class_folders: Path
) -> None:
    extract(**settings)
    stat, file = spaner.cache.open(settings["cache"]).table("image/train").stat(), first_file(class_folders)
    assert stat is not None
    assert tuple(stat[0]) == (file.stat().st_size, file.stat().st_mtime_ns, 0)
    before = rows(settings["cache"])
    another_picture(file)
    with pytest.raises(
        Mismatch, match=rf"image/train of .*: 1 files \(first .*{file.name}\) changed .*--overwrite"
    ):
        extract(**settings)
    assert extract(**settings, check="off").notes == []
    np.testing.assert_array_equal(rows(settings["cache"]), before)
    assert extract(**settings, overwrite=True).notes == []
    assert (rows(settings["cache"])[0] != before[0]).any()


def test_another_time_is_said_and_content_decides(settings: dict[str, Any], class_folders: Path) -> None:
    extract(**settings)
    file = first_file(class_folders)
    os.utime(file, ns=(1, 1))
    (note,) = extract(**settings).notes
    assert f"(first {file.parent.name}/{file.name})" in note or file.name in note
    assert "have another time than when their rows were encoded" in note
    content: dict[str, Any] = settings | {"check": "content", "cache": settings["cache"].with_name("d")}
    extract(**content)
    os.utime(file, ns=(2, 2))
    assert extract(**content).notes == []  # touched, not changed
    size = file.stat().st_size
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    assert file.stat().st_size == size
    with pytest.raises(Mismatch, match=r"1 files .* changed since their rows were encoded"):
        extract(**content)


def test_a_half_done_table_ends_with_rows_of_one_state(
    settings: dict[str, Any], class_folders: Path, tmp_path: Path
) -> None:
    class Killed(Exception):
        """Raised after the first chunks of the training table."""

    def die(done: int, total: int, what: str) -> None:
        if what == "image/train" and done >= 4:
            raise Killed

    with pytest.raises(Killed):
        extract(**settings, progress=die)
    another_picture(first_file(class_folders))
    summary = extract(**settings)
    assert any(
        "changed since their rows were encoded; their 1 chunks are encoded again" in n for n in summary.notes
    )
    fresh: dict[str, Any] = settings | {"cache": tmp_path / "fresh"}
    extract(**fresh)
    np.testing.assert_array_equal(rows(settings["cache"]), rows(tmp_path / "fresh"))
