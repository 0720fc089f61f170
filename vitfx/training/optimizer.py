"""AdamW, its learning rate (a linear warm-up, then half a cosine), and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torch.optim.swa_utils import AveragedModel

from vitfx.training.config import TrainingConfig


def make_optimizer(model: nn.Module, config: TrainingConfig) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019); without decay for biases, norms and other parameters of one axis."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], lr=config.lr, fused=True)


def make_schedule(optimizer: Optimizer, config: TrainingConfig, epoch_steps: int) -> LRScheduler:
    """Stepped once a batch: up to `lr` during the warm-up, then down to `final_lr` at the end."""
    steps = config.epochs * epoch_steps
    warm_up = min(round(config.warm_up * epoch_steps), steps - 1)
    cosine = CosineAnnealingLR(optimizer, T_max=steps - warm_up, eta_min=config.final_lr)
    if not warm_up:
        return cosine
    linear = LinearLR(optimizer, start_factor=1 / (warm_up + 1), total_iters=warm_up)
    return SequentialLR(optimizer, [linear, cosine], milestones=[warm_up])


def learning_rate(optimizer: Optimizer) -> float:
    rate = optimizer.param_groups[0]["lr"]
    return float(rate.item() if isinstance(rate, torch.Tensor) else rate)


def make_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """torch's AveragedModel, updated by `update_parameters` after each step; None where `decay` is 0.

    After n updates the decay is at most (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage: otherwise the
    initial weights would weigh on the average of the first epochs.
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
