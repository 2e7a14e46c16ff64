"""The few-shot heads: what every one of them keeps, what each adds, and each refusal."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from spaner.align.methods import descent, proker, support
from spaner.align.methods.clap import Clap, ZsLp
from spaner.align.methods.clip_adapter import ClipAdapter
from spaner.align.methods.cross_modal import CrossModal
from spaner.align.methods.gda import Gda
from spaner.align.methods.lp_plus_plus import LpPlusPlus
from spaner.align.methods.method import METHODS, Space, Tunable
from spaner.align.methods.proker import ProKeR
from spaner.align.methods.rla import Rla
from spaner.align.methods.task import Texts, Tools
from spaner.align.methods.task_res import TaskRes
from spaner.align.methods.tip_adapter import TipAdapter, TipAdapterF
from spaner.align.methods.zero_shot import ZeroShot
from spaner.errors import Mismatch, RunError
from spaner.settings import grids
from tests.align import few_shot

QUICK = {
    Clap: {"epochs": 5, "batch_size": 8},
    ClipAdapter: {"epochs": 8, "batch_size": 8, "lr": 0.05},
    CrossModal: {"iterations": 60, "judge_every": 10, "lr": 0.01},
    Gda: {},
    LpPlusPlus: {"iterations": 30},
    ProKeR: {},
    Rla: {"iterations": 20, "lr": 1e-3},
    TaskRes: {"epochs": 8, "batch_size": 8, "lr": 0.02},
    TipAdapter: {},
    TipAdapterF: {"epochs": 3, "batch_size": 8},
    ZsLp: {"epochs": 5, "batch_size": 8},
}
TRAINED = [method for method, changes in QUICK.items() if changes]
KNOW_CLASSES = [method for method in QUICK if method not in (ClipAdapter, Rla)]
ROWS = few_shot.samples(torch.arange(few_shot.CLASSES), seed=7, views=1).x[:, 0]


def fitted(method, *, on=None, **changes):
    return method.fit(on or few_shot.task(), few_shot.settings(method, **QUICK[method] | changes), Tools())


@pytest.mark.parametrize("method", QUICK)
class TestEveryHead:
    def test_it_scores_about_as_zero_shot_or_better(self, method):
        task = few_shot.task()
        ours = few_shot.accuracy(fitted(method), task.query())
        slack = 0.1 if method is LpPlusPlus else 0.01  # its text weights are made for cosines of 0.3, not 0.6
        assert ours >= few_shot.accuracy(ZeroShot.fit(task, None, Tools()), task.query()) - slack

    def test_names_that_mislead_do_not_turn_its_answers_round(self, method):
        """Scores are told in a unit of the method's own; below zero it would turn every answer round."""
        task = few_shot.task()
        turned = {name: dataclasses.replace(each, x=-each.x) for name, each in task.texts.items()}
        head = fitted(method, on=dataclasses.replace(task, text=-task.text, texts=turned))
        assert head.logit_scale > 0

    def test_it_comes_back_from_its_tensors(self, method):
        head, task = fitted(method), few_shot.task()
        again = method.restore(head.state(), few_shot.settings(method, **QUICK[method]), task.facts())
        assert torch.equal(again.scores(ROWS, task.query()), head.scores(ROWS, task.query()))
        for tensor in head.state().values():
            assert tensor.device.type == "cpu"
            assert tensor.is_contiguous()
            assert not tensor.requires_grad

    def test_a_missing_tensor_is_named(self, method):
        state = fitted(method).state()
        name = sorted(state)[0]
        with pytest.raises(RunError, match=name):
            method.restore(
                {n: t for n, t in state.items() if n != name},
                few_shot.settings(method),
                few_shot.task().facts(),
            )

    def test_the_same_seed_gives_the_same_bits(self, method):
        query = few_shot.task().query()
        first, again = (fitted(method).scores(ROWS, query) for _ in range(2))
        assert torch.equal(first, again)

    def test_it_ignores_the_query_or_reads_it(self, method):
        task, head = few_shot.task(), fitted(method)
        text, semantic = (head.scores(ROWS, task.query(kind)) for kind in ("text", "semantic"))
        assert torch.equal(text, semantic) != method.reads_query

    def test_the_order_of_the_rows_does_not_matter_to_closed_forms(self, method):
        if method in TRAINED:
            return
        task, order = few_shot.task(), torch.randperm(35, generator=torch.Generator().manual_seed(0))
        assert task.norms is not None
        moved = dataclasses.replace(task, x=task.x[order], labels=task.labels[order], norms=task.norms[order])
        near = fitted(method, on=moved).scores(ROWS, task.query())
        assert torch.allclose(near, fitted(method).scores(ROWS, task.query()), atol=1e-4)

    def test_what_it_can_tune_has_a_grid_and_gives_those_scores(self, method):
        head, query = fitted(method), few_shot.task().query()
        assert isinstance(head, Tunable) == hasattr(method, "tuned")
        if not hasattr(method, "tuned"):
            return
        tried = {name: grids(method.Settings)[name][:3] for name in method.tuned}
        answers = list(head.tune(ROWS, query, tried))
        assert len(answers) == np.prod([len(values) for values in tried.values()])
        for choice, scores in answers:
            assert torch.allclose(head.tuned_to(choice).scores(ROWS, query), scores, atol=1e-4)
        assert head.tuned_to({}).history == head.history

    def test_one_shot_and_one_view_work_or_are_refused(self, method):
        task = few_shot.task(shots=1, views=1)
        if method is Gda:
            with pytest.raises(
                RunError, match=r"gda needs rows that differ within a class, found 7 rows.*--shots 2"
            ):
                fitted(method, on=task)
        else:
            assert fitted(method, on=task).scores(ROWS, task.query()).isfinite().all()

    def test_it_does_without_validation_rows(self, method):
        task = few_shot.task(validation=False)
        assert fitted(method, on=task).scores(ROWS, task.query()).isfinite().all()

    def test_a_class_without_rows_works_or_is_named(self, method):
        labels = torch.arange(few_shot.CLASSES - 1).repeat(5)
        task = few_shot.task(labels=labels)
        if method in (Gda, LpPlusPlus, Clap):
            with pytest.raises(RunError, match="needs a row of every class, found none of 'class 6'"):
                fitted(method, on=task)
        else:
            assert fitted(method, on=task).scores(ROWS, task.query()).isfinite().all()

    def test_texts_of_another_width_are_refused(self, method):
        task = few_shot.task(text_width=19)
        with pytest.raises(Mismatch, match=r"widths differ \(image 23, text 19\).*--method spaner"):
            fitted(method, on=task)

    def test_other_classes_are_refused_by_name_where_it_knows_its_own(self, method):
        task, head = few_shot.task(), fitted(method)
        query = dataclasses.replace(task.query(), class_names=("zebra", *task.class_names[1:]))
        if method in KNOW_CLASSES:
            with pytest.raises(Mismatch, match=f"{method_name(method)} .*'zebra'"):
                head.scores(ROWS, query)
            if isinstance(head, Tunable):
                with pytest.raises(Mismatch, match="zebra"):
                    next(iter(head.tune(ROWS, query, {})))
        else:
            assert isinstance(head, Space)
            assert fitted(method).scores(ROWS, query).shape == (few_shot.CLASSES, few_shot.CLASSES)


