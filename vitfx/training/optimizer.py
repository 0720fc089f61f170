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
    """AdamW (Loshchilov & Hutter 2019); biases, norms and other parameters with one axis do not decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [one for one in trained if one.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [one for one in trained if one.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], lr=config.lr, fused=True)


def make_schedule(optimizer: Optimizer, config: TrainingConfig, epoch_steps: int) -> LRScheduler:
    """To be stepped once a batch: up to `lr` within the warm-up's epochs, then down, to `final_lr` after the last."""
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
