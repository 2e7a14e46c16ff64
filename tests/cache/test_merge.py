"""Caches made apart become one: other tables side by side, other rows of one table behind each other."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spaner import cache
from spaner.errors import CacheError, Corrupt, Mismatch, Unsealed
from tests.cache.conftest import CHUNK, CLASSES, C, D, N, Source, toy

FEATURES = np.random.default_rng(11).normal(size=(N, D)).astype(np.float32)
LABELS = np.arange(N) % C
IDS = [f"sound {row}" for row in range(N)]


def add(path: Path, rows: slice, split: str = "train", encoder: str = "toy", **options: Any) -> Path:
    """A cache of some rows of one table."""
    with cache.create(path, "pets", CLASSES) as made:
        made.add("audio", split, FEATURES[rows], LABELS[rows], IDS[rows], encoder=encoder, **options)
    return path


def other_rows(path: Path, purity: float, **changes: Any) -> Path:
    """A table like the one of `Source`, of 11 samples that are not among its own."""
    source = Source(toy(), 11, **changes)
    source.ids = [f"train/more/{row}.jpg" for row in range(11)]
    source.manifest = replace(
        source.manifest, rows_sha256=cache.ids_sha256(source.ids), draws={}, dataset="pets"
    )
    source.draws = {}
    with cache.create(path, "pets", CLASSES) as made, source.begin(made) as writer:
        source.write(writer)
        writer.seal(
            {"purity": {"max_relative": purity}, "agreement": {"min_cosine": 1 - purity}, "failed": 1}
        )
    return path


def test_other_splits_and_modalities_lie_side_by_side(make, path: Path, tmp_path: Path):
    first, target = make(path), path.with_name(f"merged{path.suffix}")
    second = add(tmp_path / "test", slice(0, 9), "test")
    assert cache.merge([first, second], target) == []
    with cache.open(target) as made, cache.open(first) as one, cache.open(second) as two:
        assert made.verify() == []
        assert made.tables() == ["audio/test", "image/train", "text/vanilla"]
        for origin in (one, two):
            for name in origin.tables():
                mine, theirs = made.table(name), origin.table(name)
                assert mine.manifest == theirs.manifest
                assert mine.measured == theirs.measured
                assert mine.failures() == theirs.failures()
                assert mine.read().tobytes() == theirs.read().tobytes()


@pytest.mark.parametrize("cuts", [(11,), (1, 2, 22)])
def test_parts_of_brought_vectors_merge_to_the_bytes_of_all_at_once(
    tmp_path: Path, path: Path, contents, cuts: tuple[int, ...]
):
    edges = [0, *cuts, N]
    parts = [
        add(tmp_path / f"part{start}.h5", slice(start, stop), chunk_rows=CHUNK)
        for start, stop in pairwise(edges)
    ]
    for folder in ("merged", "whole"):
        (tmp_path / folder).mkdir()
    cache.merge(parts, tmp_path / "merged" / path.name)
    add(tmp_path / "whole" / path.name, slice(0, N), chunk_rows=CHUNK)
    assert contents(tmp_path / "merged" / path.name) == contents(tmp_path / "whole" / path.name)


def test_joined_rows_keep_what_failed_and_lose_the_draws_of_their_parts(make, tmp_path: Path, source: Source):
    first, second = make(tmp_path / "one"), other_rows(tmp_path / "two", 0.25, chunk_rows=4)
    (said,) = cache.merge([first, second], tmp_path / "merged")
    assert said == (
        "image/train: the draws 2-shot-seed-1 were of its parts and are left out; draw from all rows"
    )
    with cache.open(tmp_path / "merged") as made, cache.open(second) as two:
        assert made.verify() == []
        table, more = made.table("image/train"), two.table("image/train")
        assert table.ids.tolist() == [*source.ids, *more.ids.tolist()]
        assert table.labels.tolist() == [*source.labels.tolist(), *more.labels.tolist()]
        np.testing.assert_array_equal(table.read(), np.concatenate([source.stored(), more.read()]))
        assert table.failures() == {
            source.ids[CHUNK + 2]: "image file is truncated",
            "train/more/6.jpg": "image file is truncated",
        }
        assert table.manifest.draws == {}
        assert table.draw(2, 1).tolist() == cache.few_shot(table.labels, 2, 1).tolist()
        assert table.manifest.chunk_rows == CHUNK


def test_the_worst_that_was_measured_of_a_part_holds_for_the_whole(tmp_path: Path):
    first = other_rows(tmp_path / "one", 0.5)
    with cache.create(tmp_path / "two", "pets", CLASSES) as made:
        source = Source(toy())
        source.manifest, source.draws = replace(source.manifest, draws={}), {}
        with source.begin(made) as writer:
            source.write(writer)
            writer.seal({"purity": {"max_relative": 0.125}, "agreement": {"min_cosine": 0.875}, "failed": 1})
    cache.merge([tmp_path / "two", first], tmp_path / "merged")
    with cache.open(tmp_path / "merged") as made:
        measured = made.table("image/train").measured
    assert measured["purity"] == {"max_relative": 0.5}
    assert measured["agreement"] == {"min_cosine": 0.5}
    assert measured["failed"] == 2
    assert [part["purity"]["max_relative"] for part in measured["parts"]] == [0.125, 0.5]


def test_what_two_caches_hold_alike_is_taken_once(make, tmp_path: Path):
    first, second = make(tmp_path / "one"), make(tmp_path / "two")
    add(second, slice(0, 9))
    said = cache.merge([first, second], tmp_path / "merged")
    assert said == [
        f"{name} is the same in {first} and {second}; taken once, from {first}"
        for name in ("image/train", "text/vanilla")
    ]
    with cache.open(tmp_path / "merged") as made:
        assert made.tables() == ["audio/train", "image/train", "text/vanilla"]
        assert made.table("image/train").manifest.rows == N


def test_a_damaged_source_leaves_an_unfinished_merge_which_continues(make, tmp_path: Path, path: Path):
    first, second = make(tmp_path / "one"), add(tmp_path / "two", slice(0, 9))
    file = first / "image/train/features/c.3.0.0"
    good = file.read_bytes()
    file.write_bytes(b"\1" + good[1:])
    with pytest.raises(Corrupt, match=r"image/train of .*one is damaged: chunk 3"):
        cache.merge([first, second], path)
    with pytest.raises(Unsealed):
        cache.open(path)
    file.write_bytes(good)
    told: list[tuple[int, int, str]] = []
    cache.merge([first, second], path, lambda done, total, what: told.append((done, total, what)))
    assert told[:2] == [(9, 9, "audio/train"), (15, 23, "image/train")]
    with cache.open(path) as made:
        assert made.verify() == []


def test_caches_that_do_not_fit_are_refused_in_one_line(make, tmp_path: Path, source: Source):
    first, target = make(tmp_path / "one"), tmp_path / "merged"

    def refused(second: Path, error: type[CacheError], said: str) -> None:
        with pytest.raises(error, match=said) as caught:
            cache.merge([first, second], target)
        assert "\n" not in str(caught.value)
        assert not target.exists()

    for name, dataset, names, said in (
        ("dogs", "dogs", CLASSES, r"one and .*dogs cannot be merged: dataset 'pets' and 'dogs'; merge"),
        ("more", "pets", [*CLASSES, "hen"], "number of classes 3 and 4"),
        ("birds", "pets", ["cat", "hen", "Häher"], "class 1 'dog' and 'hen'"),
    ):
        with cache.create(tmp_path / name, dataset, names) as made:
            made.add("audio", "train", FEATURES, LABELS, IDS, encoder="toy")
        refused(tmp_path / name, Mismatch, said)
    with cache.create(tmp_path / "old", "pets", CLASSES, schema="spaner-cache/1") as made:
        made.add("audio", "train", FEATURES, LABELS, IDS, encoder="toy")
    refused(tmp_path / "old", Mismatch, "schema 'spaner-cache/2' and 'spaner-cache/1'")
    with cache.create(tmp_path / "other", "pets", CLASSES) as made:
        made.add("text", "mined", FEATURES[:C], LABELS[:C], CLASSES, encoder="tay")
    refused(
        tmp_path / "other",
        Mismatch,
        r"text/vanilla of .*one and text/mined of .*other are of other "
        "encoders: name 'toy' and 'tay'; extract one",
    )
    refused(other_rows(tmp_path / "seed", 0.0, seed=4), Mismatch, r"joined: seed 3 and 4; extract one again")
    refused(
        other_rows(tmp_path / "how", 0.0, options={"order": "sorted"}),
        Mismatch,
        "joined: order None and 'sorted'",
    )
    refused(other_rows(tmp_path / "few", 0.0, complete=False), Mismatch, "complete True and False")
    twice = Source(toy(), 13)
    with cache.create(tmp_path / "twice", "pets", CLASSES) as made, twice.begin(made) as writer:
        twice.write(writer)
        writer.seal()
    refused(
        tmp_path / "twice", CacheError, rf"row '{source.ids[0]}' of image/train is in .*one and in .*twice"
    )


def test_tables_of_draws_alone_are_not_joined(tmp_path: Path):
    paths = []
    for name in ("one", "two"):
        source = Source(toy(), 12, complete=False)
        source.ids = [f"{name}/{row}" for row in range(12)]
        drawn = {"2-shot-seed-1": cache.drawn_sha256(source.ids, source.draws["2-shot-seed-1"])}
        source.manifest = replace(source.manifest, rows_sha256=cache.ids_sha256(source.ids), draws=drawn)
        with cache.create(tmp_path / name, "pets", CLASSES) as made, source.begin(made) as writer:
            source.write(writer)
            writer.seal()
        paths.append(tmp_path / name)
    with pytest.raises(Mismatch, match=r"one holds only the rows of its draws \(2-shot-seed-1\), which mean"):
        cache.merge(paths, tmp_path / "merged")


def test_a_target_that_is_something_else_is_refused(make, tmp_path: Path):
    first, second = make(tmp_path / "one"), add(tmp_path / "two", slice(0, 9))
    with pytest.raises(CacheError, match="at least two caches, found 1"):
        cache.merge([first], tmp_path / "merged")
    with pytest.raises(CacheError, match=r"two is one of the caches that are to be merged; give a new place"):
        cache.merge([first, second], tmp_path / "." / "two")
    with cache.create(tmp_path / "more", "pets", CLASSES) as made:
        made.add("audio", "fold", FEATURES, LABELS, IDS, encoder="toy")
    with pytest.raises(
        Mismatch, match=r"more is not the merge of .*one, .*two: it has another table audio/fold"
    ):
        cache.merge([first, second], tmp_path / "more")
