"""The moving average of a model's weights, which is what is evaluated and saved."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def make_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """torch's AveragedModel, updated by `update_parameters` after each step; None where `decay` is 0.

    After n updates the decay is at most (1 + n) / (10 + n), as TensorFlow's ExponentialMovingAverage has it: the first
    epochs would else be averaged with the weights that the model began with.
    """
    if not decay:
        return None

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
        count = int(updates)
        weight = 1 - min(decay, (1 + count) / (10 + count))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, weight)
            else:
                mean.copy_(value)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
