"""Reading: every way to ask for rows gives the same rows, and memory does not grow."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spaner import cache
from spaner.errors import CacheError, Corrupt


@pytest.fixture
def table(make: Callable[[Path], Path], path: Path):
    with cache.open(make(path)) as opened:
        yield opened.table("image/train")


def test_what_was_written_is_read(table: cache.Table, source):
    assert (table.name, table.rows, table.dim, table.views) == (
        "image/train",
        23,
        7,
        ("centre", "random crop"),
    )
    assert table.manifest == source.manifest
    assert table.measured == {"purity": 0.0}
    np.testing.assert_array_equal(table.read(), source.stored())
    assert table.read().dtype == np.float32
    assert table.labels.tolist() == source.labels.tolist()
    assert table.labels.dtype == np.int32
    assert table.ids.tolist() == source.ids
    assert table.ids.dtype.kind == "U"
    assert np.flatnonzero(~table.ok).tolist() == [7]
    assert table.failures() == {source.ids[7]: "image file is truncated"}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.integers(-23, 22)),
    start=st.none() | st.integers(-30, 30),
    stop=st.none() | st.integers(-30, 30),
)
def test_reading_equals_numpy_indexing(table: cache.Table, source, rows: list[int], start, stop):
    stored = source.stored()
    np.testing.assert_array_equal(table.read(np.array(rows, np.int64)), stored[rows] if rows else stored[:0])
    for step in (None, 1, 3, -2):
        np.testing.assert_array_equal(table.read(slice(start, stop, step)), stored[slice(start, stop, step)])


def test_masks_select_and_wrong_rows_are_index_errors(table: cache.Table, source):
    np.testing.assert_array_equal(table.read(table.ok), source.stored()[table.ok])
    assert table.read([]).shape == (0, 2, 7)  # pyright: ignore
    for wrong in (np.array([23]), np.array([-24]), np.ones(5, bool)):
        with pytest.raises(IndexError, match="image/train"):
            table.read(wrong)


@pytest.mark.parametrize("block", [None, 1, 4, 5, 11, 23, 100])
def test_stream_gives_every_row_once_in_order(table: cache.Table, source, block: int | None):
    spans, blocks = zip(*table.stream(block), strict=True)
    assert [row for span in spans for row in range(span.start, span.stop)] == list(range(23))
    np.testing.assert_array_equal(np.concatenate(blocks), source.stored())


def test_stream_by_chunks_copies_nothing(make: Callable[[Path], Path], path: Path, encoder):
    rows, dim = 4099, 257
    with cache.create(path, "pets", ["a"]) as made:
        features = np.ones((rows, dim), np.float32)
        made.add("image", "train", features, np.zeros(rows, np.int32), encoder="toy", chunk_rows=509)
    with cache.open(path) as opened:
        table = opened.table("image/train")
        tracemalloc.start()
        total = sum(float(block[:, 0, 0].sum()) for _, block in table.stream())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert total == rows
    assert peak < features.nbytes / 20


def test_stored_draw_is_read_and_others_are_computed(table: cache.Table, source):
    assert table.draw(2, 1).tolist() == source.draws["2-shot-seed-1"].tolist()
    assert table.draw(3, 2).tolist() == cache.few_shot(source.labels, 3, 2).tolist()


def test_incomplete_table_has_only_its_stored_draws(path: Path, encoder, source):
    partial = type(source)(encoder, complete=False)
    with cache.create(path, "pets", ["cat", "dog", "Häher"]) as made:
        with partial.begin(made) as writer:
            partial.write(writer)
            writer.seal()
        table = made.table("image/train")
        assert table.draw(2, 1).tolist() == partial.draws["2-shot-seed-1"].tolist()
        with pytest.raises(
            CacheError, match=r"only the rows of its draws \(2-shot-seed-1\), not 4-shot-seed-1"
        ):
            table.draw(4, 1)


def test_a_missing_chunk_is_never_read_as_zeros(make: Callable[[Path], Path], tmp_path: Path):
    made = make(tmp_path / "cache")
    (made / "image/train/features/c.1.0.0").unlink()
    (made / "image/train/status/c.2").unlink()
    with cache.open(made) as opened:
        table = opened.table("image/train")
        with pytest.raises(Corrupt, match=r"c\.1\.0\.0 is damaged: it is missing"):
            table.read(slice(4, 6))
        with pytest.raises(Corrupt, match=r"damaged: its row status differs"):
            _ = table.ok


def test_short_chunk_file_and_zero_block_are_one_line(make: Callable[[Path], Path], tmp_path: Path):
    made = make(tmp_path / "cache")
    file = made / "image/train/features/c.1.0.0"
    file.write_bytes(file.read_bytes()[:-3])
    with cache.open(made) as opened:
        with pytest.raises(Corrupt, match="has 277 of 280 bytes"):
            opened.table("image/train").read()
        with pytest.raises(CacheError, match="at least 1 row, found -1"):
            list(opened.table("image/train").stream(-1))
