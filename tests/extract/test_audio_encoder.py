"""The ESResNeXt encoder: options and modes, weights, fused trunk, and rows that depend on one sound only."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from spaner.errors import EncoderError
from spaner.extract.datasets import dataset as datasets
from spaner.extract.datasets.audio import BadSound
from spaner.extract.encoders import esresnext as audio_encoder
from spaner.extract.encoders.esresnext import AudioEncoder, describe
from spaner.extract.encoders.esresnext_fused import FusedTrunk
from spaner.extract.encoders.esresnext_network import ESResNeXtFBSP

SECONDS = 0.05  # three frames


def load(**options) -> AudioEncoder:
    settings = {"weights": "random", "device": "cpu", "audio_seconds": SECONDS, "seed": 3, **options}
    return audio_encoder.load("audio", **settings)


def sounds(count: int) -> list[tuple[np.ndarray, int]]:
    draw = np.random.default_rng(7)
    return [(draw.uniform(-0.5, 0.5, (1, 2_000 + 50 * i)).astype(np.float32), 44_100) for i in range(count)]


def prepared(encoder: AudioEncoder, count: int) -> torch.Tensor:
    return torch.stack([encoder.prepare(sound, 0, str(i), 0) for i, sound in enumerate(sounds(count))])


@pytest.fixture(scope="module")
def network() -> ESResNeXtFBSP:
    """Random weights with running statistics that are not zero and one."""
    torch.manual_seed(3)
    network = ESResNeXtFBSP(7).requires_grad_(False).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return network


@pytest.fixture(scope="module")
def weights(network: ESResNeXtFBSP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "seven.safetensors"
    save_file({f"audio.{k}": v.contiguous() for k, v in network.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("fused", [True, False])
def test_the_fused_trunk_is_the_trunk(network: ESResNeXtFBSP, fused: bool) -> None:
    image = network.image(8_000 * torch.rand(2, 1, 5_003))[:, 0]
    want = network.trunk(image)
    got = FusedTrunk(network, fused=fused)(image)
    assert (got - want).norm() <= 1e-5 * want.norm()


def test_a_lower_precision_reaches_the_trunk_only(network: ESResNeXtFBSP) -> None:
    image = network.image(8_000 * torch.rand(2, 1, 5_003))[:, 0]
    want = network.trunk(image)
    got = FusedTrunk(network, torch.bfloat16)(image)  # on any processor
    assert got.dtype == torch.float32
    assert 1e-5 * want.norm() < (got - want).norm() < 5e-2 * want.norm()


@pytest.mark.parametrize("feature", ["pooled", "head"])
def test_rows_equal_the_network_alone_and_in_company(
    weights: Path, network: ESResNeXtFBSP, feature: str
) -> None:
    encoder = load(weights=str(weights), audio_feature=feature)
    batch = prepared(encoder, 6)  # more than go through the trunk at once
    rows = encoder.encode(batch)
    want = network.features(batch) if feature == "pooled" else network(batch)
    assert rows.shape == (6, encoder.spec.dim)
    assert (rows - want).norm() <= 1e-5 * want.norm()
    assert (encoder.encode(batch[4:5]) - rows[4:5]).norm() <= 1e-5 * rows[4].norm()
    assert encoder.fixed_batch is None


def test_the_range_is_that_of_16_bits_by_default(network: ESResNeXtFBSP) -> None:
    sound = (np.full((2, 9), 0.5, np.float32), 44_100)
    for scale, full in (("int16", 32_768), ("unit", 1)):
        encoder = AudioEncoder(network, describe(network, "a", "float32", "eval", ("pooled", scale), SECONDS))
        assert encoder.prepare(sound, 0, "a", 0)[0, 0] == 0.5 * full


def test_the_spec_tells_every_choice(network: ESResNeXtFBSP) -> None:
    plain = describe(network, "file:seven.pt", "float32", "eval", ("pooled", "int16"), SECONDS)
    assert (plain.dim, plain.synthetic, plain.logit_scale) == (2048, False, None)
    assert plain.preprocessing["channels"] == "mean"
    for mode, choices, seconds in (
        ("eval", ("head", "int16"), SECONDS),
        ("eval", ("pooled", "unit"), SECONDS),
        ("eval", ("pooled", "int16"), 2 * SECONDS),
        ("lin2023", ("pooled", "int16"), SECONDS),
    ):
        changed = describe(network, "file:seven.pt", "float32", mode, choices, seconds)
        assert changed.same_encoder(plain), (mode, choices, seconds)


def test_defaults(weights: Path) -> None:
    spec = load(weights=str(weights)).spec
    assert (spec.name, spec.modality, spec.mode, spec.precision) == ("esresnext", "audio", "eval", "float32")
    assert (spec.dim, spec.weights, spec.synthetic) == (2048, "file:seven.safetensors", False)
    assert (spec.preprocessing["range"], spec.preprocessing["feature"]) == ("int16", "pooled")


def test_random_weights_are_seeded_and_marked() -> None:
    random = load()
    assert random.spec.synthetic
    assert random.spec == load().spec
    assert random.spec.weights_sha256 != load(seed=4).spec.weights_sha256
    with pytest.raises(BadSound, match="digital silence"):
        random.prepare((np.zeros((1, 9), np.float32), 44_100), 0, "a", 0)


def test_lin2023_is_flagged_and_takes_ten_at_a_time(weights: Path, network: ESResNeXtFBSP) -> None:
    encoder = load(weights=str(weights), audio_mode="lin2023")
    spec = encoder.spec
    assert (spec.mode, spec.dim, encoder.fixed_batch) == ("lin2023", 7, 10)
    assert spec.preprocessing["range"] == "unit"
    assert spec.preprocessing["batch"] == {"size": 10, "order": "as listed", "statistics": "of the batch"}
    batch = prepared(encoder, 13)
    assert batch.abs().max() <= 1
    rows = encoder.encode(batch)
    copy = ESResNeXtFBSP(7).requires_grad_(False).train()
    copy.load_state_dict(network.state_dict())
    want = torch.cat([copy(batch[:10]), copy(batch[10:])])
    assert (rows - want).norm() <= 1e-5 * want.norm()
    assert (encoder.encode(batch[:10]) - rows[:10]).norm() <= 1e-5 * rows.norm()  # statistics do not drift
    other = encoder.encode(batch.flip(0))[12]
    assert (other - rows[0]).norm() > 1e-3 * rows[0].norm()
    with pytest.raises(EncoderError, match="a batch of one clip has no statistics"):
        encoder.encode(batch[:11])


MISTAKES = {
    "--audio-mode lin2022: unknown": {"audio_mode": "lin2022"},
    "--audio-feature logits: unknown; expected pooled or head": {"audio_feature": "logits"},
    "--audio-range int8: unknown; expected int16 or unit": {"audio_range": "int8"},
    "--audio-feature pooled: not with --audio-mode lin2023": {
        "audio_feature": "pooled",
        "audio_mode": "lin2023",
    },
    "--audio-range int16: not with --audio-mode lin2023": {"audio_range": "int16", "audio_mode": "lin2023"},
    "--audio-seconds 0: expected more than 0": {"audio_seconds": 0},
    "--audio-seconds nan: expected more than 0": {"audio_seconds": float("nan")},
    "--pretrained openai: no such file.*ESRNXFBSP.pt.*--pretrained random": {"weights": "openai"},
}


@pytest.mark.parametrize("problem", MISTAKES)
def test_mistakes_end_in_one_line(problem: str) -> None:
    with pytest.raises(EncoderError, match=problem) as caught:
        load(**MISTAKES[problem])
    assert "\n" not in str(caught.value)


def test_other_modalities_are_refused() -> None:
    with pytest.raises(EncoderError, match="expected audio"):
        audio_encoder.load("image", weights="random")


def test_real_clips_give_distinct_rows(sample_data: Path, network: ESResNeXtFBSP) -> None:
    clips = datasets.read("esc50", sample_data / "esc50_sample").splits["audio"]["fold3"]
    encoder = AudioEncoder(network, describe(network, "a", "float32", "eval", ("pooled", "int16"), 0.5))
    rows = encoder.encode(torch.stack([encoder.prepare(clips.open(key), 0, key, 0) for key in clips.ids]))
    assert rows.shape == (3, 2048)
    assert torch.isfinite(rows).all()
    assert torch.pdist(rows).min() > 1e-3 * rows.norm(dim=1).mean()
