"""An image tower block by block equals the model's own; what a method does inside is where it should be."""

from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from spaner.align.methods.maple import DeepPrompts
from spaner.align.methods.mma import Adapters, GradientScale
from spaner.errors import EncoderError
from spaner.extract.encoders.image_tower import BlockTower

SHAPES: dict[str, Any] = {"image_size": 32, "layers": 5, "width": 26, "head_width": 13, "patch_size": 8}


def tower_of(**vision: Any) -> BlockTower:
    """A random tower in float64."""
    torch.manual_seed(2)
    text: Any = {"context_length": 7, "vocab_size": 11, "width": 12, "heads": 2, "layers": 1}
    config: Any = SHAPES | vision
    model = open_clip.CLIP(17, config, text)
    return BlockTower(model.visual.eval().requires_grad_(requires_grad=False).double(), "tiny", "")


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(
    "vision",
    [{}, {"pool_type": "avg"}, {"final_ln_after_pool": True}, {"no_ln_pre": True}, {"ls_init_value": 0.3}],
)
@pytest.mark.parametrize("block", [0, 2, 4])
def test_it_equals_the_model_from_any_block(pictures: Tensor, vision: dict, block: int) -> None:
    tower = tower_of(**vision)
    tokens = tower.tokens(pictures, block)
    assert tokens.shape == (3, tower.length, tower.width)
    expected = tower.visual(pictures)
    torch.testing.assert_close(tower(tokens, block), expected, rtol=1e-12, atol=1e-12)
    lower = tower.tokens(pictures, 0)
    torch.testing.assert_close(tower.between(lower, 0, block), tokens, rtol=1e-12, atol=1e-12)


def test_mma_from_tokens_equals_mma_from_pixels(pictures: Tensor) -> None:
    """Outputs, and what every adapter's weight receives, float64."""
    tower, found = tower_of(), []
    torch.manual_seed(4)
    adapters = Adapters(12, tower.width, range(3, 6), 7, 0.5).double()
    for tokens in (tower.tokens(pictures, 2), tower.between(tower.visual._embeds(pictures), 0, 2)):
        adapters.zero_grad()
        rows = adapters.image_rows(tower, tokens)
        (rows * torch.arange(17.0, dtype=torch.float64)).sum().backward()
        own = [p.grad.clone() for n, p in adapters.named_parameters() if "visual" in n and p.grad is not None]
        found.append([rows.detach(), *own])
    assert len(found[0]) == 13
    for ours, theirs in zip(*found, strict=True):
        assert theirs.abs().max() > 1e-6
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-10
    plain = tower.visual(pictures)
    assert float((found[0][0] - plain).abs().max()) > 1e-3, "the adapters change something"


@pytest.mark.parametrize("learned", ["maple", "mma"])
def test_recomputed_blocks_give_the_same_gradient(pictures: Tensor, learned: str) -> None:
    tower = tower_of()
    torch.manual_seed(4)
    module: Any = {
        "maple": DeepPrompts(torch.randn(2, 12), 3, tower.width),
        "mma": Adapters(12, tower.width, range(2, 6), 7, 0.5),
    }[learned].double()
    tokens = tower.tokens(pictures, 0 if learned == "maple" else 1)
    gradients = []
    for recompute in (False, True):
        module.zero_grad()
        module.image_rows(tower, tokens, recompute=recompute).square().sum().backward()
        gradients.append([p.grad.clone() for p in module.parameters() if p.grad is not None])
    assert len(gradients[0]) > 4
    for kept, again in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, again, rtol=1e-10, atol=1e-12)


def test_an_adapters_gradient_is_larger_by_its_share_and_what_flows_on_is_true(pictures: Tensor) -> None:
    """Against plain autograd through the same formula."""
    tower, strength = tower_of(), 0.1
    torch.manual_seed(4)
    adapters = Adapters(12, tower.width, range(3, 5), 7, strength).double()
    adapters.image_rows(tower, tower.tokens(pictures, 2)).square().sum().backward()
    scaled = {n: p.grad.clone() for n, p in adapters.named_parameters() if p.grad is not None}
    original = GradientScale.apply
    GradientScale.apply = staticmethod(lambda x, factor: x)  # pyright: ignore
    try:
        adapters.zero_grad()
        adapters.image_rows(tower, tower.tokens(pictures, 2)).square().sum().backward()
    finally:
        GradientScale.apply = original
    for name, gradient in scaled.items():
        true = dict(adapters.named_parameters())[name].grad
        torch.testing.assert_close(strength * gradient, true, rtol=1e-9, atol=1e-12)


def test_another_kind_of_tower_is_refused() -> None:
    with pytest.raises(EncoderError, match="the blocks of its image tower, Conv2d, cannot be entered"):
        BlockTower(nn.Conv2d(3, 3, 1), "open_clip/RN50", "")
