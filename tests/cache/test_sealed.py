"""What is read is what was sealed: a flip in any byte that a reader uses is an error, not another number."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from spaner import cache
from spaner.cache import integrity
from spaner.errors import Corrupt, SpanerError
from tests.cache.test_flip import files, flip


def used(path: Path) -> list:
    """Everything that training and scoring read."""
    with cache.open(path) as opened:
        found: list = [opened.dataset, opened.class_names]
        for name in ("image/train", "text/vanilla"):
            table = opened.table(name)
            found += [table.manifest, table.measured, table.failures()]
            found += [array.tolist() for array in (table.read(), table.labels, table.ids, table.ok)]
            found += [[block.tolist() for _, block in table.stream()], table.draw(2, 1).tolist()]
        return found


def used_or_error(path: Path) -> list | str:
    try:
        return used(path)
    except SpanerError as error:
        return str(error)


def test_no_flip_gives_other_values(make, path: Path):
    make(path)
    draw, before = random.Random(path.suffix), used(path)
    changed = 0
    for file in files(path):
        bits = file.stat().st_size * 8
        for _ in range(3 if path.is_dir() else 120):
            bit = draw.randrange(bits)
            flip(file, bit)
            found = used_or_error(path)
            assert found == before or isinstance(found, str), f"bit {bit} of {file} gives other values"
            changed += isinstance(found, str)
            flip(file, bit)
    assert changed > 30
    assert used(path) == before


@pytest.mark.parametrize(
    ("name", "ask", "words"),
    [
        ("features/c.1.0.0", lambda table: table.read([7]), "chunk 1 differs"),
        ("features/c.4.0.0", lambda table: table.read(slice(20, 23)), "chunk 4 differs"),
        ("labels/c.0", lambda table: table.labels, "its listing differs"),
        ("ids/c.0.0", lambda table: table.ids, "its listing differs"),
        ("status/c.2", lambda table: table.ok, "its row status differs"),
        ("reason/c.1.0", lambda table: table.failures(), "chunk 1 differs"),
        ("draws/2-shot-seed-1/c.0", lambda table: table.draw(2, 1), "its draw 2-shot-seed-1 differs"),
        ("checksum/c.3.0", lambda table: table.read(np.array([0])), "the checksums of its chunks differs"),
    ],
)
def test_each_part_is_checked_when_it_is_asked_for(make, tmp_path: Path, name: str, ask, words: str):
    made = make(tmp_path / "cache")
    flip(made / "image/train" / name, 3)
    with cache.open(made) as opened:
        table = opened.table("image/train")
        with pytest.raises(Corrupt, match=rf"image/train of .* is damaged: {words}.*`spaner cache repair"):
            ask(table)


def test_a_chunk_is_hashed_once_and_only_where_it_is_read(make, tmp_path: Path, monkeypatch):
    made = make(tmp_path / "cache")
    flip(made / "image/train/features/c.4.0.0", 3)
    hashed = []
    real = integrity.stored_checksum
    monkeypatch.setattr(integrity, "stored_checksum", lambda *given: hashed.append(given[2]) or real(*given))
    with cache.open(made) as opened:
        table = opened.table("image/train")
        table.read(slice(3, 12))
        table.read(np.array([0, 7, 9]))
        assert hashed == [0, 1, 2]  # chunk 4, which nobody asked for, is not looked at


def test_a_cache_of_the_first_schema_is_checked_too(tmp_path: Path):
    archive = Path(__file__).parent / "archives" / "spaner-cache-1"
    made = Path(shutil.copytree(archive, tmp_path / "cache"))
    flip(made / "image/train/status/c.1", 0)
    with cache.open(made) as opened:
        table = opened.table("image/train")
        np.testing.assert_array_equal(table.read(np.array([0]))[0, 0], np.arange(3) / 8)
        with pytest.raises(Corrupt, match="chunk 1 differs"):
            _ = table.ok
