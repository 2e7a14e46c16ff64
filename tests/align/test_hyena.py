"""The Hyena aligner against a loop over tokens, and what distinguishes it from a causal convolution."""

import math

import pytest
import torch
import torch.nn.functional as F

from spaner.align.methods.hyena import HyenaAligner
from spaner.errors import RecipeError

B, P, D, E, H = 3, 5, 14, 11, 7


@pytest.fixture
def aligner():
    torch.manual_seed(0)
    return HyenaAligner(D, E, H).double()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(B, D, generator=generator, dtype=torch.float64)
    return F.normalize(x, dim=1), torch.randn(P, D, generator=generator, dtype=torch.float64)


def loop(aligner: HyenaAligner, x: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """Tokens [x'; S'] of one sample: the definition, one number at a time."""
    tokens = [aligner.inner(math.sqrt(D) * token) for token in [x, *prompt]]
    length = len(tokens)
    short = [
        torch.stack([aligner.short[k] * tokens[i + k - 1] for k in range(3) if 0 <= i + k - 1 < length]).sum(
            0
        )
        for i in range(length)
    ]
    taps = aligner.filters(P)  # rows: first the heads' h1, then their h2
    v = [s[:D] for s in short]
    for order in range(2):
        gates = [s[D * (order + 1) : D * (order + 2)] for s in short]
        result = []
        for i in range(length):
            channels = []
            for d in range(D):
                h = taps[order * H + d // (D // H)]
                conv = sum(h[P + i - j] * v[j][d] for j in range(length))
                channels.append(gates[i][d] * (conv + aligner.skip[order, d] * v[i][d]))
            result.append(torch.stack(channels))
        v = result
    return torch.stack([aligner.outer(token) / math.sqrt(D) for token in v])


def test_equals_the_loop(aligner):
    x, prompt = inputs()
    f, z = aligner(x, prompt)
    for b in range(B):
        tokens = loop(aligner, x[b], prompt)
        torch.testing.assert_close(f[b], aligner.proj(tokens[0] + x[b]))
        torch.testing.assert_close(z[b], tokens.max(0).values)


def test_filters_are_the_window_times_the_network():
    filters = HyenaAligner(D, E, H).filters
    taps = filters(P)
    assert taps.shape == (2 * H, 2 * P + 1)
    t = -3
    features = [t / P]
    features += [math.cos(math.pi * k * t / P) for k in (1, 2, 3, 4)] + [
        math.sin(math.pi * k * t / P) for k in (1, 2, 3, 4)
    ]
    network = filters.last(torch.sin(filters.second(torch.sin(filters.first(torch.tensor(features))))))
    for h in range(2 * H):
        decay = 10 ** (-2 + 2 * h / (2 * H - 1))
        assert taps[h, P + t].item() == pytest.approx(network[h].item() * math.exp(-decay * 3), abs=1e-6)


def test_every_token_sees_every_other(aligner):
    """A causal convolution over [x; S] would leave the gradient of x' by S at zero."""
    x, prompt = inputs()
    tokens = torch.autograd.functional.jacobian(lambda p: aligner._mix(x, p)[:, 0].sum(0), prompt)
    assert (tokens.abs().amax(dim=(0, 2)) > 0).all()  # x' depends on every prompt row
    rows = torch.autograd.functional.jacobian(lambda one: aligner._mix(one, prompt)[0], x[:1])
    assert (rows.abs().amax(dim=(1, 2, 3)) > 0).all()  # every prompt row depends on x


def test_rows_do_not_depend_on_their_neighbours(aligner):
    x, prompt = inputs()
    torch.testing.assert_close(aligner(x, prompt)[0][1:2], aligner(x[1:2], prompt)[0])


@pytest.mark.parametrize("project", ["residual", "input"])
def test_pool_and_project_read_what_they_say(project):
    torch.manual_seed(0)
    aligner = HyenaAligner(D, E, H, pool="input", project=project).double()
    x, prompt = inputs()
    f, z = aligner(x, prompt)
    torch.testing.assert_close(z, torch.stack([torch.cat([row[None], prompt]).max(0).values for row in x]))
    expected = x + torch.stack([loop(aligner, row, prompt)[0] for row in x]) if project == "residual" else x
    torch.testing.assert_close(f, aligner.proj(expected))


def test_identity_start_and_gradients():
    torch.manual_seed(0)
    aligner = HyenaAligner(D, D, H).double()
    aligner.start_at_identity()
    x, prompt = inputs()
    prompt.requires_grad_()
    assert torch.equal(aligner(x, prompt)[0], x)
    aligner(x, prompt)[0].square().sum().backward()
    assert aligner.outer.weight.grad is not None
    assert aligner.outer.weight.grad.abs().max() > 0


def test_output_is_of_the_inputs_size():
    """x' must neither vanish beside x nor drown it when training begins."""
    torch.manual_seed(0)
    aligner = HyenaAligner(512, 512)
    x = F.normalize(torch.randn(97, 512), dim=1)
    attended = aligner._out(aligner._mix(x, 0.02 * torch.randn(2, 512))[:, 0])
    assert 0.02 < attended.norm(dim=1).mean() < 2


def test_bad_options_say_what_to_use():
    with pytest.raises(
        RecipeError, match="attend is 'prompt'; the hyena aligner knows only 'all'; use attend=all or"
    ):
        HyenaAligner(D, E, H, attend="prompt")
    with pytest.raises(
        RecipeError, match="heads is 8 and does not divide the embedding width 14; use heads=7"
    ):
        HyenaAligner(D, E, 8)
    with pytest.raises(
        RecipeError, match="init=identity needs out_dim equal to the embedding width, found 11 and 14; use"
    ):
        HyenaAligner(D, E, H).start_at_identity()
