"""The embedded dataset and its encoder: what is in it, that it is pure, and how well it knows digits."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from spaner.errors import EncoderError
from spaner.extract.datasets import digits, dtmf
from spaner.extract.datasets.dataset import read
from spaner.extract.encoders import digits as digits_encoder
from spaner.extract.encoders import digits_pretrain
from spaner.extract.encoders.encoder import load


@pytest.fixture(scope="module")
def dataset():
    return read("digits")


def embed(encoder, split, rows, view: int = 0) -> torch.Tensor:
    ids = [split.ids[row] for row in rows]
    return encoder.encode(torch.stack([encoder.prepare(split.open(key), view, key, 0) for key in ids]))


def test_no_split_contains_a_scan_of_the_pretraining_share(dataset):
    pretraining, train, test = (set(part.tolist()) for part in digits.parts())
    assert not pretraining & (train | test)
    assert not train & test
    assert len(pretraining | train | test) == 1797
    for name, part in (("train", train), ("test", test)):
        assert {int(key.removeprefix("scan/")) for key in dataset.splits["image"][name].ids} == part


def test_every_class_has_sixteen_scans_to_train_on_and_its_clips(dataset):
    assert np.bincount(dataset.splits["image"]["train"].labels).min() >= 16
    for split in dataset.splits["audio"].values():
        assert np.bincount(split.labels).tolist() == [digits.PRESSES] * 10
    assert not set(dataset.splits["audio"]["train"].ids) & set(dataset.splits["audio"]["test"].ids)


def test_ids_open_as_the_scan_and_the_sound_they_name(dataset):
    scans, labels = digits.load()
    split = dataset.splits["image"]["test"]
    row = 11
    number = int(split.ids[row][-4:])
    picture = split.open(split.ids[row])
    assert (picture.mode, picture.size) == ("RGB", (8, 8))
    assert np.array_equal(np.asarray(picture)[..., 1], scans[number])
    assert split.labels[row] == labels[number]
    wave, rate = dataset.splits["audio"]["train"].open("key/7/0003")
    assert (wave.dtype, wave.shape, rate) == (np.float32, (1, 4000), 8000)


@pytest.mark.parametrize("key", ["1", "0", "5", "D"])
def test_a_tone_has_the_two_published_frequencies_and_no_others(key):
    spectrum = np.abs(np.fft.rfft(dtmf.tone(key, 1.0)))
    assert tuple(sorted(np.argsort(spectrum)[-2:])) == dtmf.FREQUENCIES[key]
    assert np.sort(spectrum)[-3] < 1e-6 * spectrum.max()


def test_the_keypad_is_the_published_one():
    assert {key: dtmf.FREQUENCIES[key] for key in "159*0#A"} == {
        "1": (697, 1209), "5": (770, 1336), "9": (852, 1477), "*": (941, 1209),
        "0": (941, 1336), "#": (941, 1477), "A": (697, 1633),
    }  # fmt: skip


def test_a_clip_depends_on_its_id_and_the_seed_and_nothing_else():
    first = dtmf.clip("3", "a", seed=1)
    dtmf.clip("3", "b", seed=1)
    assert np.array_equal(first, dtmf.clip("3", "a", seed=1))
    assert not np.array_equal(first, dtmf.clip("3", "b", seed=1))
    assert not np.array_equal(first, dtmf.clip("3", "a", seed=2))


def test_clips_stay_in_range_and_differ_in_level():
    peaks = [np.abs(dtmf.clip("6", f"clip {i}")).max() for i in range(101)]
    assert 0 < min(peaks) < 0.1 < 0.5 < max(peaks) <= 1


@pytest.mark.parametrize(("modality", "dim"), [("image", 64), ("text", 64), ("audio", 48)])
def test_the_spec_says_what_made_a_row(modality, dim):
    spec = load("digits", modality).spec
    assert (spec.name, spec.weights, spec.modality, spec.dim) == ("digits", "shipped", modality, dim)
    assert spec.weights_sha256 == digits_encoder.tensors_sha256(load_file(digits_encoder.WEIGHTS))
    assert spec.precision == "float32"
    assert not spec.synthetic
    assert (spec.logit_scale is None) == (modality == "audio")
    assert 10 < (spec.logit_scale or 20) < 30


@pytest.mark.parametrize(("modality", "split"), [("image", "train"), ("audio", "test")])
def test_a_row_does_not_depend_on_its_company(dataset, modality, split):
    encoder, part = load("digits", modality), dataset.splits[modality][split]
    together = embed(encoder, part, [2, 3, 5, 7, 11, 13, 17])
    alone = torch.cat([embed(encoder, part, [row]) for row in (2, 3, 5, 7, 11, 13, 17)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", ["", "seven", "Straße 七 🙂", "a long caption " * 50])
def test_any_string_has_an_embedding_whatever_stands_beside_it(text):
    encoder = load("digits", "text")
    alone = encoder.encode(encoder.prepare(text, 0, text, 0)[None])
    beside = encoder.encode(torch.stack([encoder.prepare(t, 0, t, 0) for t in ("a photo of a nine.", text)]))
    assert alone.shape == (1, 64)
    assert alone.isfinite().all()
    torch.testing.assert_close(beside[1:], alone, rtol=1e-5, atol=1e-5)


def test_view_one_is_a_shift_of_the_scan_that_its_id_and_seed_decide():
    encoder = load("digits", "image")
    scan = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) + 1)
    plain = encoder.prepare(scan, 0, "scan/0002", 3)
    views = {key: encoder.prepare(scan, 1, key, 3) for key in (f"scan/{i:04d}" for i in range(97))}
    assert torch.equal(views["scan/0002"], encoder.prepare(scan, 1, "scan/0002", 3))
    padded = F.pad(plain, (1, 1, 1, 1))
    places = [padded[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    found = {next(i for i, place in enumerate(places) if torch.equal(place, view)) for view in views.values()}
    assert found == set(range(9))


def test_larger_pictures_of_any_mode_are_reduced():
    encoder = load("digits", "image")
    grey = encoder.prepare(Image.new("L", (8, 8), 51), 0, "x", 0)
    colour = encoder.prepare(Image.new("RGB", (40, 24), (51, 51, 51)), 0, "x", 0)
    assert torch.equal(grey, colour)
    assert grey.max() == pytest.approx(0.2)


def zero_shot(dataset, template: str) -> tuple[float, float]:
    """Accuracy and mean positive cosine on the test scans."""
    split, text = dataset.splits["image"]["test"], load("digits", "text")
    names = [template.format(name) for name in dataset.class_names]
    queries = F.normalize(text.encode(torch.stack([text.prepare(name, 0, name, 0) for name in names])), dim=1)
    rows = F.normalize(embed(load("digits", "image"), split, range(len(split))), dim=1)
    cosine = rows @ queries.T
    labels = torch.from_numpy(split.labels).long()
    return float((cosine.argmax(1) == labels).float().mean()), float(cosine.gather(1, labels[:, None]).mean())


def test_it_knows_digits_in_passing(dataset):
    """As a general encoder does: far above chance, better with a template, something left to gain."""
    text, semantic = zero_shot(dataset, "a photo of a {}."), zero_shot(dataset, "{}")
    assert 0.65 < text[0] < 0.9
    assert 0.55 < semantic[0] < text[0]
    assert 0.2 < semantic[1] < text[1] < 0.6


def test_tones_can_be_told_apart_by_their_rows(dataset):
    """Nearest class mean of train; the clips of the dataset were not trained on."""
    train, test = (
        (embed(load("digits", "audio"), split, range(len(split))), split.labels)
        for split in (dataset.splits["audio"]["train"], dataset.splits["audio"]["test"])
    )
    means = torch.stack([train[0][train[1] == label].mean(0) for label in range(10)])
    found = torch.cdist(test[0], means).argmin(1).numpy()
    assert 0.75 < (found == test[1]).mean() < 1


def test_random_weights_are_seeded_and_marked():
    one, same, other = (load("digits", "image", weights="random", seed=seed) for seed in (1, 1, 2))
    assert one.spec.synthetic
    assert one.spec.weights == "random"
    assert one.spec == same.spec
    assert one.spec.weights_sha256 != other.spec.weights_sha256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"modality": "smell"},
            "--encoder digits: no encoder for smell; expected image, text, audio, table, strokes",
        ),
        (
            {"weights": "laion2b"},
            "--pretrained laion2b: .* expected shipped or random; leave --pretrained out",
        ),
        ({"precision": "bfloat16"}, "--precision bfloat16: .* float32; type `--precision auto`"),
    ],
)
def test_what_it_cannot_do_it_says_in_one_line(options, message):
    with pytest.raises(EncoderError, match=message):
        load("digits", **{"modality": "image"} | options)


@pytest.mark.slow
def test_the_script_makes_the_shipped_weights(tmp_path, capsys):
    """Bit for bit on one machine; across processors to rounding that training amplifies, so loosely here."""
    threads = torch.get_num_threads()
    try:
        digits_pretrain.main(tmp_path / "made.safetensors")
    finally:
        torch.set_num_threads(threads)
    made, shipped = load_file(tmp_path / "made.safetensors"), load_file(digits_encoder.WEIGHTS)
    assert made.keys() == shipped.keys()
    for name, value in shipped.items():
        torch.testing.assert_close(made[name], value, rtol=0, atol=0.05, msg=name)
    assert "logit scale" in capsys.readouterr().out
