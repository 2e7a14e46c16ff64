"""The further views of a written digit: what they are made of, and that their rows say which digit it is."""

from typing import Any

import numpy as np
import pytest
import torch

from spaner.extract.datasets import digits, dtmf, morse, speech, strokes
from spaner.extract.datasets.dataset import read
from spaner.extract.encoders.digit_views import VIEWS
from spaner.extract.encoders.encoder import load


@pytest.fixture(scope="module")
def dataset():
    return read("digits")


def rows(dataset, modality: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    encoder, part = load("digits", modality), dataset.splits[modality][split]
    x = encoder.encode(torch.stack([encoder.prepare(part.open(key), 0, key, 0) for key in part.ids])).numpy()
    return x / np.linalg.norm(x, axis=1, keepdims=True), part.labels


def test_every_view_has_a_row_for_every_scan_under_its_id(dataset):
    for modality in VIEWS:
        for split in ("train", "test"):
            scans, view = dataset.splits["image"][split], dataset.splits[modality][split]
            assert list(view.ids) == list(scans.ids)
            assert np.array_equal(view.labels, scans.labels)


@pytest.mark.parametrize("modality", VIEWS)
def test_a_line_through_the_rows_tells_digits_apart_and_not_all_of_them(dataset, modality):
    """Random features that no label has touched; chance is 0.1."""
    from sklearn.linear_model import LogisticRegression

    probe = LogisticRegression(C=100, max_iter=1000).fit(*rows(dataset, modality, "train"))
    assert 0.7 < probe.score(*rows(dataset, modality, "test")) < 0.99


def test_a_thick_bar_is_thinned_to_one_line_that_keeps_its_length():
    scan = np.zeros((1, 8, 8), np.uint8)
    scan[0, 1:7, 3:5] = 255
    (lines,) = strokes.skeletons(scan)
    assert set(lines.sum(1)) == {0, 1}
    assert lines.sum() >= 12


def parts(cells: np.ndarray, structure: np.ndarray | None = None) -> int:
    from scipy.ndimage import label

    found: Any = label(cells, structure)
    return int(found[1])


def test_thinning_keeps_a_ring_a_ring_and_parts_apart():
    scan = np.zeros((1, 8, 8), np.uint8)
    scan[0, 0:5, 0:5] = 255
    scan[0, 2, 2] = 0
    scan[0, 7, 2:7] = 255
    (lines,) = strokes.skeletons(scan)
    eight = np.ones((3, 3))
    assert parts(lines, eight) == 2
    assert parts(~np.pad(lines, 1)) == 2  # outside, and the hole


def test_a_path_visits_every_point_once_and_begins_at_an_end():
    lines = np.zeros((24, 24), bool)
    lines[20, 4:15] = True
    lines[5:20, 14] = True
    walk = strokes.path(lines)
    assert sorted(map(tuple, walk.tolist())) == sorted(map(tuple, strokes.points(lines).tolist()))
    assert walk[0] == pytest.approx([14.5 / 24, 5.5 / 24])
    assert np.linalg.norm(np.diff(walk, axis=0), axis=1).max() < 2 / 24  # never lifted


def test_no_ink_is_one_line():
    with pytest.raises(ValueError, match="no ink"):
        strokes.points(np.zeros((8, 8), bool))


def test_points_are_spread_evenly_along_a_path():
    found = strokes.evenly(np.array([[0, 0], [0, 0.25], [1, 0.25]], np.float32), 6)
    assert found[0].tolist() == [0, 0]
    assert found[-1].tolist() == [1, 0.25]
    assert np.linalg.norm(np.diff(strokes.evenly(np.array([[0, 0], [1, 0]]), 5), axis=0), axis=1) == (
        pytest.approx([0.25] * 4)
    )


def test_strokes_know_no_order_and_a_path_does(dataset):
    part = dataset.splits["path"]["test"]
    walk = part.open(part.ids[0])
    back = walk[::-1]
    for modality, same in (("strokes", True), ("path", False)):
        encoder = load("digits", modality)
        a, b = encoder.encode(torch.stack([encoder.prepare(each, 0, "", 0) for each in (walk, back)]))
        assert torch.allclose(a, b, atol=0.05) == same


@pytest.mark.parametrize("digit", [2, 7])
def test_a_vowel_is_loud_at_its_formants(digit):
    """The middle of "two" is uw: 300 Hz loud, between the first two formants quiet."""
    draw = np.random.default_rng(0)
    wave = speech.word(2, 0.4, 100.0, 1.0, draw)
    spectrum = np.abs(np.fft.rfft(wave[len(wave) // 2 :] * np.hanning(len(wave) - len(wave) // 2)))
    hertz = np.fft.rfftfreq(len(wave) - len(wave) // 2, 1 / speech.RATE)
    power = {f: spectrum[(hertz > f - 60) & (hertz < f + 60)].max() for f in (300, 870, 600, 1600)}
    assert power[300] > 3 * power[600] > 0
    assert power[870] > 3 * power[1600] > 0


@pytest.mark.parametrize("make", [speech.clip, morse.keying, lambda d, k, s: dtmf.clip(str(d), k, s)])
def test_what_is_synthesised_depends_on_its_id_and_the_seed_alone(make):
    first = make(3, "a", 1)
    make(3, "b", 1)
    assert np.array_equal(first, make(3, "a", 1))
    assert not np.array_equal(first, make(3, "b", 1))
    assert not np.array_equal(first, make(3, "a", 2))


def test_speech_stays_in_range_and_speakers_differ():
    clips = [speech.clip(6, f"clip {i}") for i in range(23)]
    peaks = [np.abs(clip).max() for clip in clips]
    assert {clip.shape for clip in clips} == {(1, 4000)}
    assert 0 < min(peaks) < 0.2 < max(peaks) <= 1


def test_a_dash_is_longer_than_a_dot():
    down = np.mean([morse.keying(3, f"key {i}")[::2] for i in range(101)], axis=0)
    assert min(down[3:]) > 1.5 * max(down[:3])


def test_features_are_named_as_random_and_drawn_by_seed():
    spec = load("digits", "table").spec
    assert (spec.name, spec.weights, spec.synthetic) == (
        "digits/random-features",
        "random features, seed 0",
        False,
    )
    assert load("digits", "table", weights="random", seed=3).spec.weights_sha256 != spec.weights_sha256
    assert len({load("digits", name).spec.weights_sha256 for name in VIEWS}) == len(VIEWS)


def test_a_table_of_another_length_is_no_digit():
    with pytest.raises(ValueError, match=r"shape \(63,\) instead of 64 numbers"):
        load("digits", "table").prepare(np.zeros(63, np.float32), 0, "", 0)


def test_the_scans_of_views_are_the_scans_of_pictures(dataset):
    key = dataset.splits["image"]["test"].ids[5]
    number = int(key.removeprefix("scan/"))
    assert np.array_equal(
        dataset.splits["table"]["test"].open(key) * 255, digits.load()[0][number].ravel().astype(np.float32)
    )
