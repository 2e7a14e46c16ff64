"""Objectives for many modalities: published code's numbers, loops, missing rows, and where slopes could end.

Goldens lie beside the checkout (`../shared`), four of them in `tests/align/golden` too.
"""

import itertools
import math
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spaner.align.methods import gram, modgap, pmrl, symile
from spaner.align.methods.losses import contrastive, masked_cross_entropy, pairs

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests" / "align" / "golden"
BESIDE = ROOT.parent / "shared" / "fixtures" / "methods"
CASES = sorted(
    file
    for file in {path.name: path for folder in (BESIDE, HERE) for path in folder.glob("*.npz")}.values()
    if file.name.startswith(("gram_", "symile_", "pmrl_"))
)

OBJECTIVES = {
    "pairs": lambda z, present=None: pairs(z, 9.0, present),
    "gram": gram.loss,
    "symile": lambda z, present=None: symile.loss(z, present, scale=40.0),
    "symile_all": lambda z, present=None: symile.loss(z, present, scale=40.0, negatives="all"),
    "pmrl": pmrl.loss,
    "modgap": modgap.loss,
}


def vectors(modalities: int = 3, batch: int = 6, width: int = 5, seed: int = 0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(modalities, batch, width, generator=rng, dtype=torch.float64)
    return list((z / z.norm(dim=2, keepdim=True)).requires_grad_().unbind())


def test_goldens_are_there():
    assert {file.name.split("_")[0] for file in CASES} == {"gram", "symile", "pmrl"}


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_equals_the_published_code(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    for result in import_module("golden_cases").run(file):
        assert result.passed, result


def test_pairs_of_two_modalities_are_todays_loss_bit_for_bit():
    a, b = (x.detach().float().requires_grad_() for x in vectors(2, 31, 8))
    choices: list[dict[str, Any]] = [{}, {"direction": "second"}, {"labels": torch.arange(31) % 7}]
    for options in choices:
        ours, todays = pairs([a, b], 100.0, **options), contrastive(a, b, 100.0, **options)
        assert torch.equal(ours, todays)
        for x, y in zip(torch.autograd.grad(ours, [a, b]), torch.autograd.grad(todays, [a, b]), strict=True):
            assert torch.equal(x, y)


def test_pairs_are_the_mean_over_pairs():
    z = vectors(4)
    terms = [contrastive(a, b, 9.0) for a, b in itertools.combinations(z, 2)]
    assert pairs(z, 9.0).item() == pytest.approx(sum(t.item() for t in terms) / 6)


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, 0, 2, 1, 0])])
def test_masked_pairs_are_those_of_the_rows_that_exist(labels):
    z = vectors(3)
    present = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 0, 1, 0, 1], [1, 0, 0, 0, 0, 0]], dtype=torch.bool)
    both = (
        present[0] & present[1]
    )  # the third modality shares one sample with the others: no pair of it counts
    kept = None if labels is None else labels[both]
    expected = contrastive(z[0][both], z[1][both], 9.0, labels=kept)
    assert pairs(z, 9.0, present, labels=labels).item() == pytest.approx(expected.item())


