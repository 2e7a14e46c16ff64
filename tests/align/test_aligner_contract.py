"""What every registered aligner must do."""

import importlib

import pytest
import torch

from spaner.align.methods import method as methods
from spaner.align.methods.method import ALIGNERS, Aligner
from spaner.errors import RecipeError

DIM, OUT, HEADS, BATCH, LENGTH = 20, 13, 5, 7, 3


def importable(name):
    try:
        importlib.import_module(ALIGNERS[name].split(":")[0])
    except ModuleNotFoundError:
        return False
    return True


@pytest.fixture(params=[name for name in ALIGNERS if importable(name)])
def make(request):
    def build(dim=DIM, out_dim=OUT, **options):
        torch.manual_seed(1)
        return methods.aligner(request.param)(dim, out_dim, HEADS, **options)

    return build


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(2)
    x = torch.nn.functional.normalize(torch.randn(BATCH, DIM, generator=generator), dim=1)
    return x, torch.randn(LENGTH, DIM, generator=generator)


def test_is_an_aligner(make):
    assert isinstance(make(), Aligner)
    assert isinstance(make(), torch.nn.Module)


@pytest.mark.parametrize("attend", ["all", "prompt"])
@pytest.mark.parametrize("pool", ["output", "input"])
@pytest.mark.parametrize("project", ["residual", "input"])
def test_shapes_and_finite_gradients(make, tokens, attend, pool, project):
    try:
        aligner = make(attend=attend, pool=pool, project=project)
    except RecipeError:
        pytest.skip("this aligner refuses the option by name")
    x, prompt = tokens
    f, z = aligner(x, prompt.requires_grad_())
    assert (f.shape, z.shape) == ((BATCH, OUT), (BATCH, DIM))
    (f.square().sum() + z.square().sum()).backward()
    gradients = [p.grad for p in (prompt, *aligner.parameters()) if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)


def test_a_row_does_not_depend_on_its_batch(make, tokens):
    aligner, (x, prompt) = make().eval(), tokens
    whole = aligner(x, prompt)
    for row in range(BATCH):
        for alone, together in zip(aligner(x[row : row + 1], prompt), whole, strict=True):
            torch.testing.assert_close(alone[0], together[row])


def test_order_of_rows_is_kept(make, tokens):
    aligner, (x, prompt) = make().eval(), tokens
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    for shuffled, whole in zip(aligner(x[order], prompt), aligner(x, prompt), strict=True):
        torch.testing.assert_close(shuffled, whole[order])


def test_prompt_matters(make, tokens):
    aligner, (x, prompt) = make().eval(), tokens
    matters = getattr(aligner, "reads_prompt", True)
    for a, b in zip(aligner(x, prompt), aligner(x, prompt + 1), strict=True):
        assert torch.allclose(a, b) != matters


def test_any_prompt_length(make, tokens):
    aligner, (x, prompt) = make().eval(), tokens
    for length in (1, 2, 8, 33):
        f, z = aligner(x, prompt[:1].expand(length, -1))
        assert (f.shape, z.shape) == ((BATCH, OUT), (BATCH, DIM))


def test_identity_start(make, tokens):
    aligner, (x, prompt) = make(out_dim=DIM), tokens
    aligner.start_at_identity()
    torch.testing.assert_close(aligner(x, prompt)[0], x)


def test_state_dict_round_trip(make, tokens):
    aligner, (x, prompt) = make(), tokens
    torch.manual_seed(9)
    other = make()
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    other.load_state_dict(aligner.state_dict())
    for a, b in zip(aligner.eval()(x, prompt), other.eval()(x, prompt), strict=True):
        assert torch.equal(a, b)
