"""Sounds through the whole of stage 1: folder, CSV and real clips; failed rows; lin2023; repair."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from spaner import cache as caches
from spaner.errors import EncoderError
from spaner.extract.config import ExtractConfig
from spaner.extract.datasets import dataset as datasets
from spaner.extract.encoders import esresnext as audio_encoder
from spaner.extract.extract import extract
from spaner.extract.repair import repair

SECONDS = 0.03


def sounds(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        noise = np.random.default_rng(i).uniform(-0.5, 0.5, 900 + 100 * i)
        soundfile.write(folder / f"{i}.wav", noise, 22_050)


def heard(dataset: str, to: Path, **options):
    config = ExtractConfig(
        dataset=dataset, cache=to, pretrained="random", audio_seconds=SECONDS, device="cpu", dtype="float32"
    )
    return extract(config, modality="audio", **options)


def test_a_folder_of_sounds_becomes_a_table_and_bad_files_failed_rows(tmp_path: Path) -> None:
    root = tmp_path / "noises"
    for name, count in (("low_hum", 3), ("hiss", 5)):
        sounds(root / "train" / name, count)
    soundfile.write(root / "train" / "hiss" / "silent.wav", np.zeros(99), 8_000)
    (root / "train" / "hiss" / "text.wav").write_text("no sound")
    heard(f"folder:{root}", tmp_path / "c", max_failed=0.5, chunk_rows=3)
    with caches.open(tmp_path / "c") as cache:
        table = cache.table("audio/train")
        assert cache.class_names == ["hiss", "low hum"]
        assert table.labels.tolist() == [0] * 7 + [1] * 3
        assert table.failures() == {
            "train/hiss/silent.wav": "digital silence: every sample is 0",
            "train/hiss/text.wav": "not audio",
        }
        assert table.manifest.encoder.preprocessing["seconds"] == SECONDS
        assert table.measured["purity"]["pure"]
        rows = table.read()[table.ok, 0]
        assert rows.shape == (8, 2048)
        assert np.isfinite(rows).all()
        before = table.read()
    chunks = (tmp_path / "c/audio/train/features").rglob("*")
    chunk = max(chunks, key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(chunk.read_bytes())
    content[5] ^= 1
    chunk.write_bytes(content)
    assert repair(tmp_path / "c", dataset=f"folder:{root}", device="cpu").repaired == 1
    with caches.open(tmp_path / "c") as cache:
        np.testing.assert_array_equal(cache.table("audio/train").read(), before)


def test_lin2023_takes_ten_in_listing_order_across_chunks_and_is_marked(tmp_path: Path) -> None:
    root = tmp_path / "noises"
    sounds(root / "train" / "a", 23)
    heard(f"folder:{root}", tmp_path / "c", audio_mode="lin2023", batch_size=14, chunk_rows=25)
    with caches.open(tmp_path / "c") as cache:
        table = cache.table("audio/train")
        assert table.manifest.encoder.mode == "lin2023"
        assert table.manifest.chunk_rows == 20
        assert table.measured["purity"] == {"pure": False, "mode": "lin2023"}
        found = table.read()[:, 0]
        ids = table.ids.tolist()
    options = {"weights": "random", "device": "cpu", "audio_seconds": SECONDS, "audio_mode": "lin2023"}
    encoder = audio_encoder.load("audio", **options)
    opened = datasets.read(f"folder:{root}").splits["audio"]["train"].open
    batch = torch.stack([encoder.prepare(opened(key), 0, key, 0) for key in ids])
    np.testing.assert_allclose(found, encoder.encode(batch).numpy(), rtol=1e-3, atol=1e-4)
    sounds(root / "train" / "b", 8)
    with pytest.raises(EncoderError, match="a batch of one clip has no statistics"):
        heard(f"folder:{root}", tmp_path / "d", audio_mode="lin2023")


def test_a_csv_of_sounds_is_a_data_set_of_sounds(tmp_path: Path) -> None:
    sounds(tmp_path / "wav", 2)
    (tmp_path / "list.csv").write_text("path,label,split\nwav/0.wav,dog,train\nwav/1.wav,cat,train\n")
    found = datasets.read(f"csv:{tmp_path / 'list.csv'}")
    assert list(found.splits) == ["audio"]
    samples, rate = found.splits["audio"]["train"].open("wav/1.wav").read(9.0)
    assert (samples.shape, rate) == ((1, 1_000), 22_050)


def test_real_clips_end_to_end(sample_data: Path, tmp_path: Path) -> None:
    summary = heard("esc50", tmp_path / "c", data_root=sample_data / "esc50_sample")
    assert [table.name for table in summary.tables] == ["audio/fold1", "audio/fold3"]
    with caches.open(tmp_path / "c") as cache:
        assert cache.class_names == ["cat", "thunderstorm", "coughing", "clock alarm", "car horn"]
        assert not cache.table("audio/fold3").failures()
        assert cache.table("audio/fold3").manifest.encoder.synthetic
