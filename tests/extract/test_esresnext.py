"""The network against golden numbers, a float64 formula and its own promises."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_recipe import build_input, build_state, fill_value, wave
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spaner.extract.encoders import esresnext_network as esresnext
from spaner.extract.encoders import fbsp
from spaner.extract.encoders.esresnext_network import ESResNeXtFBSP

GOLDEN = Path(__file__).parent / "golden"
ENTRIES = json.loads((GOLDEN / "esresnext_state_dict.json").read_text())
CASES = ["case_a_mono_5s", "case_b_stereo_short"]
STAGES = [
    "stem",
    "layer1",
    "gated1",
    "layer2",
    "gated2",
    "layer3",
    "gated3",
    "layer4",
    "gated4",
    "pooled",
    "gate5",
]


def relative(got: Tensor, golden: np.ndarray) -> float:
    difference = got.double().numpy() - golden
    return float(np.linalg.norm(difference) / np.linalg.norm(golden))


def golden_model(meta: dict) -> ESResNeXtFBSP:
    model = ESResNeXtFBSP(meta["num_classes"])
    state = {k: torch.from_numpy(v) for k, v in build_state(meta, ENTRIES).items()}
    model.load_state_dict({**state, "window": model.window})
    return model.requires_grad_(False)


def watch_stages(model: ESResNeXtFBSP) -> dict[str, list[Tensor]]:
    """What each stage puts out, once per audio channel, collected by hooks."""
    seen: dict[str, list[Tensor]] = {name: [] for name in STAGES}

    def entering(name: str):
        return lambda _, args: seen[name].append(args[0].clone())

    def leaving(name: str):
        return lambda _, __, out: seen[name].append(out.clone())

    for i in range(1, 5):
        layer = getattr(model, f"layer{i}")
        layer.register_forward_pre_hook(entering("stem" if i == 1 else f"gated{i - 1}"))
        layer.register_forward_hook(leaving(f"layer{i}"))
    model.att5.register_forward_pre_hook(entering("gated4"))
    model.att5.register_forward_pre_hook(
        lambda _, args: seen["pooled"].append(args[0].mean((-2, -1), keepdim=True))
    )
    model.att5.register_forward_hook(leaving("gate5"))
    return seen


class Case:
    """One golden file and everything that our network makes of its input, computed once."""

    def __init__(self, name: str) -> None:
        self.golden = np.load(GOLDEN / f"{name}.npz")
        self.meta = json.loads(str(self.golden["meta"]))
        self.x = torch.from_numpy(build_input(self.meta))
        self.model = golden_model(self.meta)
        self.kernel = self.model.fbsp.kernel()
        self.image = self.model.image(self.x)
        self.features, self.output, self.seen = {}, {}, {}
        watched = watch_stages(self.model)
        for mode in ("eval", "train"):
            self.features[mode] = self.model.train(mode == "train").features(self.x)
            self.output[mode] = self.model.fc(self.features[mode])
            self.seen[mode] = {name: list(tensors) for name, tensors in watched.items()}
            for tensors in watched.values():
                tensors.clear()


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.fixture(scope="module")
def small() -> ESResNeXtFBSP:
    torch.manual_seed(2)
    return ESResNeXtFBSP(7).requires_grad_(False).eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * 8000


def test_golden_kernel(case: Case) -> None:
    assert np.abs(case.kernel[::41, ::61].numpy() - case.golden["kernel_grid"]).max() <= 1e-7
    norm = case.kernel.flatten(1).norm(dim=1).numpy()
    np.testing.assert_allclose(norm, case.golden["kernel_norm"], rtol=1e-6)


def test_golden_image(case: Case) -> None:
    assert tuple(case.image.shape) == tuple(case.golden["xdb_shape"])
    rows, columns = case.golden["xdb_grid_step"]
    error = np.abs(case.image[..., ::rows, ::columns].numpy() - case.golden["xdb_grid"])
    assert np.median(error) <= 1e-4
    assert np.quantile(error, 0.99) <= 5e-3
    stats = torch.stack(
        [
            f(case.image, (-2, -1))
            for f in (torch.mean, lambda x, d: x.std(d, unbiased=False), torch.amin, torch.amax)
        ],
        dim=-1,
    ).numpy()
    moments = [0, 1, 3]  # the minimum is a deep null: rounding decides it
    np.testing.assert_allclose(stats[..., moments], case.golden["xdb_stats"][..., moments], rtol=0, atol=5e-3)
    levels = torch.tensor([0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99])
    quantiles = torch.quantile(case.image.flatten(1)[:, ::7], levels, dim=1).T
    np.testing.assert_allclose(quantiles.numpy(), case.golden["xdb_quantiles"], rtol=0, atol=5e-3)


def test_golden_spectrum(case: Case) -> None:
    frames, bins = case.golden["fbsp_grid_step"]
    signals = fbsp.from_int16(case.x).flatten(0, 1)
    got = torch.stack([torch.stack(case.model.fbsp(signal, case.model.window), -1) for signal in signals])
    assert relative(got.transpose(1, 2)[:, ::frames, ::bins], case.golden["fbsp_grid"]) <= 1e-5


@pytest.mark.parametrize(("mode", "limit"), [("eval", 1e-4), ("train", 2e-3)])
def test_golden_features_and_output(case: Case, mode: str, limit: float) -> None:
    assert relative(case.features[mode], case.golden[f"{mode}_features"]) <= limit
    assert relative(case.output[mode], case.golden[f"{mode}_output"]) <= limit


@pytest.mark.parametrize(("mode", "limit"), [("eval", 1e-4), ("train", 2e-3)])
def test_golden_stages(case: Case, mode: str, limit: float) -> None:
    for row, name in enumerate(STAGES):
        for channel, tensor in enumerate(case.seen[mode][name]):
            stats = [tensor.mean(), tensor.std(unbiased=False), tensor.amin(), tensor.amax()]
            golden = case.golden[f"{mode}_stage_stats"][row, channel]
            np.testing.assert_allclose(
                torch.stack(stats).numpy(), golden, rtol=limit, atol=limit * golden[1], err_msg=name
            )
            flat = tensor.contiguous().flatten()
            picked = flat[torch.from_numpy(np.linspace(0, len(flat) - 1, 48).astype(np.int64))]
            assert relative(picked, case.golden[f"{mode}_stage_samples"][row, channel]) <= 2 * limit, name


def test_golden_statistics_after_one_training_step(case: Case) -> None:
    state = case.model.state_dict()
    for key in (k for k in case.golden if k.startswith("after_train/")):
        got = state[key.removeprefix("after_train/")].flatten()[:64]
        assert relative(got, case.golden[key].reshape(-1)) <= 2e-3, key


def test_state_dict_is_that_of_the_published_files() -> None:
    model = ESResNeXtFBSP()
    got = [[k, list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in model.state_dict().items()]
    assert got == ENTRIES
    assert sum(p.numel() for p in model.parameters()) == 32_104_771


def test_window_is_the_closed_form() -> None:
    n = 2 * np.pi * np.arange(1654) / 1654
    closed = 0.35875 - 0.48829 * np.cos(n) + 0.14128 * np.cos(2 * n) - 0.01168 * np.cos(3 * n)
    assert np.abs(ESResNeXtFBSP(2).window.numpy() - closed).max() <= 1e-7


def test_kernel_agrees_with_complex_arithmetic_in_float64() -> None:
    g = np.random.default_rng(3)
    m, fb, fc = g.random(5) * 3, 0.5 + g.random(5), 40 * g.random(5)
    t = np.pi * np.linspace(-1, 1, 53) + 1e-8
    a = fb[:, None] * t / (m[:, None] + 1e-8)
    power = (np.sin(a) / a).astype(complex) ** m[:, None]
    want = np.sqrt(fb)[:, None] * power * np.exp(-1j * fc[:, None] * t) / np.sqrt(53)
    got = fbsp.fbsp_kernel(*(torch.tensor(p, dtype=torch.float32) for p in (m, fb, fc)), taps=53).numpy()
    np.testing.assert_allclose(got[..., 0] + 1j * got[..., 1], want, atol=2e-5)


def test_full_scale_tone_has_the_level_that_its_amplitude_says(small: ESResNeXtFBSP) -> None:
    bin_, amplitude = 97, 0.5
    phase = 2 * math.pi * bin_ / 2047 * torch.arange(4 * 1654)
    image = small.image(32768 * amplitude * torch.sin(phase)[None, None])
    want = 20 * math.log10(amplitude / 2 * small.window.double().sum().item() / math.sqrt(2048))
    assert image[0, 0, 0, bin_, 3].item() == pytest.approx(want, abs=1e-2)


def test_affine_map() -> None:
    got = fbsp.from_int16(torch.tensor([-32768.0, 32767.0, 0.0, -0.5]))
    assert got.tolist() == [-1.0, 1.0, 2.0**-16, 0.0]


@given(length=st.integers(1, 9000))
@settings(max_examples=60, deadline=None)
def test_frames_cover_the_signal_with_zeros_shared_by_both_ends(length: int) -> None:
    signal = torch.arange(1, length + 1).float()
    count = 1 + max(0, -(-(length - 1654) // 561))
    missing = (count - 1) * 561 + 1654 - length
    padded = np.concatenate([np.zeros(missing // 2), signal.numpy(), np.zeros(missing - missing // 2)])
    naive = np.stack([padded[i * 561 : i * 561 + 1654] for i in range(count)])
    np.testing.assert_array_equal(fbsp.frames(signal).numpy(), naive)


@pytest.mark.parametrize("length", [1, 2, 1653, 1654, 1655, 2216, 7919])
def test_any_length_works(small: ESResNeXtFBSP, length: int) -> None:
    out = small(noise(2, 1, length))
    assert out.shape == (2, 7)
    assert torch.isfinite(out).all()


def test_two_axes_mean_mono_and_integers_are_accepted(small: ESResNeXtFBSP) -> None:
    x = noise(2, 5003).round()
    assert torch.equal(small(x), small(x[:, None]))
    assert torch.equal(small(x), small(x.to(torch.int16)))


def test_channels_are_summed(small: ESResNeXtFBSP) -> None:
    x = noise(1, 3, 2003)
    apart = sum(small.features(x[:, c]) for c in range(3))
    torch.testing.assert_close(small.features(x), apart, rtol=1e-5, atol=1e-5)


@given(seed=st.integers(0, 10_000), place=st.integers(0, 2), silent=st.booleans())
@settings(max_examples=4, deadline=None)
def test_in_eval_mode_a_row_does_not_depend_on_its_neighbours(
    small: ESResNeXtFBSP, seed: int, place: int, silent: bool
) -> None:
    clip = noise(1, 1, 1801, seed=seed)
    if silent:
        clip[..., 900:] = 0  # rounding noise: must be the same noise in any company
    company = noise(3, 1, 1801, seed=seed + 1)
    company[place] = clip
    assert torch.equal(small.image(company)[place], small.image(clip)[0])
    torch.testing.assert_close(small.features(company)[place], small.features(clip)[0], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def fresh() -> ESResNeXtFBSP:
    return ESResNeXtFBSP(3)


def test_in_train_mode_it_does_and_one_clip_is_refused(fresh: ESResNeXtFBSP) -> None:
    network = fresh.requires_grad_(False).train()
    clip = noise(1, 1, 3001)
    first = network.features(torch.cat([clip, noise(1, 1, 3001, seed=1)]))[0]
    second = network.features(torch.cat([clip, 0.01 * noise(1, 1, 3001, seed=2)]))[0]
    assert (first - second).norm() > 0.01 * first.norm()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(clip)


def test_kernel_is_kept_until_something_it_is_made_of_changes(small: ESResNeXtFBSP) -> None:
    with torch.inference_mode():
        kept = small.fbsp.taps(small.window)
    assert small.fbsp.taps(small.window) is kept
    small.load_state_dict({k: v.clone() for k, v in small.state_dict().items()})
    assert small.fbsp.taps(small.window) is kept
    for parameter in (small.fbsp.m, small.fbsp.fb, small.fbsp.fc):
        before = parameter.data.clone()
        assert torch.equal(small.fbsp.taps(small.window), kept)
        parameter.data[5] += 0.25
        changed = small.fbsp.taps(small.window)
        assert not torch.equal(changed, kept)
        assert torch.equal(changed, small.fbsp._fold(small.window))
        parameter.data.copy_(before)
    assert not torch.equal(small.fbsp.taps(small.window * 2), kept)


def test_gradients_reach_the_transform(fresh: ESResNeXtFBSP) -> None:
    network = fresh.train().requires_grad_(False)
    network.fbsp.requires_grad_(True)
    torch.nn.init.uniform_(network.fbsp.m, 0.5, 1.5)
    network(noise(2, 1, 2500)).square().sum().backward()
    for parameter in (network.fbsp.m, network.fbsp.fb, network.fbsp.fc):
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0


def test_front_end_is_never_lowered(small: ESResNeXtFBSP) -> None:
    x = noise(2, 1, 4003)
    want = small.image(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(small.image(x), want)
    lowered = ESResNeXtFBSP(7)
    lowered.load_state_dict(small.state_dict())
    lowered = lowered.requires_grad_(False).eval().bfloat16()
    assert torch.equal(lowered.image(x), want)
    assert lowered(x).dtype == torch.bfloat16


MISTAKES = {
    "nothing": lambda patch, model: None,
    "epsilon left out": lambda patch, model: patch.setattr(fbsp, "TINY", 0.0),
    "symmetric window": lambda patch, model: model.window.copy_(symmetric_window()),
    "x / 32768": lambda patch, model: patch.setattr(esresnext, "from_int16", lambda x: x.float() / 32768),
    "taps shifted by one": lambda patch, model: patch.setattr(fbsp, "PAD", fbsp.PAD + 1),
    "conjugate carrier": lambda patch, model: model.fbsp.fc.neg_(),
    "bandwidth ignored": lambda patch, model: model.fbsp.fb.fill_(1),
    "order ignored": lambda patch, model: model.fbsp.m.fill_(0),
}


def symmetric_window() -> Tensor:
    n = 2 * math.pi / 1653 * torch.arange(1654, dtype=torch.float64)
    return sum(a * torch.cos(i * n) for i, a in enumerate(fbsp.BLACKMAN_HARRIS)).float()  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def front_end(fresh: ESResNeXtFBSP) -> tuple[np.lib.npyio.NpzFile, ESResNeXtFBSP, Tensor]:
    """The first golden clip and the parameters that its front end needs."""
    golden = np.load(GOLDEN / "case_a_mono_5s.npz")
    meta = json.loads(str(golden["meta"]))
    for key, parameter in fresh.requires_grad_(False).fbsp.named_parameters():
        parameter.copy_(torch.from_numpy(fill_value(meta["tag"], f"fbsp.{key}", parameter.shape)))
    clip = wave(meta["waves"][0][0], f"{meta['tag']}|wave|0|0", meta["length"])
    return golden, fresh, torch.from_numpy(clip.astype(np.float32))[None, None]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_limits_hold_and_catch_a_wrong_front_end(
    front_end, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden, model, x = front_end
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.fbsp._kept = None  # a changed constant is not a changed parameter
    MISTAKES[mistake](monkeypatch, model)
    rows, columns = golden["xdb_grid_step"]
    kernel = np.abs(model.fbsp.kernel()[::41, ::61].numpy() - golden["kernel_grid"]).max()
    error = np.abs(model.image(x)[..., ::rows, ::columns].numpy() - golden["xdb_grid"][:1])
    model.load_state_dict(before)
    model.fbsp._kept = None
    red = kernel > 1e-7 or np.median(error) > 1e-4 or np.quantile(error, 0.99) > 5e-3
    assert red == (mistake != "nothing")
