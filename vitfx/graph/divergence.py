"""How far one answer of a model is from another."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def kl_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """D_KL(softmax(logits) ‖ softmax(other)) for each image, float64 (N,), in nats. Below zero by rounding alone."""
    ours, theirs = (F.log_softmax(one.double(), dim=-1) for one in (logits, other))
    return torch.sum(ours.exp() * (ours - theirs), dim=-1)
