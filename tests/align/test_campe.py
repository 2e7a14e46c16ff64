"""CAMPE and CAMPE-lite: their terms by hand, where they start, what each switch does, and what is refused."""

import dataclasses
import json
import math
from typing import Any

import few_shot
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spaner.align.methods.blocks import diversity, joined, negation_entropy, told_apart, train_blocks
from spaner.align.methods.campe import CampePrompts, SuffixPrompts
from spaner.align.methods.campe_lite import CampeLite, TemplateQueries
from spaner.align.methods.task import Task, Texts, Tools
from spaner.align.methods.zero_shot import ZeroShot
from spaner.errors import Mismatch, RunError
from spaner.extract.encoders import encoder
from spaner.extract.encoders.text_tower import Padded, PromptTower
from tests.extract.conftest import TINY

WIDTH = 24
LITE = {"epochs": 20, "lr": 3e-3, "blocks": 4}


def with_negated(task: Task) -> Task:
    """The same task, whose cache has negated templates too: close to the classes, and a little aside."""
    generator = torch.Generator().manual_seed(8)
    aside = task.text[:, :3] + 0.25 * torch.randn(3, WIDTH, generator=generator)
    return dataclasses.replace(task, texts={**task.texts, "negated": Texts(*few_shot.unit(aside))})


@pytest.fixture(scope="module")
def task() -> Task:
    labels = torch.arange(few_shot.CLASSES).repeat(few_shot.SHOTS)
    drawn = few_shot.samples(labels, width=WIDTH)
    return with_negated(few_shot.task(text_width=WIDTH, x=drawn.x, validation=False))


@pytest.fixture(scope="module")
def fitted(task: Task):
    def again(on: Task = task, **changes: float | str) -> CampeLite:
        return CampeLite.fit(on, few_shot.settings(CampeLite, **LITE | changes), Tools())

    return again


def blocks_of(*rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


class TestTerms:
    def test_diversity_by_hand(self):
        """45 degrees, a right angle and 45 degrees of one class; three times the same of another."""
        first, second = [[1.0, 0], [5, 5], [0, -2]], [[1.0, 2], [-2, -4], [3, 6]]
        assert float(diversity(blocks_of(first))) == pytest.approx(1 / 3)
        assert float(diversity(blocks_of(second))) == pytest.approx(1)
        assert float(diversity(blocks_of(first, second))) == pytest.approx(2 / 3)
        assert float(diversity(blocks_of([[1.0, 2]]))) == 0

    def test_a_negated_class_is_one_more_negative(self):
        logits = torch.tensor([[2.0, 1.0], [0.5, 3.0]], dtype=torch.float64)
        labels, negated = torch.tensor([0, 1]), torch.tensor([1.5, 0.25], dtype=torch.float64)
        for weight in (1.0, 0.5):
            expected = [
                math.log(math.exp(2) + math.exp(1) + weight * math.exp(1.5)) - 2,
                math.log(math.exp(0.5) + math.exp(3) + weight * math.exp(0.25)) - 3,
            ]
            found = negation_entropy(logits, labels, negated, weight)
            assert float(found) == pytest.approx(sum(expected) / 2)
        plain = negation_entropy(logits, labels, None, 1.0)
        assert torch.equal(negation_entropy(logits, labels, negated, 0.0), plain)

    def test_a_tie_tells_nothing_apart(self):
        text, negated = torch.eye(3)[:2], torch.eye(3)[[0, 2]]
        x = F.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 0.5], [0, 0.5, 1]]), dim=1)
        assert told_apart(x, torch.tensor([0, 1, 1]), text, negated) == pytest.approx(1 / 3)

    def test_queries_are_attention_by_hand(self):
        torch.manual_seed(0)
        queries = TemplateQueries(3, 6).double()
        with torch.no_grad():
            queries.queries.normal_()
            queries.heads.maps.normal_()
        texts = F.normalize(torch.randn(2, 5, 6, dtype=torch.float64), dim=2)
        found = queries(texts)
        for c in range(2):
            for k in range(3):
                weights = torch.softmax(6**0.5 * texts[c] @ queries.queries[k], 0)
                mixed = sum(w * t for w, t in zip(weights, texts[c], strict=True))
                torch.testing.assert_close(found[c, k], queries.heads.maps[k] @ mixed)


def test_lite_starts_as_zero_shot(task):
    untrained = joined(TemplateQueries(4, WIDTH)(task.text))
    torch.testing.assert_close(untrained, task.texts["mined"].classes)


def test_lite_learns_what_zero_shot_does_not_know(task, fitted):
    head = fitted()
    frozen = ZeroShot.fit(task, None, Tools())
    x = few_shot.samples(torch.arange(few_shot.CLASSES).repeat(60), seed=11, views=1, width=WIDTH)
    right = [(m.scores(x.x[:, 0], task.query()).argmax(1) == x.labels).float().mean() for m in (head, frozen)]
    assert right[0] > right[1] + 0.02
    assert head.history[-1]["loss"] < 0.8 * head.history[0]["loss"]
    assert bool(head.learned.queries.any())