def method_name(method):
    return next(name for name, target in METHODS.items() if target.endswith(f":{method.__name__}"))


@pytest.mark.parametrize("method", TRAINED)
def test_training_is_told_and_gets_somewhere(method):
    told, whole = [], {"batch_size": 35, "epochs": 30} if "epochs" in QUICK[method] else {}
    head = method.fit(
        few_shot.task(views=1),
        few_shot.settings(method, **QUICK[method] | whole),
        Tools(progress=lambda done, total, what: told.append((done, total))),
    )
    losses = [record["loss"] for record in head.history]
    assert losses[-1] < losses[0]
    assert told[-1] == (len(told), len(told))


@pytest.mark.parametrize("method", [ClipAdapter, TaskRes, TipAdapterF, CrossModal, Clap, Rla])
def test_a_loss_that_is_not_finite_is_refused(method):
    task = few_shot.task()
    broken = dataclasses.replace(task, x=task.x.clone().fill_(torch.nan))
    with pytest.raises(RunError, match="the loss is nan"):
        fitted(method, on=broken)


def test_lp_plus_plus_refuses_a_loss_that_is_not_finite():
    with pytest.raises(RunError, match=r"lp_plus_plus: the loss is .* in iteration \d+"):
        fitted(LpPlusPlus, text_start=1e39)


@pytest.mark.parametrize("method", [ClipAdapter, TipAdapterF, TaskRes, CrossModal, ZsLp])
def test_another_seed_draws_another_order(method):
    query = few_shot.task().query()
    assert not torch.equal(fitted(method).scores(ROWS, query), fitted(method, seed=2).scores(ROWS, query))


