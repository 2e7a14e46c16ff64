"""Choosing on validation rows: the cost of a row, the rule, and what the receipt says."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from spaner.align.methods import method as methods
from spaner.align.methods.gda import Gda
from spaner.align.methods.task import Tools
from spaner.align.train.config import TrainConfig
from spaner.align.train.select import Judge, fit_chosen, folds, surprise
from spaner.errors import DatasetError
from spaner.settings import option
from tests.align.few_shot import CLASSES, task

LABELS = torch.arange(6).repeat(5)


def scores(strength, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(30, 6, generator=generator) + strength * torch.eye(6)[LABELS]


@pytest.mark.parametrize("scale", [1e-3, 0.3, 1.0, 40.0, 1e3])
def test_the_cost_of_a_row_is_its_cross_entropy_at_the_best_temperature(scale):
    def mean(log_beta):
        return float(torch.nn.functional.cross_entropy(np.exp(log_beta) * scores(2.0).double(), LABELS))

    best = minimize_scalar(mean, bounds=(-10, 10), method="bounded").fun
    assert float(surprise(scale * scores(2.0), LABELS).mean()) == pytest.approx(best, rel=0.01)


def test_a_class_that_a_head_does_not_know_costs_a_finite_amount():
    lacking = scores(2.0)
    lacking[:, 3] = -torch.inf
    assert torch.isfinite(surprise(lacking, LABELS)).all()


def test_published_values_stay_where_another_is_better_by_luck_alone():
    judge = Judge(LABELS[:6])
    judge.leads({"a": 0}, scores(2.0)[:6])
    for i in range(1, 4):
        judge.leads({"a": i}, scores(2.05, seed=i)[:6])
    means = np.array(judge.nll)
    assert judge.choice == {"a": 0} or means.min() < means[0]
    assert all(error <= 1 for error in judge.errors) == (judge.choice == {"a": 0})


def test_what_is_clearly_better_is_chosen_and_of_equals_the_first():
    judge = Judge(LABELS)
    assert judge.leads({"a": 0}, scores(0.5))
    assert judge.leads({"a": 1}, scores(4.0))
    assert not judge.leads({"a": 2}, scores(4.0))
    assert not judge.leads({"a": 3}, scores(0.0))
    receipt = judge.receipt("val", {"a": (0, 1, 2, 3)}, "ab")
    assert receipt.choice == {"a": 1}
    assert receipt.errors[0] == 0
    assert receipt.errors[1] == receipt.errors[2] > 1
    assert receipt.errors[3] < 0


def test_one_validation_row_moves_nothing():
    judge = Judge(LABELS[:1])
    judge.leads({"a": 0}, scores(0.0)[:1])
    judge.leads({"a": 1}, scores(9.0)[:1])
    assert judge.choice == {"a": 0}


def test_a_method_is_fitted_once_for_all_that_it_can_be_tuned_to(monkeypatch):
    gda = methods.method("gda")
    fits = []
    plain = gda.fit.__func__

    def counted(cls, *given):
        fits.append(1)
        return plain(cls, *given)

    monkeypatch.setattr(gda, "fit", classmethod(counted))
    _, config, receipt = fit_chosen(gda, task(), TrainConfig(method="gda"), Tools())
    assert len(fits) == 1
    assert receipt.tried[0] == {"alpha": 0.1}
    assert receipt.choice is not None
    assert sorted(choice["alpha"] for choice in receipt.tried) == sorted(10.0**i for i in range(-4, 3))
    assert config.alpha == receipt.choice["alpha"]


@dataclasses.dataclass(frozen=True)
class TwoSettings:
    """One grid that needs a fit for each value, its default not the first; one that is tuned."""

    alpha: float = option(0.1, "Tuned.", low=0, grid=(0.1, 1.0))
    shrinkage: float = option(1.0, "Refitted.", low=0, grid=(0.01, 1.0, 30.0))


class TwoGrids(Gda):
    Settings = TwoSettings


def test_what_is_tuned_belongs_to_the_fit_of_its_combination(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "two_grids", f"{__name__}:TwoGrids")
    own = task()
    _, _, receipt = fit_chosen(TwoGrids, own, TrainConfig(method="two_grids"), Tools())
    assert len(receipt.tried) == 2 * 3
    held = own.validation
    assert held is not None
    for choice, nll in zip(receipt.tried, receipt.nll, strict=True):
        alone = TwoGrids.fit(own, TrainConfig(method="two_grids", **choice), Tools())
        rows = surprise(alone.scores(held.x[:, 0], own.query()), held.labels)
        assert nll == pytest.approx(float(rows.mean()), rel=1e-5)


def test_validation_labels_alone_decide(monkeypatch):
    """Other labels, another choice: what is chosen follows the validation rows."""
    own = task(shots=8)
    held = own.validation
    assert held is not None
    turned = dataclasses.replace(
        own, validation=dataclasses.replace(held, labels=(held.labels + 1) % CLASSES)
    )
    chosen = [
        fit_chosen(methods.method("linear_probe"), each, TrainConfig(method="linear_probe"), Tools())[2]
        for each in (own, turned)
    ]
    assert chosen[0].scores != chosen[1].scores
    assert chosen[0].choice != chosen[1].choice


def test_folds_leave_out_every_row_once_and_rows_of_every_class():
    labels = torch.tensor([0, 1, 0, 2, 2, 1, 0, 1, 2, 0])
    own = task(labels=labels.repeat(CLASSES)[:30] % CLASSES)
    own = dataclasses.replace(own, class_names=("a", "b", "c"))
    held = folds(own)
    assert len(held) == 4
    assert torch.equal(torch.stack(held).sum(0), torch.ones(30, dtype=torch.long))
    for fold in held:
        assert set(own.labels[fold].tolist()) == set(own.labels[~fold].tolist()) == {0, 1, 2}
        rest = own.without(fold)
        assert torch.equal(rest.x, own.x[~fold])
        assert torch.equal(rest.rows, own.rows[~fold])
        assert rest.validation is None


def test_folds_choose_by_fits_that_never_saw_the_row(monkeypatch):
    """Every combination costs what a loop over the folds finds; the choice is fitted on all rows."""
    monkeypatch.setitem(methods.METHODS, "two_grids", f"{__name__}:TwoGrids")
    own = task(validation=False)
    fitted, config, receipt = fit_chosen(
        TwoGrids, own, TrainConfig(method="two_grids", select="folds"), Tools()
    )
    assert (receipt.by, receipt.rows, len(receipt.tried)) == ("folds", len(own.labels), 2 * 3)
    held = folds(own)
    labels = torch.cat([own.labels[fold] for fold in held])
    for choice, nll in zip(receipt.tried, receipt.nll, strict=True):
        told = TrainConfig(method="two_grids", **choice)
        alone = [TwoGrids.fit(own.without(fold), told, Tools()) for fold in held]
        found = [head.scores(own.x[fold][:, 0], own.query()) for head, fold in zip(alone, held, strict=True)]
        assert nll == pytest.approx(float(surprise(torch.cat(found), labels).mean()), rel=1e-5)
    assert receipt.choice is not None
    again = TwoGrids.fit(own, TrainConfig(method="two_grids", **receipt.choice), Tools())
    assert torch.equal(again.scores(own.x[:, 0], own.query()), fitted.scores(own.x[:, 0], own.query()))
    assert config.alpha == receipt.choice["alpha"]


def test_folds_of_a_class_with_one_row():
    with pytest.raises(
        DatasetError, match="select is folds, and class 'class 0' has 1 training rows; expected 2"
    ):
        fit_chosen(Gda, task(shots=1), TrainConfig(method="gda", select="folds"), Tools())