def test_masked_cross_entropy_with_smoothing_equals_the_unmasked_rest():
    logits = torch.randn(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = torch.tensor([1, 0, 1, 1, 0, 1, 1], dtype=torch.bool)
    part = logits[rows][:, rows]
    expected = torch.nn.functional.cross_entropy(part, torch.arange(5), label_smoothing=0.1)
    assert masked_cross_entropy(logits, rows, label_smoothing=0.1).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_full_mask_changes_nothing(name: str):
    z = vectors()
    present = torch.ones(3, 6, dtype=torch.bool)
    assert OBJECTIVES[name](z, present).item() == pytest.approx(OBJECTIVES[name](z).item())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_rows_that_miss_everywhere_are_not_there(name: str):
    """Without the last two samples; the shuffled tuples of Symile would be others, so it takes all."""
    z = vectors()
    present = (torch.arange(6) < 4).expand(3, 6)
    objective = OBJECTIVES["symile_all" if name == "symile" else name]
    assert objective(z, present).item() == pytest.approx(objective([x[:4] for x in z]).item())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_a_missing_row_holds_never_counts(name: str):
    z, present = vectors(), torch.ones(3, 6, dtype=torch.bool)
    present[1, 2] = present[2, 4] = False
    loss = OBJECTIVES[name](z, present)
    slopes = torch.autograd.grad(loss, z)
    assert slopes[1][2].abs().max() == slopes[2][4].abs().max() == 0
    assert all(slope.isfinite().all() for slope in slopes)
    other = [x.detach().clone() for x in z]
    other[1][2] = other[2][4] = torch.tensor([0.0, 0, 0, 0, 1])
    assert OBJECTIVES[name](other, present).item() == pytest.approx(loss.item(), abs=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_equal_vectors_and_no_vectors_leave_finite_slopes(name: str):
    x = vectors()[0]
    for z, present in (
        ([x, x, x], None),
        ([x, -x, x], None),
        ([x, x, x], torch.zeros(3, 6, dtype=torch.bool)),
        ([x, x, x], torch.tensor([[1] * 6, [1, 0] * 3, [0] * 6], dtype=torch.bool)),
    ):
        loss = OBJECTIVES[name](z, present)
        assert loss.isfinite()
        assert torch.autograd.grad(loss, x)[0].isfinite().all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_slopes_with_missing_rows_are_those_of_finite_differences(name: str):
    present = torch.tensor([[1] * 5, [1, 1, 0, 1, 1], [1, 0, 1, 1, 1]], dtype=torch.bool)
    lean = torch.ones(
        5, dtype=torch.float64
    )  # on one side: where vectors cancel, PMRL's direction turns over
    stacked = (torch.stack(vectors(3, 5)).detach() + lean).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: OBJECTIVES[name](list(x), present), stacked)


def test_volume_is_that_of_the_vectors_that_are_there():
    z = vectors(4)
    present = torch.ones(4, 6, dtype=torch.bool)
    present[2, 1] = present[3, 5] = False
    found = gram.volumes(z[0], z[1:], present)
    for i, j in itertools.product(range(6), range(6)):
        there = torch.stack([z[0][i], *[z[m][j] for m in (1, 2, 3) if present[m, j]]])
        assert found[i, j].item() == pytest.approx(torch.linalg.det(there @ there.T).sqrt().item())


def test_gram_is_blind_where_two_vectors_coincide():
    z = vectors()
    assert gram.volumes(z[0], [z[0], z[2]]).diagonal().max().item() == pytest.approx(math.sqrt(gram.FLAT))


def test_symile_equals_the_loop():
    z, scale = vectors(), 7.0
    total = 0.0
    for anchor in range(3):
        first, second = (m for m in range(3) if m != anchor)
        for i in range(6):
            places = [(i, i) if i == j else ((j + 1) % 6, (j + 2) % 6) for j in range(6)]
            mip = [scale * (z[anchor][i] * z[first][p] * z[second][q]).sum().item() for p, q in places]
            total += math.log(sum(map(math.exp, mip))) - mip[i]
    assert symile.loss(z, scale=scale).item() == pytest.approx(total / 18)


def test_symile_sees_what_pairs_cannot():
    """Signs of three modalities, of which any two are independent and the product of all is 1."""
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 2, (64, 16), generator=rng) * 2.0 - 1 for _ in range(2))
    z = [x / 4 for x in (a, b, a * b)]
    scale = symile.scale_for(10.0, 16, 3)
    assert symile.loss(z, scale=scale).item() < 0.1
    assert pairs(z, 10.0).item() > math.log(64) - 0.1


def test_a_slope_through_the_direction_equals_that_of_the_decomposition():
    z = vectors(4)
    weight = torch.arange(30, dtype=torch.float64).view(6, 5).sin()
    left, _, _ = torch.linalg.svd(torch.stack(z, 2), full_matrices=False)
    u = left[..., 0] * (left[..., 0] * sum(z)).sum(1, keepdim=True).sign()
    expected = torch.autograd.grad((u * weight).sum(), z)
    found = torch.autograd.grad((pmrl.directions(z)[1] * weight).sum(), z)
    for x, y in zip(found, expected, strict=True):
        assert x.numpy() == pytest.approx(y.numpy(), abs=1e-9)


def test_modgap_equals_the_loop():
    z = [x.detach() for x in vectors(3)]
    close = [
        sum((z[i][n] - z[j][n]).square().sum() for n in range(6)) / 6
        for i, j in itertools.combinations(range(3), 2)
    ]
    sums = torch.stack(z).sum(0)
    c = [row / row.norm() for row in sums]
    far = [math.exp(-2 * (c[i] - c[j]).square().sum()) for i, j in itertools.permutations(range(6), 2)]
    expected = pairs(z, 10.0) + 0.3 * sum(close) / 3 + 0.7 * math.log(sum(far) / 30)
    assert modgap.loss(z, together=0.3, apart=0.7).item() == pytest.approx(expected.item())
