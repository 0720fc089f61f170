"""vitfx.training.gradient_flow: means and maxima by layer, over the steps of an epoch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vitfx.models.vit import ViT
from vitfx.training.gradient_flow import GradientFlow


def linear(*gradients: float) -> nn.Linear:
    layer = nn.Linear(1, 1)
    for parameter, value in zip(layer.parameters(), gradients, strict=True):
        parameter.grad = torch.full_like(parameter, value)
    return layer


def test_means_over_steps_and_parameters_maxima_over_all() -> None:
    model = nn.Sequential(linear(1.0, -3.0), nn.GELU(), linear(0.0, 0.5))
    flow = GradientFlow(model)
    assert flow.layers == ["0", "2"]
    flow.measure()
    model[0].weight.grad.fill_(-5)
    flow.measure()
    assert flow.take() == {"mean": [3.0, 0.25], "max": [5.0, 0.5]}
    assert flow.take() == {}


def test_gradients_that_a_scaler_skips_are_left_out() -> None:
    model = nn.Sequential(linear(1.0, 1.0))
    flow = GradientFlow(model)
    flow.measure()
    model[0].bias.grad.fill_(math.inf)
    flow.measure()
    assert flow.take() == {"mean": [1.0], "max": [1.0]}


def test_layers_of_a_model_with_frozen_and_unused_parameters() -> None:
    model = ViT(image_size=8, patch_size=4, channels=1, classes=3, width=8, depth=1, heads=2, mlp=8)
    model.head.requires_grad_(False)
    flow = GradientFlow(model)
    assert flow.layers[:3] == ["class_token", "positions", "embed.1"]
    assert flow.layers[-1] == "norm"
    assert "blocks.0.attention.qkv" in flow.layers
    flow.measure()
    assert set(flow.take()["mean"]) == {0.0}


def test_half_an_epoch_goes_on_from_its_state() -> None:
    model = nn.Sequential(linear(1.0, 1.0))
    flow, again = GradientFlow(model), GradientFlow(model)
    flow.measure()
    again.load_state_dict(flow.state_dict())
    model[0].bias.grad.fill_(3)
    again.measure()
    assert again.take() == {"mean": [pytest.approx(1.5)], "max": [3.0]}
