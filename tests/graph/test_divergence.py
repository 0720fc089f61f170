"""Divergences against torch's own losses, their slopes against differences, and their directions against Hessians."""

import pytest
import torch

from tests.support.families import images
from tests.support.kinds import KIND, MODELS, make, written_out
from vitfx.graph.divergence import make_divergence

PIXELS = images(6, torch.float64)


@pytest.fixture(params=MODELS)
def case(request):
    """The name, answers, another model's answers to the same images, and the divergence."""
    with torch.no_grad():
        answers, other = (make(request.param, seed).double()(PIXELS) for seed in (0, 1))
    return request.param, answers, other, make_divergence(KIND[request.param], answers)


def test_it_is_the_formula_of_its_kind(case):
    name, answers, other, measure = case
    expected = written_out(name, answers, other)
    assert torch.allclose(measure(answers, other), expected, rtol=1e-6, atol=1e-12)
    assert bool((expected > 1e-9).all())
    assert float(measure(answers, answers).abs().max()) < 1e-14


def test_the_slope_is_the_derivative(case):
    _, answers, other, measure = case
    step = 1e-5 * torch.randn(other.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if (other.sum(-1) - 1).abs().max() < 1e-9:
        step = step - step.mean(-1, keepdim=True)  # Probabilities stay on the simplex.
        step = 0.01 * step
    by_difference = float((measure(answers, other + step) - measure(answers, other - step)).sum()) / 2
    by_slope = float((measure.slope(answers, other) * step).sum())
    assert by_slope == pytest.approx(by_difference, rel=1e-4)


def test_directions_give_the_hessian_at_the_answers_themselves(case):
    """E[(v · δ)²] is the second derivative of D(z, z + tδ) at t = 0."""
    _, answers, _, measure = case
    generator = torch.Generator().manual_seed(1)
    signs = torch.randint(0, 2, (4000, *answers.shape), generator=generator) * 2 - 1
    step = 1e-3 * answers * torch.randn(answers.shape, dtype=torch.float64, generator=generator)
    if (answers.sum(-1) - 1).abs().max() < 1e-9:
        step = step - step.mean(-1, keepdim=True) * answers / answers.mean(-1, keepdim=True)
    along = (measure.directions(answers, signs) * step).reshape(4000, len(answers), -1).sum(-1).square().mean(0)
    twice = measure(answers, answers + step) + measure(answers, answers - step)
    assert torch.allclose(along, twice, rtol=0.12)


def test_the_least_certain_come_first():
    measure = make_divergence("labels", torch.tensor([[-3.0], [0.1], [2.0]]))
    assert measure.certainty(torch.tensor([[-3.0], [0.1], [2.0]])).argsort().tolist() == [1, 2, 0]


def test_a_constant_answer_is_as_far_as_predicting_the_mean():
    answers = 40 + torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    measure = make_divergence("values", answers)
    assert float(measure(answers, answers.mean(0).expand_as(answers)).mean()) == pytest.approx(1)
