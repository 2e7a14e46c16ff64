"""Every kind of sound file becomes the waveform it should; every broken one a short reason."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spaner.extract.datasets import audio
from spaner.extract.datasets.audio import MARGIN, BadSound, Recording, audio_split, decode, waveform


def tone(rate: int, seconds: float = 0.5, hertz: float = 441.0, channels: int = 1) -> np.ndarray:
    """(samples, channels), each channel half as loud as the one before."""
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.stack([wave / 2**c for c in range(channels)], axis=1)


FORMATS = [
    ("wav", "PCM_U8", 8e-3),
    ("wav", "PCM_16", 1e-4),
    ("wav", "PCM_24", 1e-6),
    ("wav", "FLOAT", 1e-7),
    ("wav", "DOUBLE", 1e-7),
    ("flac", "PCM_16", 1e-4),
    ("flac", "PCM_24", 1e-6),
    ("ogg", "VORBIS", 5e-2),
    ("mp3", "MPEG_LAYER_III", 5e-2),
]


@pytest.mark.parametrize(("suffix", "subtype", "error"), FORMATS)
def test_formats_decode_to_full_scale_one(suffix: str, subtype: str, error: float, tmp_path: Path) -> None:
    path, samples = tmp_path / f"a.{suffix}", tone(44_100, channels=2)
    soundfile.write(path, samples, 44_100, subtype=subtype)
    found, rate = decode(path, 9)
    assert (rate, found.dtype, found.shape) == (44_100, np.float32, (2, 22_050))
    inner = slice(2_000, 20_000)  # lossy formats ring at the edges
    assert np.sqrt(np.mean((found.T[inner] - samples[inner]) ** 2)) < error


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_056, 44_100, 44_101, 48_000, 96_000, 192_000])
def test_every_rate_keeps_level_and_pitch(rate: int) -> None:
    found = waveform((tone(rate).T, rate), seconds=0.4)
    assert found.shape == (1, 17_640)
    want = tone(44_100, seconds=0.4)[:, 0]
    inner = slice(500, 17_000)
    assert np.abs(found[0, inner].numpy() - want[inner]).max() < 0.02


@given(channels=st.integers(1, 7), length=st.integers(1, 300), seconds=st.floats(0.0005, 0.01))
@settings(max_examples=40, deadline=None)
def test_channels_are_averaged_then_cut_or_padded_at_the_end(
    channels: int, length: int, seconds: float
) -> None:
    samples = np.random.default_rng(length).uniform(0.1, 1, (channels, length)).astype(np.float32)
    found = waveform((samples, 44_100), seconds)
    want = round(seconds * 44_100)
    assert found.shape == (1, want)
    kept = min(want, length)
    np.testing.assert_allclose(found[0, :kept], samples.mean(0)[:kept], rtol=1e-6)
    assert not found[0, kept:].any()


def test_an_hour_is_not_decoded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hour.flac"
    with soundfile.SoundFile(path, "w", 8_000, 1) as file:
        file.write(tone(8_000, 2)[:, 0])
        for _ in range(60):
            file.write(np.zeros(60 * 8_000))
    read, counted = soundfile.SoundFile.read, []

    def counting(self, frames=-1, *args, **kwargs):
        counted.append(frames)
        return read(self, frames, *args, **kwargs)

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    found = waveform(Recording(path), seconds=1.5)
    assert counted == [math.ceil((1.5 + MARGIN) * 8_000)]
    assert found.shape == (1, 66_150)


def test_a_cut_recording_equals_the_whole_one_cut(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    samples = np.random.default_rng(3).uniform(-0.5, 0.5, (48_000 * 2, 1))
    soundfile.write(path, samples, 48_000, subtype="FLOAT")
    whole = waveform((samples.T.astype(np.float32), 48_000), seconds=2)
    cut = waveform(Recording(path), seconds=0.7)
    assert torch.equal(cut, whole[:, : cut.shape[1]])


def test_one_sample_is_a_sound() -> None:
    found = waveform((np.full((1, 1), 0.5, np.float32), 44_100), 0.1)
    assert found[0, 0] == 0.5
    assert found.shape == (1, 4_410)


SAMPLES = {
    "no samples": (np.zeros((1, 0), np.float32), 44_100),
    "NaN or infinite": (np.array([[0.1, np.nan]], np.float32), 44_100),
    "infinite": (np.array([[0.1, np.inf]], np.float32), 44_100),
    "digital silence": (np.zeros((2, 500), np.float32), 44_100),
    r"reach 2e\+04": (np.full((1, 5), 2e4, np.float32), 44_100),
    "rate of 0 Hz": (np.ones((1, 5), np.float32), 0),
    r"shape \(5,\)": (np.ones(5, np.float32), 44_100),
}


@pytest.mark.parametrize("reason", SAMPLES)
def test_unusable_samples_have_a_reason(reason: str) -> None:
    with pytest.raises(BadSound, match=reason):
        waveform(SAMPLES[reason], 0.01)


def written(tmp_path: Path, name: str, samples: np.ndarray, **kwargs) -> Path:
    soundfile.write(tmp_path / name, samples, 44_100, **kwargs)
    return tmp_path / name


def shortened(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


@pytest.mark.parametrize("share", [0.5, 0.99])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_truncated_files_have_a_reason(suffix: str, share: float, tmp_path: Path) -> None:
    noise = np.random.default_rng(5).uniform(-0.5, 0.5, 44_100)
    path = shortened(written(tmp_path, f"a.{suffix}", noise), share)
    with pytest.raises(BadSound, match=r"truncated|damaged"):
        decode(path, 5)


def test_files_that_are_no_sound_have_a_reason(tmp_path: Path) -> None:
    empty, text, hollow = (tmp_path / name for name in ("empty.wav", "text.mp3", "hollow.wav"))
    empty.touch()
    text.write_text("this is a text, and no sound at all\n" * 50)
    soundfile.write(hollow, np.zeros(0), 44_100)
    for path, reason in (
        (empty, "empty file"),
        (text, "not audio"),
        (tmp_path / "none.wav", "file not found"),
    ):
        with pytest.raises(BadSound, match=reason) as caught:
            decode(path, 5)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(BadSound, match="no samples"):
        waveform(Recording(hollow), 5)


def test_nan_in_a_float_file_has_a_reason(tmp_path: Path) -> None:
    samples = tone(44_100)[:, 0]
    samples[3] = np.nan
    with pytest.raises(BadSound, match="NaN"):
        waveform(Recording(written(tmp_path, "nan.wav", samples, subtype="FLOAT")), 5)


def test_a_streamed_wav_without_a_length_is_not_truncated(tmp_path: Path) -> None:
    path = written(tmp_path, "pipe.wav", tone(44_100)[:, 0])
    content = bytearray(path.read_bytes())
    content[4:8] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert decode(path, 5)[0].shape == (1, 22_050)


def test_a_split_opens_files_below_its_root(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    written(tmp_path, "audio/a.wav", tone(44_100)[:, 0])
    split = audio_split(tmp_path, ["audio/a.wav"], np.array([4]))
    assert split.labels.dtype == np.int32
    assert waveform(split.open("audio/a.wav"), 0.25).shape == (1, 11_025)


def test_a_flac_without_its_length_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(44_100), 44_100)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # the 36-bit count of samples, and the checksum over them
    data[22:42] = bytes(20)
    path.write_bytes(data)
    assert decode(path, 9)[0].shape == (1, 22_050)
    assert decode(path, 0.1)[0].shape == (1, 4_410)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadSound, match=r"damaged|truncated"):
        decode(path, 9)


@pytest.mark.parametrize("rate", [1, 999, 768_001, 134_261_828])
def test_a_rate_that_no_sound_has_is_refused_before_anything_is_read(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(8_000), 8_000)
    data = bytearray(path.read_bytes())
    data[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(BadSound, match=f"a rate of {rate:,} Hz; sounds have 1,000 to 768,000"):
        decode(path, 5)
    with pytest.raises(BadSound, match=f"a rate of {rate:,} Hz"):
        waveform((tone(8_000).T, rate), seconds=5)


def test_more_channels_than_fit_are_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(8_000, channels=7), 8_000)
    monkeypatch.setattr("spaner.extract.datasets.audio.BUDGET", 2 * 4_000 * 7 * 4 - 1)
    with pytest.raises(BadSound, match="4,000 samples in 7 channels take 224,000 bytes"):
        decode(path, 5)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(BadSound, match="a pipe, socket or device"):
        decode(tmp_path / "a.wav", 5)


def test_no_rate_makes_a_filter_of_gigabytes() -> None:
    for rate in (48_000, 44_099, 191_999, 767_999):
        made = audio._resampler(rate, audio.RATE)
        assert made.orig_freq * made.new_freq <= audio.LARGEST_FILTER
