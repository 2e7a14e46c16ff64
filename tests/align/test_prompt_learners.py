"""CoOp and CoCoOp against loops a reader can follow, on a small frozen text tower; and the published runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spaner.align.methods.cocoop import ConditionalContext, conditional_scores, train_conditional
from spaner.align.methods.coop import start_context, train_context
from spaner.align.methods.descent import dassl_cosine
from spaner.align.methods.prompting import class_vectors, spoken
from spaner.extract.encoders import encoder
from spaner.extract.encoders.text_tower import Padded, PromptTower
from tests.extract.conftest import TINY

NAMES = ["tench", "t-shirt", "wall clock", "hammerhead shark", "sea"]
FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures" / "methods"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> PromptTower:
    path = tmp_path_factory.mktemp("model") / "tiny.json"
    path.write_text(json.dumps(TINY))
    built = encoder.text_tower("open_clip", model=str(path), weights="random", device="cpu", seed=2)
    return built.double()


def rows(seed: int) -> tuple[Tensor, Tensor]:
    """11 unit vectors of width 23, and labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(11, 23, generator=generator, dtype=torch.float64)
    return F.normalize(x, dim=1), torch.randint(len(NAMES), (11,), generator=generator)


def test_rates_are_dassls() -> None:
    """One epoch of warm-up, then a cosine over all epochs: the last one ends above zero."""
    third = 0.002 * (1 + torch.cos(torch.tensor(torch.pi / 3)).item()) / 2
    assert dassl_cosine(0.002, 3, 2) == pytest.approx([1e-5, 1e-5, 0.002, 0.002, third, third])


def test_underscores_are_spaces() -> None:
    assert spoken(["golden_retriever", "sea"]) == ["golden retriever", "sea"]


def test_words_fix_the_start_and_its_length(tower: PromptTower) -> None:
    context = start_context(tower, words="a_photo of a", length=16, classes=None, seed=0)
    assert torch.equal(context, tower.context_of("a photo of a"))
    assert context.shape == (4, 32)
    own = start_context(tower, words="a photo", length=16, classes=3, seed=0)
    assert own.shape == (3, 2, 32)


def test_a_random_start_is_small_and_seeded(tower: PromptTower) -> None:
    first, again, other = (start_context(tower, words="", length=50, classes=7, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.std()) == pytest.approx(0.02, rel=0.05)


def padded(tower: PromptTower, length: int, position: str = "end") -> Padded:
    return Padded(tower, [tower.pieces(name, length) for name in NAMES], length, position)


@pytest.mark.parametrize(("position", "classes"), [("end", None), ("middle", None), ("front", 5), ("end", 5)])
def test_coop_is_the_plain_loop(tower: PromptTower, position: str, classes: int | None) -> None:
    x, labels = rows(0)
    start = 10 * start_context(tower, words="", length=3, classes=classes, seed=4).double()
    batches, rates = (
        [torch.tensor([0, 5, 7]), torch.tensor([1, 2, 10]), torch.tensor([4, 4, 3])],
        [0.1, 0.2, 0.05],
    )
    context = start.clone().requires_grad_()
    prompted = tower.prompted(NAMES, 3, position)
    losses = list(train_context(prompted, context, x, labels, scale=9.0, rates=rates, batches=batches))
    plain, velocity, expected = start.clone(), torch.zeros_like(start), []
    for batch, rate in zip(batches, rates, strict=True):
        plain.requires_grad_()
        text = padded(tower, 3, position)(plain if classes else plain[None], per_class=bool(classes))[0]
        logits = 9.0 * x[batch] @ F.normalize(text, dim=1).T
        loss = -logits.log_softmax(1)[torch.arange(3), labels[batch]].mean()
        (gradient,) = torch.autograd.grad(loss, plain)
        velocity = 0.9 * velocity + gradient + 5e-4 * plain.detach()
        plain = plain.detach() - rate * velocity
        expected.append(loss.detach())
    torch.testing.assert_close(torch.stack(losses), torch.stack(expected), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(context.detach(), plain, rtol=1e-10, atol=1e-12)
    assert float((plain - start).abs().max()) > 1e-3
    vectors = class_vectors(prompted, context)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5, dtype=torch.float64))


def test_cocoop_is_a_loop_over_images(tower: PromptTower) -> None:
    x, _ = rows(1)
    torch.manual_seed(3)
    context = ConditionalContext(tower.context_of("a photo").float(), 23).double()
    with torch.no_grad():
        context.meta_net.linear2.weight.mul_(3)
    text = padded(tower, 2)
    scores = conditional_scores(tower.prompted(NAMES, 2), context, x, 7.0)
    for i in range(len(x)):
        hidden = (context.meta_net.linear1(x[i])).clamp(min=0)
        bias = context.meta_net.linear2(hidden)
        vectors = F.normalize(text((context.ctx + bias)[None])[0], dim=1)
        torch.testing.assert_close(scores[i], 7.0 * vectors @ x[i], rtol=1e-10, atol=1e-12)
    unmoved = 7.0 * x @ F.normalize(text(context.ctx[None])[0], dim=1).T
    assert float((scores - unmoved).detach().abs().max()) > 1e-3


def test_cocoop_learns(tower: PromptTower) -> None:
    x, labels = rows(2)
    torch.manual_seed(3)
    context = ConditionalContext(tower.context_of("a photo of a").float(), 23).double()
    batches = [torch.arange(11)] * 12
    prompted = tower.prompted(NAMES, 4)
    losses = list(
        train_conditional(prompted, context, x, labels, scale=20.0, rates=[0.02] * 12, batches=batches)
    )
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is not None and bool(p.grad.any()) for p in context.parameters())
    assert not any(p.grad is not None for p in tower.parameters())


@pytest.mark.slow
@pytest.mark.skipif(not FIXTURES.exists(), reason="the published runs are not here")
def test_the_published_runs_are_met() -> None:
    """float64 to 1e-8, float32 to ten times the reference's own rounding."""
    command = [
        sys.executable,
        str(ROOT / "scripts" / "golden"),
        str(FIXTURES),
        "--only",
        "coop_,cocoop_,maple_,mma_",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "11 cases, 0 failed" in done.stdout
