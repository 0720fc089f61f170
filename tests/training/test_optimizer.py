"""vitfx.training.optimizer: rates by step, against the formulas, and what decays."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch

from vitfx.models.vit import ViT
from vitfx.training.config import TrainingConfig, read_config
from vitfx.training.optimizer import learning_rate, make_optimizer, make_schedule

CONFIG = replace(read_config("tiny-imagenet").training, epochs=10, warm_up=2.0, lr=1.0, final_lr=0.1)


def rates(config: TrainingConfig, epoch_steps: int) -> list[float]:
    """The learning rate of every step, and the one after the last."""
    optimizer = make_optimizer(torch.nn.Linear(2, 2), config)
    schedule = make_schedule(optimizer, config, epoch_steps)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(config.epochs * epoch_steps):
            found.append(learning_rate(optimizer))
            optimizer.step()
            schedule.step()
    return [*found, learning_rate(optimizer)]


def test_a_line_up_and_half_a_cosine_down() -> None:
    found = rates(CONFIG, 5)
    assert found[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * step / 40)) / 2 for step in range(41)]
    assert found[10:] == pytest.approx(cosine)


def test_without_a_warm_up_it_begins_at_the_top() -> None:
    found = rates(replace(CONFIG, warm_up=0.0), 3)
    assert found[0] == 1.0
    assert found[-1] == pytest.approx(0.1)
    assert found == sorted(found, reverse=True)


def test_one_step_can_be_trained() -> None:
    assert rates(replace(CONFIG, epochs=1, warm_up=0.9), 1)[0] == 1.0


def test_biases_and_norms_do_not_decay() -> None:
    model = ViT(image_size=8, patch_size=4, channels=1, classes=3, width=8, depth=1, heads=2, mlp=8)
    model.head.weight.requires_grad_(False)
    decaying, others = make_optimizer(model, CONFIG).param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(one)].rpartition(".")[2] for one in decaying["params"]} == {"weight", "class_token", "positions"}
    assert "norm.weight" in {names[id(one)] for one in others["params"]}
    trained = {names[id(one)] for group in (decaying, others) for one in group["params"]}
    assert set(names.values()) - trained == {"head.weight"}
