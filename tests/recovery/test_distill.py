"""vitfx.recovery.distill: losses against numbers worked out by hand and by other formulas."""

from __future__ import annotations

import math

import pytest
import torch

from vitfx.recovery.distill import Objective, distillation, unexplained


def test_divergence_by_hand() -> None:
    # softmax of (0, ln 3) is (1/4, 3/4), of (0, 0) is (1/2, 1/2).
    teacher, ours = torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2)
    by_hand = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert distillation(ours, teacher, 1.0).item() == pytest.approx(by_hand, rel=1e-6)
    both = torch.cat([teacher, teacher]), torch.cat([ours, teacher])
    assert distillation(both[1], both[0], 1.0).item() == pytest.approx(by_hand / 2, rel=1e-6)


def test_temperature_divides_logits_and_its_square_multiplies() -> None:
    ours, teacher = torch.randn(5, 7), torch.randn(5, 7)
    expected = 9 * distillation(ours / 3, teacher / 3, 1.0)
    assert distillation(ours, teacher, 3.0).item() == pytest.approx(expected.item(), rel=1e-6)


def test_gradient_is_that_of_the_paper() -> None:
    """T · (q − p) by image, where q and p are the softened answers (Hinton et al., equation 2, times T²)."""
    ours, teacher = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6)
    distillation(ours, teacher, 2.5).backward()
    expected = 2.5 * ((ours.detach() / 2.5).softmax(1) - (teacher / 2.5).softmax(1)) / 4
    torch.testing.assert_close(ours.grad, expected)


def test_unexplained_streams() -> None:
    theirs = torch.randn(3, 4, 5)
    mean = theirs.mean((0, 1)).expand(3, 4, 5)
    assert unexplained([theirs], [theirs]).item() == 0
    assert unexplained([mean], [theirs]).item() == pytest.approx(1, rel=1e-5)
    half = mean + 0.5 * (theirs - mean)
    assert unexplained([half, mean], [theirs, theirs]).item() == pytest.approx((0.25 + 1) / 2, rel=1e-5)


def test_constant_stream_of_the_teacher_is_no_division_by_zero() -> None:
    assert unexplained([torch.ones(2, 2, 2)], [torch.ones(2, 2, 2)]).item() == 0


@pytest.mark.parametrize(
    ("kind", "labels", "teacher"), [("kd", False, True), ("ce", True, False), ("both", True, True)]
)
def test_objectives(kind: str, labels: bool, teacher: bool) -> None:
    objective = Objective(kind, 2.0, 0.25, 0.0)
    assert (objective.needs_labels, objective.needs_teacher) == (labels, teacher)
    ours, theirs, classes = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([0, 3, 1])
    ce = -ours.log_softmax(1)[range(3), classes].mean()
    kd = distillation(ours, theirs, 2.0)
    expected = {"kd": kd, "ce": ce, "both": 0.75 * kd + 0.25 * ce}[kind]
    assert objective(ours, classes, theirs).item() == pytest.approx(expected.item(), rel=1e-6)


def test_hidden_states_need_the_teacher() -> None:
    assert Objective("ce", 1.0, 0.5, 0.1).needs_teacher
