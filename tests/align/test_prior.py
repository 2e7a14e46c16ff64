"""The closed-form prior of a trained space: its two heads, their strengths, and what survives a file."""

import pytest
import torch

from spaner.align.methods import prior as priors
from spaner.align.methods.prior import ClosedFormPrior, Gaussians, Kernel, PriorSettings
from spaner.align.methods.proker import ProKeR
from spaner.align.methods.spaner import Spaner
from spaner.align.methods.task import Query, Task, Tools
from spaner.align.train.config import TrainConfig
from tests.align.few_shot import CLASSES, WIDTH, task

NAMES = tuple(f"class {i}" for i in range(CLASSES))


def config(**changes):
    return TrainConfig.from_recipe(
        "anchored-prior", **{"heads": 1, "epochs": 1, "batch_size": 8, "device": "cpu", "shots": 5} | changes
    )


def fitted(**changes):
    chosen = config(**changes)
    return Spaner.fit(task(), chosen, Tools()), chosen


def unseen(learned: Task) -> torch.Tensor:
    """First views of the validation rows."""
    assert learned.validation is not None
    return learned.validation.x[:, 0]


def test_the_kernel_head_is_prokers_correction():
    learned = task()
    flat = TrainConfig(method="proker", beta=2.0, lam=0.1)
    head = Kernel(CLASSES, WIDTH).fit(learned, 2.0, 0.1)
    x, query = unseen(learned), learned.query()
    alone = ProKeR.fit(learned, flat, Tools()).scores(x, query) - x @ query.texts.classes.T
    torch.testing.assert_close(head(x), learned.logit_scale * alone, rtol=1e-4, atol=1e-4)


def test_many_rows_take_random_features_and_more_of_them_come_nearer_the_exact_kernel(monkeypatch):
    learned = task()
    x = unseen(learned)
    exact = Kernel(CLASSES, WIDTH).fit(learned, 2.0, 0.1)(x)
    monkeypatch.setattr(priors, "QUICK_ROWS", 10)
    far = []
    for features in (64, 4_096):
        monkeypatch.setattr(priors, "FEATURES", features)
        near = Kernel(CLASSES, WIDTH).fit(learned, 2.0, 0.1)
        assert len(near.solved) == features == 2 * len(near.rows)
        far.append(float((near(x) - exact).norm() / exact.norm()))
    assert far[1] < 0.3 * far[0]


def test_gaussians_say_nothing_of_one_row_a_class():
    one = task(shots=1)
    assert not Gaussians(CLASSES, WIDTH).fit(one, 0.3)(one.x[:, 0]).any()
    assert Gaussians(CLASSES, WIDTH).fit(task(), 0.3)(one.x[:, 0]).any()


def test_gaussians_spread_as_zero_shot_does():
    learned = task()
    rows = learned.x.flatten(0, 1)
    zero_shot = learned.logit_scale * rows @ learned.query("text").texts.classes.T
    found = Gaussians(CLASSES, WIDTH).fit(learned, 0.3)(rows)
    torch.testing.assert_close(found.std(1).mean(), zero_shot.std(1).mean(), rtol=1e-4, atol=0)


def test_scores_are_the_space_and_what_each_head_adds():
    model, _ = fitted(blend=0.5, prior_weight=2.0, shrinkage=0.3, kernel_beta=2.0, kernel_lam=0.1)
    x, query = unseen(task()), task().query("semantic")
    assert model.prior is not None
    texts = torch.nn.functional.normalize(model.embed("text", query.texts.x[:, 0]), dim=1)
    cosines = model.logit_scale * model.embed("image", x) @ texts.T
    gaussians, kernel = model.prior.gaussians, model.prior.kernel
    assert gaussians is not None
    assert kernel is not None
    added = 2 * gaussians(x) + kernel(x)
    torch.testing.assert_close(model.scores(x, query), cosines + added, rtol=1e-4, atol=1e-4)


def test_a_query_of_fewer_classes_takes_their_columns_and_one_of_others_takes_the_space_alone():
    model, _ = fitted(blend=0.5, prior_weight=1.0)
    x, texts = unseen(task()), task().texts["vanilla"]
    whole = model.prior_scores(x, Query("text", NAMES, texts))
    some = Query("text", (NAMES[4], NAMES[1]), texts)
    torch.testing.assert_close(model.prior_scores(x, some), whole[:, [4, 1]])
    assert not model.prior_scores(x, Query("text", (NAMES[4], "another"), texts)).any()


def test_it_comes_back_from_its_tensors_with_the_same_bits_and_can_be_weighed_anew():
    model, chosen = fitted(blend=0.5, prior_weight=1.0)
    x, query = unseen(task()), task().query()
    back = Spaner.restore(model.state(), chosen, task().facts())
    assert torch.equal(back.scores(x, query), model.scores(x, query))
    louder = back.tuned_to({"prior_weight": 3.0})
    assert back.prior is not None
    assert back.prior.gaussians is not None
    torch.testing.assert_close(
        louder.scores(x, query) - back.scores(x, query), 2 * back.prior.gaussians(x), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("kinds", ["gda", "kernel", "gda+kernel"])
def test_every_combination_of_its_grid_is_what_solving_it_gives(kinds):
    model, chosen = fitted(prior=kinds)
    x, query = unseen(task()), task().query()
    found = list(model.tune(x, query, chosen.open_grid()))
    assert len(found) == {"gda": 3 * 4 * 2, "kernel": 3 * 4, "gda+kernel": 3 * 4 * 8}[kinds]
    for choice, scores in found[:: len(found) // 5]:
        torch.testing.assert_close(model.tuned_to(choice).scores(x, query), scores, rtol=1e-4, atol=1e-4)


def test_widths_that_differ_have_no_kernel_and_still_gaussians():
    other = task(text_width=WIDTH + 1)
    prior = ClosedFormPrior(PriorSettings("gda+kernel", 1.0), WIDTH, NAMES).fit(other)
    x, query = unseen(other), other.query()
    assert prior.gaussians is not None
    torch.testing.assert_close(prior(x, query), prior.gaussians(x))
