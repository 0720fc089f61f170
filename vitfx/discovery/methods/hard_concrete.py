"""The hard concrete distribution: gates from 0 to 1 that are exactly 0 or 1 with some probability, and have gradients.

A logistic variable of location log α and temperature β, squashed to (0, 1), stretched to (γ, ζ) and clamped to [0, 1]
(Louizos, Welling and Kingma 2018, "Learning Sparse Neural Networks through L0 Regularization", arXiv:1712.01312,
equations 10 to 12, with the constants of section 4).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 2 / 3  #: β
LEFT, RIGHT = -0.1, 1.1  #: γ and ζ
_EDGE = 1e-6
"""Draws keep so far from 0 and 1, where their logit would be infinite."""


def sample(log_alpha: Tensor, draws: Tensor) -> Tensor:
    """Gates of log_alpha's shape, from draws that are uniform in [0, 1) (equations 10 and 11)."""
    logistic = draws.clamp(_EDGE, 1 - _EDGE).logit()
    squashed = torch.sigmoid((logistic + log_alpha) / TEMPERATURE)
    return (squashed * (RIGHT - LEFT) + LEFT).clamp(0, 1)


def probability_open(log_alpha: Tensor) -> Tensor:
    """P(gate > 0) of each (equation 12)."""
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-LEFT / RIGHT))
