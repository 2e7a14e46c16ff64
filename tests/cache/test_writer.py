"""Writing: order, resuming, refusing, repairing, sharing."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spaner import cache
from spaner.cache import files
from spaner.errors import Busy, CacheError, Corrupt, Mismatch, Unsealed

CLASSES = ["cat", "dog", "Häher"]


def create(path: Path) -> cache.Cache:
    return cache.create(path, "pets", CLASSES)


def parts(path: Path) -> Path:
    """The Zarr directory where rows are written first."""
    return path if not path.suffix else path.with_name(path.name + ".parts")


def test_resumed_table_continues_and_ends_bit_identical(path: Path, source, make, contents, tmp_path: Path):
    with create(path) as made, source.begin(made) as writer:
        assert writer.pending == [0, 1, 2, 3, 4]
        source.write(writer, [0, 3])
        assert writer.pending == [1, 2, 4]
        with pytest.raises(Unsealed, match=r"3 of 5 chunks are not written \(1, 2, 4\)"):
            writer.seal()
    with pytest.raises(
        Unsealed, match=r"image/train of .* holds 10 of 23 rows; .* run the same `spaner extract`"
    ):
        cache.open(path)
    with create(path) as made:
        assert (made.tables(), made.unsealed()) == ([], ["image/train"])
        with pytest.raises(Unsealed, match="holds 10 of 23 rows"):
            made.table("image/train")
        with source.begin(made) as writer:
            assert writer.pending == [1, 2, 4]
            source.write(writer)
            assert writer.seal({"purity": 0.0})
        text = np.random.default_rng(5).normal(size=(3, 7)).astype(np.float16)
        made.add("text", "vanilla", text, np.arange(3), CLASSES, encoder="toy", views=["a photo of a {}."])
    other = make(
        tmp_path / "undisturbed" / path.name if not path.suffix else tmp_path / path.with_stem("other").name
    )
    assert files_of(path, contents) == files_of(other, contents)


def files_of(path: Path, contents: Callable) -> dict[str, bytes]:
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(Path(name).relative_to(path.name)): data for name, data in contents(path).items()
            if name.startswith(path.name + "/")}  # fmt: skip


@pytest.mark.parametrize("array", ["features", "status", "checksum", "reason"])
def test_a_torn_chunk_that_is_flagged_done_is_redone(path: Path, source, array: str):
    with create(path) as made, source.begin(made) as writer:
        source.write(writer, [0, 1])
    torn = next((parts(path) / "image/train" / array).glob("c.1*"))
    data = bytearray(torn.read_bytes())
    data[3 % len(data)] ^= 1
    torn.write_bytes(data)
    with create(path) as made, source.begin(made) as writer:
        assert writer.pending == [1, 2, 3, 4]
        source.write(writer)
        writer.seal()
    with cache.open(path) as opened:
        assert opened.verify() == []


def test_sealed_table_has_nothing_pending_and_stays_as_it_is(path: Path, make, source, contents):
    before = contents(make(path))
    with create(path) as made, source.begin(made) as writer:
        assert writer.pending == []
        assert writer.seal({"purity": 9.0})
    assert contents(path) == before


def test_repair_rewrites_only_the_chunks_and_ends_bit_identical(path: Path, make, source, contents):
    before = contents(make(path))
    with create(path) as made:
        measured = made.table("image/train").measured
        with source.begin(made) as writer:
            writer.reset([1, 3])
            assert writer.pending == [1, 3]
            with pytest.raises(CacheError, match="chunk 0 of image/train is not waiting"):
                source.write(writer, [0])
            source.write(writer)
            writer.seal(measured)
    assert contents(path) == before


def test_repair_cut_short_leaves_the_table_unsealed_not_wrong(path: Path, make, source, contents):
    before = contents(make(path))
    with create(path) as made, source.begin(made) as writer:
        writer.reset([1])
        with pytest.raises(CacheError, match="chunks 0 to 4, asked for \\[5\\]"):
            writer.reset([5])
    with cache.open(path) as opened:
        assert (opened.tables(), opened.unsealed()) == (["text/vanilla"], ["image/train"])
        assert opened.has("text/vanilla")
        assert not opened.has("image/train"), "not before its seal"
    with create(path) as made, source.begin(made) as writer:
        assert writer.pending == [1]
        source.write(writer)
        writer.seal({"purity": 0.0})
    assert contents(path) == before


def test_failed_rows_are_zeros_with_a_one_line_reason(path: Path, source):
    long = "no\n  such\0file " + "ä" * 200
    with create(path) as made, source.begin(made) as writer:
        source.write(writer, [0, 2, 3, 4])
        nan = source.features[5:10].copy()
        nan[2] = np.nan
        writer.write(1, nan, np.array([1, 1, 2, 1, 2], np.uint8), {2: long})
        writer.seal()
        failures = made.table("image/train").failures()
    assert failures[source.ids[9]] == "no reason given"
    assert failures[source.ids[7]] == "no such file " + "ä" * 73
    assert len(failures) == 2


def test_nan_is_refused_by_name(path: Path, source):
    with create(path) as made, source.begin(made) as writer:
        for bad in (np.nan, np.inf):
            rows = source.features[5:10].copy()
            rows[3, 1, 2] = bad
            with pytest.raises(
                Corrupt, match=rf"1 rows of image/train hold NaN or infinity .* first {source.ids[8]}"
            ):
                writer.write(1, rows)
        assert 1 in writer.pending


def test_a_value_too_large_for_float16_is_refused_not_stored_as_infinity(path: Path, source, encoder):
    half = type(source)(encoder, dtype="float16")
    half.features[8] = 1e6
    with (
        create(path) as made,
        half.begin(made) as writer,
        pytest.raises(Corrupt, match=r"infinity in float16.*008"),
    ):
        half.write(writer)


def test_shapes_and_status_are_checked(path: Path, source):
    with create(path) as made, source.begin(made) as writer:
        with pytest.raises(CacheError, match=r"chunk 4 .* shape \(5, 2, 7\), expected \(3, 2, 7\)"):
            writer.write(4, source.features[:5])
        with pytest.raises(CacheError, match="status must be 3 values of 1"):
            writer.write(4, source.features[:3], np.zeros(3, np.uint8))


def test_other_settings_are_a_mismatch_that_names_them(path: Path, make, source):
    make(path)
    encoder = replace(source.manifest.encoder, weights_sha256="1" * 64)
    source.manifest = replace(source.manifest, encoder=encoder, seed=4)
    with create(path) as made, pytest.raises(Mismatch) as caught:
        source.begin(made)
    message = str(caught.value)
    assert "image/train" in message
    assert "seed 3 there, 4 asked" in message
    assert "encoder.weights_sha256 '0000" in message
    assert message.endswith("choose another --cache, or replace it with --overwrite")


def test_other_labels_are_a_mismatch_too(path: Path, make, source):
    make(path)
    source.labels = source.labels[::-1]
    with create(path) as made, pytest.raises(Mismatch, match="labels 'others' there"):
        source.begin(made)


def test_overwrite_replaces_whatever_is_there(path: Path, make, source):
    make(path)
    source.manifest = replace(source.manifest, seed=4)
    with create(path) as made:
        with source.begin(made, overwrite=True) as writer:
            assert writer.pending == [0, 1, 2, 3, 4]
            assert made.unsealed() == ["image/train"]
            source.write(writer)
            writer.seal()
        assert made.table("image/train").manifest.seed == 4
    with cache.open(path) as opened:
        assert opened.table("image/train").manifest.seed == 4
        assert opened.tables() == ["image/train", "text/vanilla"]
        assert opened.verify() == []


def test_second_writer_is_refused_while_the_first_lives(path: Path, source):
    with create(path) as made, create(path) as other:
        with (
            source.begin(made),
            pytest.raises(Busy, match=r"image/train of .* being written by process \d+ on "),
        ):
            source.begin(other)
        if not path.suffix:
            source.begin(other).close()
    with create(path) as made:
        source.begin(made).close()


def test_no_lock_is_left(path: Path, source):
    with create(path) as made, source.begin(made) as writer:
        assert list(path.parent.glob(".*.lock"))
        source.write(writer)
        writer.seal()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_workers_share_a_table_and_the_last_one_seals(path: Path, source, encoder, contents):
    lone = path.with_name("lone" + path.suffix)
    with create(lone) as made, source.begin(made) as writer:
        source.write(writer)
        writer.seal()
    with create(path) as one, create(path) as two:  # noqa: SIM117, the writers end before the caches
        with source.begin(one, worker=(0, 2)) as first, source.begin(two, worker=(1, 2)) as second:
            assert (first.pending, second.pending) == ([0, 2, 4], [1, 3])
            with create(path) as third:
                with pytest.raises(Busy, match="image/train"):
                    source.begin(third)
                with pytest.raises(Busy, match="share 1 of image/train"):
                    source.begin(third, worker=(1, 2))
            with pytest.raises(CacheError, match="needs a single worker, found 2"):
                source.begin(one, overwrite=True, worker=(0, 2))
            source.write(first)
            assert first.seal() is False
            source.write(second)
            assert second.seal() is True
            assert first.seal() is True
    assert files_of(path, contents) == files_of(lone, contents)


def test_adding_is_one_call_and_repeating_it_changes_nothing(path: Path, contents):
    features, labels = np.eye(5, 11, dtype=np.float32), np.array([0, 1, 2, 0, 1])
    for _ in range(2):
        with create(path) as made:
            table = made.add("audio", "fold1", features, labels, encoder="mine")
            assert (table.rows, table.dim, table.views, table.manifest.encoder.name) == (
                5,
                11,
                ("view 0",),
                "mine",
            )
            np.testing.assert_array_equal(table.read()[:, 0], features)
            assert table.ids.tolist() == [f"{row:07d}" for row in range(5)]
    with create(path) as made:
        with pytest.raises(Mismatch, match="arrays_sha256"):
            made.add("audio", "fold1", features + 1, labels, encoder="mine")
        made.add("audio", "fold1", features + 1, labels, encoder="mine", overwrite=True)
        assert made.table("audio/fold1").read()[0, 0, 0] == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"features": np.full((5, 3), np.nan)},
            r"5 rows of image/x hold NaN or infinity in float32, first 'a'",
        ),
        (
            {"features": np.ones(5)},
            r"have shape \(5,\) and type float64, expected numbers of shape \(rows, dim\)",
        ),
        ({"features": np.ones((4, 3))}, "4 rows of features, 5 ids and 5 labels"),
        ({"features": np.ones((5, 0))}, r"have shape \(5, 0\)"),
        ({"dtype": "float64"}, "has dtype 'float64'; expected float16 or float32"),
        ({"ids": list("abcda")}, "lists the id 'a' twice"),
        ({"ids": ["a", "b", "c", "d", ""]}, "id '' is empty or holds a NUL"),
        ({"ids": ["a", "b", "c", "d", "\ud800"]}, "cannot be written as UTF-8"),
        ({"labels": np.array([0, 1, 2, 3, 1])}, "label 3 of 'd' in image/x is outside 0 to 2"),
        ({"labels": np.array([0, 1, 2, -1, 1])}, "label -1 of 'd' in image/x is outside 0 to 2"),
        ({"views": ["one", "two"]}, "image/x has 1 views but 2 view names"),
        ({"split": "../x"}, r"'\.\./x' cannot name a part of a cache"),
        ({"chunk_rows": 0}, "image/x has 0 chunk_rows; expected at least 1"),
    ],
)
def test_adding_refuses_what_does_not_fit(tmp_path: Path, change: dict, words: str):
    given = {"modality": "image", "split": "x", "features": np.ones((5, 3)), "labels": np.zeros(5, int)}
    given |= {"ids": list("abcde"), "encoder": "mine"} | change
    with create(tmp_path / "cache") as made:
        with pytest.raises(CacheError, match=words):
            made.add(**given)
        assert made.tables() == made.unsealed() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "cars"}, "image/train is of dataset 'cars', the cache of 'pets'"),
        ({"rows": 22}, "22 rows but 23 ids and 23 labels"),
        ({"dim": 8}, "image/train has dim 8, its encoder 7"),
        ({"rows_sha256": "0"}, r"rows_sha256 of image/train is not that of its ids"),
        ({"draws": {}}, r"got draws \['2-shot-seed-1'\], its manifest lists \[\]"),
        ({"draws": {"2-shot-seed-1": "0"}}, "draw 2-shot-seed-1 of image/train differs from its hash"),
        ({"schema": "spaner-cache/9"}, "has schema spaner-cache/9, this spaner writes spaner-cache/2"),
        ({"dtype": "int8"}, "has dtype 'int8'; expected float16 or float32"),
    ],
)
def test_beginning_refuses_a_manifest_that_contradicts_the_listing(
    tmp_path: Path, source, changes, words: str
):
    source.manifest = replace(source.manifest, **changes)
    with create(tmp_path / "cache") as made, pytest.raises(CacheError, match=words):
        source.begin(made)


def test_draw_outside_the_table_is_refused(tmp_path: Path, source):
    source.draws = {"2-shot-seed-1": np.array([99])}
    with create(tmp_path / "cache") as made, pytest.raises(CacheError, match="empty or outside rows 0 to 22"):
        source.begin(made)


def test_a_cache_open_for_reading_cannot_be_written(path: Path, make, source):
    with (
        cache.open(make(path)) as opened,
        pytest.raises(CacheError, match=r"open for reading; use spaner\.cache\.create"),
    ):
        source.begin(opened)


def test_folder_that_cannot_be_written_is_one_line(tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(CacheError, match=r"cannot write .*(Not a directory|File exists); make the folder"):
        create(blocked / "cache")


def test_leftovers_of_a_killed_creation_are_cleared(path: Path, source, contents):
    with create(path) as made, source.begin(made) as writer:
        source.write(writer)
        writer.seal()
    before = contents(path)
    with create(path) as made:
        source.begin(made).reset([0])  # an HDF5 cache gets its parts back
        place = parts(path)
        for name in (files.temporary(place / "image=train", kind) for kind in ("new", "old")):
            shutil.copytree(place / "image/train", name)
        files.temporary(place / "image/train/features/c.0.0.0").write_bytes(b"torn")
        files.temporary(place / "zarr.json").write_bytes(b"torn")
    with create(path) as made, source.begin(made, overwrite=True) as writer:
        source.write(writer)
        writer.seal()
    assert contents(path) == before


def test_what_kills_left_in_any_folder_goes(make, source, contents, tmp_path: Path):
    made = make(tmp_path / "cache")
    before = contents(made)

    def leave() -> int:
        folders = [made, *(folder for folder in made.rglob("*") if folder.is_dir())]
        for folder in folders:
            (folder / f".zarr.json.{'0123456789abcdef'}.partial").write_bytes(b"{")
        return len(folders)

    assert leave() > 10
    with create(made) as opened, source.begin(opened) as writer:
        assert writer.sealed
        for chunk in ("image/train/ids/.c.0.0", "image/train/draws/2-shot-seed-1/.c.0"):
            (made / f"{chunk}.0123456789abcdef.partial").touch()
    with create(made) as opened:
        opened.mend()  # of every table, whoever asks for one
        with source.begin(opened) as writer:
            writer.reset([2])
            for array in ("features", "done", "checksum"):
                (made / f"image/train/{array}/.c.2.0123456789abcdef.partial").touch()
    with create(made) as opened, source.begin(opened) as writer:
        source.write(writer)
        (made / "image/train/.zarr.json.0123456789abcdef.partial").touch()
        assert writer.seal(writer.measured)
    assert contents(made) == before
