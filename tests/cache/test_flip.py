"""One flipped bit anywhere in any file of a cache must be found, in both formats."""

import random
from pathlib import Path

import pytest

from spaner import cache
from spaner.errors import CacheError, SpanerError

FLIPS = 3  # per file of a Zarr cache; the metadata have a test of their own


def noticed(path: Path) -> bool:
    """Whether opening or verifying reports anything; only our own errors count."""
    try:
        with cache.open(path) as opened:
            return bool(opened.verify())
    except SpanerError as error:
        return "\n" not in str(error)


def flip(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def test_a_sound_cache_is_sound(make, path: Path):
    assert not noticed(make(path))


def test_random_flips_in_every_file_are_found(make, path: Path):
    make(path)
    draw = random.Random(path.suffix)
    for file in files(path):
        bits = file.stat().st_size * 8
        for _ in range(FLIPS if path.is_dir() else 150):
            bit = draw.randrange(bits)
            flip(file, bit)
            assert noticed(path), f"bit {bit} of {file}"
            flip(file, bit)
    assert not noticed(path)


@pytest.mark.parametrize(
    "name", ["zarr.json", "image/zarr.json", "image/train/zarr.json", "image/train/ids/zarr.json"]
)
def test_flips_all_over_the_metadata_are_found(make, tmp_path: Path, name: str):
    made = make(tmp_path / "cache")
    file = made / name
    draw = random.Random(name)
    size = file.stat().st_size
    for byte in range(0, size, 1 + size // 97):
        bit = byte * 8 + draw.randrange(8)
        flip(file, bit)
        assert noticed(made), f"bit {bit} of {name}: {file.read_bytes()[max(0, byte - 20) : byte + 20]!r}"
        flip(file, bit)


def test_the_first_512_bytes_count(make, tmp_path: Path):
    made = make(tmp_path / "cache.h5")
    for byte in (*range(0, 100, 2), *range(100, 512, 29)):
        flip(made, byte * 8 + byte % 8)
        assert noticed(made), byte
        flip(made, byte * 8 + byte % 8)


@pytest.mark.parametrize(
    ("name", "chunk", "words"),
    [
        ("features/c.1.0.0", 1, "rows differ from their checksum"),
        ("status/c.2", 2, "rows differ from their checksum"),
        ("reason/c.1.0", 1, "rows differ from their checksum"),
        ("checksum/c.3.0", 3, "rows differ from their checksum"),
        ("done/c.4", 4, "done flag is not 1"),
        ("features/c.4.0.0", 4, "rows differ from their checksum"),
        ("ids/c.0.0", None, "its listing differ from the seal"),
        ("labels/c.0", None, "its listing differ from the seal"),
        ("draws/2-shot-seed-1/c.0", None, "its draws differ from the seal"),
        ("draws/zarr.json", None, "draws/zarr.json is damaged"),
        ("features/zarr.json", None, "damaged"),
    ],
)
def test_a_problem_names_the_chunk_and_what_to_do(make, source, tmp_path: Path, name: str, chunk, words: str):
    made = make(tmp_path / "cache")
    flip(made / "image/train" / name, 20 if chunk is None or "features" in name else 3)
    with cache.open(made) as opened:
        problems = opened.verify()
    assert [(problem.table, problem.chunk) for problem in problems] == [("image/train", chunk)]
    assert words in problems[0].what
    assert problems[0].what.endswith("run `spaner cache repair`")
    repair(made, source, [] if chunk is None else [chunk])
    assert not noticed(made)


def repair(path: Path, source, chunks: list[int]) -> None:
    with cache.create(path, "pets", ["cat", "dog", "Häher"]) as opened, source.begin(opened) as writer:
        writer.reset(chunks)
        source.write(writer)
        writer.seal({"purity": 0.0})


def test_padding_of_the_last_chunk_counts_and_is_repaired(make, source, tmp_path: Path):
    made = make(tmp_path / "cache")
    file = made / "image/train/features/c.4.0.0"
    flip(file, file.stat().st_size * 8 - 1)
    with cache.open(made) as opened:
        (problem,) = opened.verify()
    assert (problem.chunk, "padding" in problem.what, problem.repairable) == (4, True, True)
    repair(made, source, [4])
    assert not noticed(made)


def test_a_flipped_row_in_hdf5_is_found_repaired_and_ends_bit_identical(make, source, tmp_path: Path):
    made = make(tmp_path / "cache.h5")
    whole = made.read_bytes()
    flip(made, whole.index(source.features[11].tobytes()) * 8)
    with cache.open(made) as opened:
        problems = opened.verify()
        chunks = [problem.chunk for problem in problems if problem.chunk is not None]
        assert [problem.table for problem in problems] == ["", "image/train"]
        assert "differs from the SHA-256 in its first 512 bytes" in problems[0].what
    assert chunks == [2]
    repair(made, source, chunks)
    assert made.read_bytes() == whole


def test_an_edited_manifest_is_refused_when_opened(make, tmp_path: Path):
    made = make(tmp_path / "cache")
    file = made / "image/train/zarr.json"
    file.write_bytes(file.read_bytes().replace(b'"seed": 3', b'"seed": 4'))
    with cache.open(made) as opened:
        with pytest.raises(CacheError, match=r"metadata of image/train of .* differs from its seal"):
            opened.table("image/train")
        assert opened.tables() == ["image/train", "text/vanilla"]
    root = made / "zarr.json"
    root.write_bytes(root.read_bytes().replace(b'"dog"', b'"dig"'))
    with pytest.raises(CacheError, match=r"metadata of .* differ from their digest"):
        cache.open(made)