@pytest.mark.parametrize("constraint", ["l2", "corrected", "constant", "balanced", "adaptative"])
def test_clap_stays_nearer_to_its_texts_than_zs_lp(constraint):
    base = few_shot.task().texts["mined"].raw.mean(1)
    free, held = fitted(ZsLp, epochs=20), fitted(Clap, epochs=20, constraint=constraint)
    assert (held.weight - base).norm() < (free.weight - base).norm()


def test_random_features_come_near_the_exact_kernel():
    task = few_shot.task(shots=20)
    exact = fitted(ProKeR, on=task).scores(ROWS, task.query())
    made = fitted(ProKeR, on=task, exact_rows=5, features=4_096)
    near = made.scores(ROWS, task.query())
    assert 0 < (near - exact).abs().max() < 0.05
    assert torch.equal(ProKeR.restore(made.state(), None, task.facts()).scores(ROWS, task.query()), near)


def test_the_solution_by_features_is_the_kernels_own():
    """The same ridge from both sides: features in float64, and the kernel that is their product."""
    generator = torch.Generator().manual_seed(3)
    rows = F.normalize(torch.randn(31, 13, generator=generator, dtype=torch.float64), dim=1)
    labels, text = torch.arange(31) % 5, F.normalize(torch.randn(5, 13, generator=generator).double(), dim=1)
    problem = proker.KernelProblem(rows, labels, text, proker.frequencies(13, 64, 0).double())
    weights = next(problem.solve(1.7, (0.1,)))
    phi = proker.fourier(rows, proker.frequencies(13, 64, 0).double(), 1.7)
    dual = proker.ridge(phi @ phi.T, 0.1, proker.residual(rows, labels, text))
    assert torch.allclose(phi @ weights, phi @ phi.T @ dual, atol=1e-10)


def test_many_rows_are_ranked_by_features_and_then_solved_exactly(monkeypatch):
    monkeypatch.setattr(proker, "QUICK_ROWS", 20)
    head, query = fitted(ProKeR), few_shot.task().query()
    choice, scores = next(iter(head.tune(ROWS, query, {"beta": (2.0,), "lam": (0.1,)})))
    exact = head.tuned_to(choice).scores(ROWS, query)
    assert 0 < (scores - exact).abs().max() < 0.1


def test_a_kernel_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(proker.os, "sysconf", {"SC_AVPHYS_PAGES": 1, "SC_PAGE_SIZE": 4096}.__getitem__)
    with pytest.raises(RunError, match=r"proker's kernel of 35 rows needs .* use exact_rows=34"):
        fitted(ProKeR)


def test_the_authors_pair_follows_the_shots():
    assert (fitted(ProKeR, on=few_shot.task(shots=16)).beta, fitted(ProKeR).beta) == (1.7, 1.5)
    assert fitted(ProKeR, beta=2.0).beta == 2.0


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 1, 2], [2, 2, 2, 2, 2, 0]])
def test_sums_over_columns_are_products_with_one_hot(labels):
    values = torch.arange(30.0, dtype=torch.float64).view(5, 6) ** 2
    labels = torch.tensor(labels)
    expected = values @ support.one_hot(labels, 3, torch.float64)
    assert torch.equal(support.column_sums(values, labels, 3), expected)


def test_tip_adapter_averages_raw_views():
    task = few_shot.task()
    lengths = torch.tensor([1.0, 1.0, 100.0]).expand(len(task.labels), 3)
    head = fitted(TipAdapter, on=dataclasses.replace(task, norms=lengths))
    last = task.x[:, 2][task.labels.argsort(stable=True)]
    assert (head.keys * last).sum(1).min() > 0.999


def test_tip_adapter_f_keeps_the_epoch_that_validation_prefers():
    head = fitted(TipAdapterF, keep_epoch="val", epochs=6, lr=0.1)
    judged = [record["val"] for record in head.history]
    held = few_shot.task().validation
    assert held is not None
    found = descent.accuracy(head.scores(held.x[:, 0], few_shot.task().query()), held.labels)
    assert found == max(judged)


def test_lp_plus_plus_keeps_the_last_of_the_best_iterations():
    last, kept = fitted(LpPlusPlus, keep="last"), fitted(LpPlusPlus)
    judged = [record["val"] for record in kept.history]
    best = max(i for i, value in enumerate(judged, 1) if value == max(judged))
    again = fitted(LpPlusPlus, keep="last", iterations=best)
    assert torch.equal(again.head.weight, kept.head.weight)
    assert "val" not in last.history[0]


