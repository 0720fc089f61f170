"""AdamW, and its learning rate: a linear warm-up, then half a cosine."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

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
