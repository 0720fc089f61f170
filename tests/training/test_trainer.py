"""vitfx.training.trainer: what a step does to gradients, weights and their average, in each precision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import vitfx.training.trainer
from vitfx.models.vit import ViT
from vitfx.support.processes import Alone
from vitfx.training.config import TrainConfig, read_config
from vitfx.training.trainer import Trainer, make_trainer

CPU = torch.device("cpu")
CONFIG = read_config("digits", ["training.flow_every=1", "training.warm_up=0", "model.drop_path=0"])
IMAGES = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 10


def trainer(config: TrainConfig = CONFIG, precision: str = "fp32", drop_path: float = 0.0) -> Trainer:
    torch.manual_seed(0)
    model = ViT(8, 4, 1, 10, width=16, depth=2, heads=2, mlp=16, drop_path=drop_path)
    return make_trainer(model, config, config.preprocess, 10, 5, precision=precision, share=Alone(), device=CPU)


def changed(**values: Any) -> TrainConfig:
    return replace(CONFIG, training=replace(CONFIG.training, **values))


def norm_at_step(one: Trainer) -> float:
    """The gradient's norm as the optimizer is given it."""
    found: list[float] = []
    parameters = list(one.model.parameters())
    one.optimizer.register_step_pre_hook(
        lambda *_: found.append(float(torch.stack([p.grad.norm() for p in parameters]).norm()))
    )
    one.step(0, IMAGES, LABELS)
    return found[0]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_gradients_are_those_of_full_precision(precision: str) -> None:
    """A scaled loss is no larger gradient: neither in what is logged nor in what is clipped."""
    full, mixed = trainer(), trainer(precision=precision)
    assert float(mixed.step(0, IMAGES, LABELS)) == pytest.approx(float(full.step(0, IMAGES, LABELS)), rel=0.02)
    assert mixed.flow.take()["mean"] == pytest.approx(full.flow.take()["mean"], rel=0.1)
    unclipped = changed(clip=0.0)
    assert norm_at_step(trainer(unclipped, precision)) == pytest.approx(norm_at_step(trainer(unclipped)), rel=0.05)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradients_are_clipped(precision: str) -> None:
    assert norm_at_step(trainer(changed(clip=0.0), precision)) > 0.5
    assert norm_at_step(trainer(changed(clip=0.01), precision)) == pytest.approx(0.01, rel=1e-3)


def test_what_is_evaluated_is_the_average() -> None:
    plain, averaged = trainer(), trainer(changed(average=0.9))
    assert plain.evaluated is plain.model
    for number in range(3):
        for one in (plain, averaged):
            one.step(number, IMAGES, LABELS)
    last, mean = averaged.model.head.weight, averaged.evaluated.head.weight
    assert torch.equal(last, plain.model.head.weight)
    assert not torch.equal(mean, last)
    assert (mean - last).abs().max() < 0.05


def test_chance_is_the_steps_own() -> None:
    """Whatever was drawn before it."""
    losses = []
    for number, draws in ((0, 0), (0, 5), (1, 5)):
        one = trainer(drop_path=0.9)
        torch.rand(draws)
        losses.append(float(one.step(number, IMAGES, LABELS)))
    assert losses[0] == losses[1] != losses[2]


def test_flow_is_measured_as_often_as_asked_for() -> None:
    one = trainer(changed(flow_every=2))
    one.step(1, IMAGES, LABELS)
    assert one.flow.take() == {}
    one.step(2, IMAGES, LABELS)
    assert len(one.flow.take()["mean"]) == len(one.flow.layers)


def test_a_step_on_mixed_images_learns_from_soft_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    loss = vitfx.training.trainer.cross_entropy
    monkeypatch.setattr(
        vitfx.training.trainer,
        "cross_entropy",
        lambda logits, targets, **given: (seen.append(targets), loss(logits, targets, **given))[1],
    )
    mixed = replace(CONFIG, augmentation=replace(CONFIG.augmentation, mixup=0.5, mix=1.0))
    trainer(mixed).step(0, IMAGES, LABELS)
    trainer().step(0, IMAGES, LABELS)
    assert [one.ndim for one in seen] == [2, 1]
    torch.testing.assert_close(seen[0].sum(1), torch.ones(12))
