"""The shared-prompt aligner equals attention over concatenated tokens, in values, gradients and ties."""

import itertools
import runpy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spaner.align.methods import closed_form
from spaner.align.methods.attention import AttentionAligner
from spaner.errors import RecipeError

ConcatenatedAligner = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "concatenated.py"))[
    "ConcatenatedAligner"
]
OPTIONS = list(itertools.product(["all", "prompt"], ["output", "input"], ["residual", "input"]))


def pair(dim, out_dim, heads, *, dtype=torch.float64, seed=0, **options):
    """Both aligners with the same random weights, biases included."""
    torch.manual_seed(seed)
    fast = AttentionAligner(dim, out_dim, heads, **options).to(dtype)
    for parameter in fast.parameters():
        torch.nn.init.normal_(parameter, std=dim**-0.5)
    plain = ConcatenatedAligner(dim, out_dim, heads, **options).to(dtype)
    plain.load_state_dict(fast.state_dict())
    return fast, plain


def outputs_and_gradients(aligner, x, prompt):
    """f, z, and the gradients of a loss that weighs every output differently, by name."""
    aligner.zero_grad()
    x, prompt = x.clone().requires_grad_(), prompt.clone().requires_grad_()
    f, z = aligner(x, prompt)
    weights = torch.linspace(-1, 1, f.numel() + z.numel(), dtype=x.dtype)
    (torch.cat([f.flatten(), z.flatten()]) * weights).sum().backward()
    leaves = {"x": x, "prompt": prompt, **dict(aligner.named_parameters())}
    return {"f": f.detach(), "z": z.detach()} | {f"d {name}": leaf.grad for name, leaf in leaves.items()}


def assert_same(fast, plain, x, prompt, tolerance):
    ours, theirs = outputs_and_gradients(fast, x, prompt), outputs_and_gradients(plain, x, prompt)
    for name, expected in theirs.items():
        if expected is None or ours[name] is None:  # a parameter that no output depends on
            zeros = [g for g in (expected, ours[name]) if g is not None]
            assert all(g.abs().max() == 0 for g in zeros), name
            continue
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(ours[name], expected, atol=tolerance * scale, rtol=0, msg=name)


@pytest.mark.parametrize(("attend", "pool", "project"), OPTIONS)
@pytest.mark.parametrize("length", [1, 2, 7, 64])
def test_equals_concatenated_attention_in_float64(attend, pool, project, length):
    fast, plain = pair(20, 13, 5, attend=attend, pool=pool, project=project)
    x, prompt = torch.randn(11, 20).double(), torch.randn(length, 20).double()
    assert_same(fast, plain, x, prompt, 1e-10)


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 64),
    heads=st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24]),
    batch=st.integers(1, 13),
    options=st.sampled_from(OPTIONS),
    seed=st.integers(0, 1000),
    block=st.sampled_from([1, 100, 1 << 20]),
)
def test_equals_concatenated_attention_for_any_sizes(length, heads, batch, options, seed, block):
    fast, plain = pair(
        24, 7, heads, seed=seed, **dict(zip(["attend", "pool", "project"], options, strict=True))
    )
    x, prompt = torch.randn(batch, 24).double(), torch.randn(length, 24).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(closed_form, "TOKEN_BLOCK", block)
        assert_same(fast, plain, x, prompt, 1e-10)


def worst_relative_error(found, truth):
    """Largest error over outputs and gradients, each measured against its own norm."""
    return max((found[name] - value).norm() / value.norm() for name, value in truth.items()).item()


@pytest.mark.parametrize("length", [1, 8, 32])
def test_equals_concatenated_attention_in_float32_at_full_width(length):
    """Against float64 as the truth. Tokens differ by much more than rounding, so that the same ones win."""
    (fast, plain), (exact, _) = pair(512, 512, 8, dtype=torch.float32), pair(512, 512, 8)
    exact.load_state_dict(fast.state_dict())
    x, prompt = torch.nn.functional.normalize(torch.randn(31, 512), dim=1), torch.randn(length, 512)
    truth = outputs_and_gradients(exact, x.double(), prompt.double())
    assert worst_relative_error(outputs_and_gradients(fast, x, prompt), truth) < 1e-5
    assert worst_relative_error(outputs_and_gradients(plain, x, prompt), truth) < 1e-5


def test_large_scores_stay_finite():
    fast, plain = pair(12, 12, 3)
    x, prompt = torch.randn(5, 12).double() * 300, torch.randn(3, 12).double() * 300
    assert all(torch.isfinite(v).all() for v in outputs_and_gradients(fast, x, prompt).values())
    assert_same(fast, plain, x, prompt, 1e-9)


def test_ties_follow_torch_max_at_the_identity_start():
    """All tokens are equal there, so the whole gradient of the pooled tokens must go to x', the first."""
    fast, plain = pair(12, 12, 3)
    fast.start_at_identity()
    plain.load_state_dict(fast.state_dict())
    x, prompt = torch.randn(7, 12).double(), torch.randn(5, 12).double()
    f, z = fast(x, prompt)
    assert torch.equal(f, x)
    assert torch.equal(z, torch.zeros_like(z))
    assert_same(fast, plain, x, prompt, 1e-10)


def test_pooling_takes_the_first_of_equal_tokens():
    tokens = torch.tensor([[[1.0, 5.0, -2.0], [3.0, 5.0, -2.0], [3.0, 4.0, -2.0]]])
    values, winner = closed_form._first_max(tokens)
    assert values.tolist() == [[3.0, 5.0, -2.0]]
    assert winner.tolist() == [[1, 0, 0]]


def test_gradcheck():
    fast, _ = pair(6, 5, 3)
    torch.manual_seed(3)
    x, prompt = torch.randn(4, 6).double().requires_grad_(), torch.randn(3, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, s, *_: fast(x, s), (x, prompt, *fast.parameters()))


@pytest.mark.parametrize("direction", ["to plain", "from plain"])
def test_state_dict_moves_both_ways(direction):
    fast, plain = AttentionAligner(12, 8, 4), ConcatenatedAligner(12, 8, 4)
    assert list(fast.state_dict()) == [
        *("attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias"),
        *("proj.weight", "proj.bias"),
    ]
    source, target = (fast, plain) if direction == "to plain" else (plain, fast)
    target.load_state_dict(source.state_dict())
    x, prompt = torch.randn(5, 12), torch.randn(3, 12)
    for a, b in zip(fast(x, prompt), plain(x, prompt), strict=True):
        torch.testing.assert_close(a, b)


def test_bfloat16_autocast_agrees_and_has_gradients():
    fast, _ = pair(64, 64, 8, dtype=torch.float32)
    x, prompt = torch.nn.functional.normalize(torch.randn(17, 64), dim=1), torch.randn(3, 64)
    f, z = fast(x, prompt)
    with torch.autocast("cpu", torch.bfloat16):
        g, y = fast(x, prompt.requires_grad_())
    assert torch.cosine_similarity(f, g.float()).min() > 0.999
    assert torch.cosine_similarity(z, y.float()).min() > 0.999
    (g.float().sum() + y.float().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fast.parameters())


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(RecipeError, match=r"heads is 8 and does not divide .* 20; use heads=5"):
        AttentionAligner(20, 20, 8)


def test_identity_start_needs_equal_widths():
    with pytest.raises(
        RecipeError, match=r"init=identity needs out_dim equal .* found 5 and 6; use out_dim=6"
    ):
        AttentionAligner(6, 5, 2).start_at_identity()
