"""Contrastive losses against numbers worked by hand and loops a child could check."""

import math

import pytest
import torch

from spaner.align.methods.losses import collision_rate, contrastive


def loop_loss(a, b, scale, positives):
    """Mean over i of -log softmax_j(scale cos(a_i, b_j)), averaged over the positive j."""
    total = 0.0
    for i in range(len(a)):
        scores = [scale * float(torch.dot(a[i], b[j]) / (a[i].norm() * b[j].norm())) for j in range(len(b))]
        log_sum = math.log(sum(math.exp(s) for s in scores))
        own = [j for j in range(len(b)) if positives(i, j)]
        total += sum(log_sum - scores[j] for j in own) / len(own)
    return total / len(a)


@pytest.fixture
def vectors():
    generator = torch.Generator().manual_seed(5)
    draw = lambda: torch.randn(7, 3, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(), draw()


def test_worked_example():
    assert contrastive(torch.eye(2), torch.eye(2) * 3, 1.0).item() == pytest.approx(
        math.log(1 + math.exp(-1))
    )


def test_directions_against_a_loop(vectors):
    a, b = vectors
    forth, back = loop_loss(a, b, 4.0, int.__eq__), loop_loss(b, a, 4.0, int.__eq__)
    assert forth != pytest.approx(back)
    assert contrastive(a, b, 4.0, direction="first").item() == pytest.approx(forth)
    assert contrastive(a, b, 4.0, direction="second").item() == pytest.approx(back)
    assert contrastive(a, b, 4.0).item() == pytest.approx((forth + back) / 2)


def test_class_targets_against_a_loop(vectors):
    a, b = vectors
    labels = torch.tensor([2, 0, 2, 1, 0, 2, 3])
    same = lambda i, j: labels[i] == labels[j]  # noqa: E731
    expected = (loop_loss(a, b, 4.0, same) + loop_loss(b, a, 4.0, same)) / 2
    assert contrastive(a, b, 4.0, labels=labels).item() == pytest.approx(expected)


def test_class_targets_with_distinct_classes_are_the_diagonal(vectors):
    a, b = vectors
    assert contrastive(a, b, 9.0, labels=torch.arange(7)).item() == pytest.approx(
        contrastive(a, b, 9.0).item()
    )


def test_collision_rate():
    assert collision_rate(torch.tensor([4, 1, 4, 2, 4])).item() == pytest.approx(3 / 5)
    assert collision_rate(torch.arange(5)).item() == 0
