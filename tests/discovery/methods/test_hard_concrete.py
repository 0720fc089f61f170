"""The gates' distribution, held against the paper's density and by counting draws."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad

from vitfx.discovery.methods.hard_concrete import probability_open, sample

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""Of the paper's section 4."""
LOG_ALPHAS = (-3.0, -0.4, 0.0, 1.7)


def binary_concrete(s: float, log_alpha: float) -> float:
    """The density of s before stretching (the paper's equation 9)."""
    alpha = math.exp(log_alpha)
    below = alpha * s**-BETA + (1 - s) ** -BETA
    return BETA * alpha * s ** (-BETA - 1) * (1 - s) ** (-BETA - 1) / below**2


@pytest.mark.parametrize("log_alpha", LOG_ALPHAS)
def test_a_gate_is_closed_as_often_as_the_density_says(log_alpha: float) -> None:
    closed, error = quad(binary_concrete, 0, -GAMMA / (ZETA - GAMMA), args=(log_alpha,))
    assert error < 1e-7
    opened = float(probability_open(torch.tensor(log_alpha, dtype=torch.float64)))
    assert opened == pytest.approx(1 - closed, abs=1e-6)


@pytest.mark.parametrize("log_alpha", LOG_ALPHAS)
def test_draws_are_distributed_so(log_alpha: float) -> None:
    """A draw u gives the u-quantile: the mass of the density up to the gate is u."""
    draws = torch.tensor([0.45, 0.55, 0.6], dtype=torch.float64)
    gates = sample(torch.full_like(draws, log_alpha), draws)
    for draw, gate in zip(draws.tolist(), gates.tolist(), strict=True):
        if 0 < gate < 1:
            mass, _ = quad(binary_concrete, 0, (gate - GAMMA) / (ZETA - GAMMA), args=(log_alpha,))
            assert mass == pytest.approx(draw, abs=1e-6)
    many = torch.rand(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gates, opened = sample(torch.full_like(many, log_alpha), many), float(probability_open(torch.tensor(log_alpha)))
    spread = math.sqrt(opened * (1 - opened) / len(many))
    assert float((gates > 0).double().mean()) == pytest.approx(opened, abs=4 * spread)
    assert gates.min() == 0 and gates.max() == 1


def test_the_middle_is_between() -> None:
    """At log α = 0 half of a draw is half of a gate."""
    assert float(sample(torch.zeros(1), torch.tensor([0.5]))) == pytest.approx(0.5)


def test_gradients_open_gates_and_extreme_draws_are_finite() -> None:
    log_alpha = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    gates = sample(log_alpha, torch.tensor([0.0, 0.4, 0.6, 1.0], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(gates.sum(), log_alpha)
    assert gates.tolist()[::3] == [0.0, 1.0]
    assert gradient.tolist()[::3] == [0.0, 0.0]
    assert (gradient[1:3] > 0.1).all() and gradient.isfinite().all()
