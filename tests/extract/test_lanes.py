"""Two batches under way at a time give the table that one after another gives."""

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from spaner import cache as caches
from spaner.errors import EncoderError
from spaner.extract import pipeline
from spaner.extract.datasets.dataset import Split, read
from spaner.extract.encoders.encoder import load

CARD = torch.device("cpu")
"""Stands for a card: what is CUDA's alone, streams and pinned memory, is left out there."""
SIZE = 8


@pytest.fixture(scope="module")
def feed() -> tuple[pipeline.Feed, Split]:
    """The digits' scans, of which one cannot be opened."""
    split = read("digits").splits["image"]["test"].take(np.arange(90))
    whole = split.open

    def opened(key: str) -> object:
        if key == split.ids[5]:
            raise OSError("no such scan")
        return whole(key)

    split = dataclasses.replace(split, open=opened)
    return pipeline.feed(split, load("digits", "image"), 1, 0, pipeline.Pace(SIZE, workers=2)), split


def filled(path: Path, feed: pipeline.Feed, split: Split) -> tuple[np.ndarray, dict[str, str]]:
    """All rows as stored, and the failures."""
    spec = load("digits", "image").spec
    manifest = caches.Manifest(
        "digits", "image", "test", len(split), ("centre",), spec.dim, "float32", 20, spec, 0,
        caches.ids_sha256(split.ids),
    )  # fmt: skip
    with caches.create(path, "digits", [str(i) for i in range(10)]) as cache:
        with cache.begin(manifest, split.ids, split.labels, None) as writer:
            pipeline.fill(writer, feed, lambda _: None)
            failures = dict(writer.failures())
            writer.seal(None)
        return cache.table("image/test").read(), failures


def test_two_batches_under_way_give_the_same_table(feed, tmp_path: Path) -> None:
    one, split = feed
    two = dataclasses.replace(one, card=CARD)
    rows, failures = filled(tmp_path / "one", one, split)
    again, same = filled(tmp_path / "two", two, split)
    assert np.array_equal(rows, again)
    assert failures == same == {split.ids[5]: "no such scan"}


def test_they_are_under_way_at_once(feed, tmp_path: Path) -> None:
    """The first waits until the second has been begun too."""
    one, split = feed
    both = threading.Barrier(2, timeout=20)
    calls = iter(range(1000))

    def encode(inputs: torch.Tensor) -> np.ndarray:
        if next(calls) < 2:
            both.wait()
        return one.encode(inputs)

    filled(tmp_path / "cache", dataclasses.replace(one, card=CARD, encode=encode), split)
    assert next(calls) > 2


def test_what_goes_wrong_in_a_batch_ends_the_extraction(feed, tmp_path: Path) -> None:
    one, split = feed

    def encode(inputs: torch.Tensor) -> np.ndarray:
        raise EncoderError("the card is gone")

    with pytest.raises(EncoderError, match="the card is gone"):
        filled(tmp_path / "cache", dataclasses.replace(one, card=CARD, encode=encode), split)