def test_the_history_is_what_the_saved_tensors_give(task, fitted):
    head = fitted()
    last, blocks = head.history[-1], head.text.unflatten(1, (4, -1))
    assert last["diversity"] == pytest.approx(float(diversity(blocks)), abs=1e-6)
    negated = joined(head.learned(task.texts["negated"].x))
    assert last["negation"] == told_apart(task.x[:, 0], task.labels, head.text, negated)


def test_each_loss_has_its_switch(fitted):
    """Each makes its own number better than without it, and zero is without it."""
    plain, spread = fitted(div=0.0).history[-1], fitted(div=5.0).history[-1]
    assert spread["diversity"] < 0.5 * plain["diversity"]
    aware = fitted(div=0.0, neg=5.0).history[-1]
    assert aware["negation"] > plain["negation"] + 0.05


def test_what_does_not_fit_is_refused(task, fitted):
    with pytest.raises(Mismatch, match=r"blocks is 5, .* do not fall into 5 equal blocks; .* use blocks=4"):
        fitted(blocks=5)
    without = dataclasses.replace(task, texts={"mined": task.texts["mined"]})
    assert "negation" not in fitted(without).history[-1]
    with pytest.raises(RunError, match=r"no text table 'negated'.*spaner extract --templates negated\.txt"):
        fitted(without, neg=1.0)


NAMES = ["tench", "t-shirt", "wall clock", "hammerhead shark", "sea"]


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> PromptTower:
    path = tmp_path_factory.mktemp("model") / "tiny.json"
    path.write_text(json.dumps(TINY | {"embed_dim": WIDTH}))
    built = encoder.text_tower("open_clip", model=str(path), weights="random", device="cpu", seed=2)
    return built.double()


@pytest.fixture
def prompts(tower: PromptTower) -> CampePrompts:
    generator = torch.Generator().manual_seed(5)
    start = tower.context_of(" in a photo")
    start = start + 0.3 * torch.randn(3, *start.shape, generator=generator, dtype=torch.float64)
    learned = SuffixPrompts(start, WIDTH).double()
    return CampePrompts(learned, tower, NAMES, "is not", 0)


class TestTower:
    """Suffixes in a small causal text tower."""

    def test_blocks_are_the_plain_loop(self, tower: PromptTower, prompts: CampePrompts):
        """Each suffix alone behind each caption, at the full window; negated, words stand between them."""
        blocks, negated = prompts(negated=True)
        assert negated is not None
        words = tower.context_of(" is not")
        for before, found in ((words[:0], blocks), (words, negated)):
            for k, suffix in enumerate(prompts.learned.suffixes):
                context = torch.cat([before, suffix])
                texts = [tower.pieces(name, len(context)) for name in NAMES]
                rows = Padded(tower, texts, len(context), "front")(context[None])[0]
                plain = rows @ prompts.learned.heads.maps[k].T
                torch.testing.assert_close(found[:, k], plain, rtol=1e-10, atol=1e-12)
        assert float((blocks - negated).detach().abs().max()) > 1e-3

    def test_a_suffix_sees_the_caption_and_itself_alone(self, prompts: CampePrompts):
        before = prompts(negated=False)[0].detach()
        with torch.no_grad():
            prompts.learned.suffixes[1] *= -1
        moved = (prompts(negated=False)[0].detach() - before).abs().amax((0, 2))
        assert moved[1] > 1e-3
        assert moved[[0, 2]].max() < 1e-12

    def test_untrained_it_is_the_name_before_the_words(self, tower: PromptTower):
        """Identical suffixes and the identity's rows: the tower's own embedding of the sentence."""
        start = tower.context_of(" in a photo")
        learned = SuffixPrompts(start.expand(4, -1, -1).clone(), WIDTH).double()
        text = joined(CampePrompts(learned, tower, NAMES, "is not", 0)(negated=False)[0])
        plain = tower.prompted(NAMES, len(start), "front")(start[None])[0]
        torch.testing.assert_close(text, F.normalize(plain, dim=1))

    @pytest.mark.parametrize(("term", "number", "sign"), [("div", "diversity", -1), ("neg", "negation", 1)])
    def test_each_loss_moves_its_own_number(
        self, tower: PromptTower, prompts: CampePrompts, term: str, number: str, sign: int
    ):
        generator = torch.Generator().manual_seed(1)
        x = F.normalize(torch.randn(40, WIDTH, generator=generator, dtype=torch.float64), dim=1)
        labels = torch.arange(5).repeat(8)
        start = {name: value.clone() for name, value in prompts.learned.state_dict().items()}
        found = []
        for weight in (0.0, 5.0):
            prompts.learned.load_state_dict(start)
            measured: list[dict[str, float]] = []
            plan = {"rates": [0.01] * 12, "batches": [torch.arange(40)] * 12, "weight_decay": 0.0}
            told: Any = {"scale": 20.0, "div": 0.0, "neg": 0.0, term: weight} | plan
            parameters = prompts.learned.parameters()
            steps = train_blocks(prompts, parameters, measured, 12, x, labels, **told)
            assert len(list(steps)) == 12
            found.append(measured[-1][number])
        assert sign * (found[1] - found[0]) > 0.01
        assert all(p.grad is not None and bool(p.grad.any()) for p in prompts.learned.parameters())
        assert not any(p.grad is not None for p in tower.parameters())