def test_the_released_gradient_of_lp_plus_plus_is_an_option():
    heads = [fitted(LpPlusPlus, clear=clear, keep="last").head.text for clear in ("never", "each", "update")]
    assert not torch.allclose(heads[0], heads[1])
    assert not torch.allclose(heads[1], heads[2])


def test_wise_ft_of_one_is_the_start():
    head, task = fitted(CrossModal), few_shot.task()
    zero_shot = F.normalize(task.texts["mined"].raw.mean(1), dim=1)
    assert torch.allclose(head.tuned_to({"wise_ft": 1.0}).scores(ROWS, task.query()), 20 * ROWS @ zero_shot.T)


def test_the_adapter_head_of_the_cross_modal_probe_comes_back():
    head, task = fitted(CrossModal, head="adapter"), few_shot.task()
    told = few_shot.settings(CrossModal, head="adapter")
    again = CrossModal.restore(head.state(), told, task.facts())
    assert torch.equal(again.scores(ROWS, task.query()), head.scores(ROWS, task.query()))
    assert {"down", "up"} < set(head.state())


def test_lengths_of_raw_texts_weigh_the_templates_of_task_res():
    task = few_shot.task()
    mined = task.texts["mined"]
    heavy = Texts(mined.x, torch.tensor([100.0, 1, 1, 1]).expand(few_shot.CLASSES, 4))
    moved = dataclasses.replace(task, texts={**task.texts, "mined": heavy})
    assert not torch.allclose(fitted(TaskRes).residual, fitted(TaskRes, on=moved).residual)


def test_rla_with_a_heavy_penalty_is_zero_shot():
    task = few_shot.task()
    head = fitted(Rla, lam=1e6)
    zero_shot = ZeroShot.fit(task, None, Tools()).scores(ROWS, task.query())
    assert torch.allclose(head.scores(ROWS, task.query()), zero_shot, atol=0.05)


def test_the_documents_have_a_row_for_every_head_and_its_settings():
    docs = Path(__file__).parents[2] / "docs"
    page, settings = ((docs / name).read_text() for name in ("methods.md", "settings.md"))
    for method in QUICK:
        name = method_name(method)
        assert f"\n| `{name}` |" in page
        if fields := dataclasses.fields(method.Settings):
            own = settings.partition(f"## `--method {name}`\n")[2].partition("\n## ")[0]
            for field in fields:
                assert f"| `--{field.name.replace('_', '-')}` |" in own, (name, field.name)


class TestSchedules:
    def test_dassl_ends_above_zero_and_warms_one_epoch(self):
        rates = descent.dassl_cosine(0.1, 4, 2)
        assert rates[:4] == [1e-5, 1e-5, 0.1, 0.1]
        assert rates[-1] == pytest.approx(0.1 * (1 + np.cos(np.pi * 2 / 4)) / 2)

    def test_lins_warm_up_starts_at_its_own_rate(self):
        rates = descent.warmed_cosine(1.0, 60, warmup=50, warmup_lr=1e-5, total=60)
        assert rates[0] == 1e-5
        assert rates[25] == 0.5
        assert rates[50] == 1.0

    def test_an_epoch_shows_every_row_once_in_some_view(self):
        for drop_last, sizes in ((True, [4, 4]), (False, [4, 4, 3])):
            epoch = list(descent.shuffled(11, 3, 4, 1, 5, drop_last=drop_last))
            assert [len(batch) for batch in epoch] == sizes
            rows = torch.cat(epoch) % 11
            assert len(rows.unique()) == len(rows)
        assert (torch.cat(epoch) // 11).unique().tolist() == [0, 1, 2]

    def test_fewer_rows_than_a_batch_make_one(self):
        assert [len(b) for b in descent.shuffled(3, 1, 8, 2, 0, drop_last=True)] == [3, 3]
        assert [len(b) for b in descent.endless(3, 8, 2, 0)] == [3, 3]

    def test_an_endless_order_shows_all_before_it_starts_again(self):
        batches = list(descent.endless(9, 4, 4, 0))
        assert [len(b) for b in batches] == [4, 4, 4, 4]
        assert len(torch.cat(batches[:2]).unique()) == 8
        assert len(torch.cat(batches[2:]).unique()) == 8
