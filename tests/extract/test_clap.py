"""CLAP's audio tower on a small local model; skipped where transformers is not installed."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from spaner.errors import EncoderError
from spaner.extract.encoders import clap, encoder

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason='pip install "spaner[clap]"'
)
SOUND = (np.random.default_rng(2).uniform(-0.5, 0.5, (2, 3_000)).astype(np.float32), 8_000)


@pytest.fixture(scope="module", params=["rand_trunc", "fusion"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLAP as `save_pretrained` writes it."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel  # type: ignore[import-not-found]

    audio = {
        "patch_embeds_hidden_size": 8,
        "num_mel_bins": 16,
        "spec_size": 64,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "hidden_size": 16,
        "projection_dim": 13,
        "window_size": 4,
        "enable_fusion": request.param == "fusion",
    }
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 11,
        "projection_dim": 13,
    }
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("clap") / request.param
    ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=13)).save_pretrained(path)
    ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=8_000,
        hop_length=160,
        max_length_s=5,
        fft_window_size=128,
        frequency_max=4_000,
        truncation=request.param,
    ).save_pretrained(path)
    return path


@needs_transformers
def test_rows_depend_on_one_clip_only(folder: Path) -> None:
    tower = encoder.load("clap", "audio", weights=str(folder), precision="float32", device="cpu")
    assert isinstance(tower, clap.ClapEncoder)
    clip = tower.prepare(SOUND, 0, "a", 0)
    assert torch.equal(clip, tower.prepare(SOUND, 1, "b", 7))
    other = tower.prepare((SOUND[0][:, ::-1] * 0.3, 8_000), 0, "c", 0)
    rows = tower.encode(torch.stack([clip, other]))
    assert rows.shape == (2, tower.spec.dim) == (2, 13)
    torch.testing.assert_close(tower.encode(clip[None])[0], rows[0], rtol=1e-5, atol=1e-6)
    assert (rows[0] - rows[1]).norm() > 1e-3 * rows[0].norm()
    assert not tower.spec.synthetic
    assert tower.spec.weights == f"folder:{folder.name}"


@needs_transformers
def test_random_weights_are_seeded_and_marked(folder: Path) -> None:
    first, again, other = (
        clap.load("audio", model=str(folder), weights="random", device="cpu", seed=s) for s in (1, 1, 2)
    )
    assert first.spec.synthetic
    assert first.spec == again.spec
    assert first.spec.weights_sha256 != other.spec.weights_sha256


@needs_transformers
@pytest.mark.parametrize("seconds", [0, -1, 5.5, float("nan")])
def test_no_more_seconds_than_it_hears(folder: Path, seconds: float) -> None:
    with pytest.raises(EncoderError, match="hears 5 s"):
        clap.load("audio", weights=str(folder), audio_seconds=seconds, device="cpu")


@needs_transformers
@pytest.mark.parametrize("weights", ["openai", "random"])
def test_missing_weights_end_in_one_line(weights: str, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"config\.json.*laion/clap-htsat-unfused") as caught:
        clap.load("audio", model=str(tmp_path), weights=weights, device="cpu")
    assert "\n" not in str(caught.value)


@needs_transformers
def test_a_folder_without_weights_ends_in_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(EncoderError, match="no CLAP model in safetensors there") as caught:
        clap.load("audio", weights=str(tmp_path), device="cpu")
    assert "\n" not in str(caught.value)


def test_other_modalities_are_refused() -> None:
    with pytest.raises(EncoderError, match="none for image"):
        clap.load("image", weights="random")


def test_without_transformers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clap, "find_spec", lambda name: None)
    with pytest.raises(EncoderError, match=r'pip install "spaner\[clap\]"'):
        clap.load("audio", weights="random")
