"""How far one model's answers are from another's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def kl_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """D_KL(softmax(logits) ‖ softmax(other)) for each image, float64 (N,), in nats. Only rounding makes it negative."""
    log_p, log_q = F.log_softmax(logits.double(), dim=-1), F.log_softmax(other.double(), dim=-1)
    return torch.sum(log_p.exp() * (log_p - log_q), dim=-1)
