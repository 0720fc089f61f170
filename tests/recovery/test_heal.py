"""vitfx.recovery.heal: a few minutes towards the original, or as it was with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.prune_runs import DIGITS, GREY
from tests.support.recover_runs import CPU, npz, student, teacher
from vitfx.graph.divergence import CLASSES
from vitfx.images.splits import open_data
from vitfx.pruning.healing import Training
from vitfx.recovery.heal import heal
from vitfx.support.progress import Silent


def healed(tmp_path: Path, count: int, minutes: float = 3.0) -> Training:
    images = open_data(str(npz(tmp_path)), GREY, DIGITS).calibration.subset(range(count))
    return heal(
        student(), teacher(), images, minutes,
        cache=tmp_path, device=CPU, watcher=Silent(), measure=CLASSES, seed=0,
    )  # fmt: skip


def kl(module: torch.nn.Module, tmp_path: Path) -> float:
    pixels = open_data(str(npz(tmp_path)), GREY, DIGITS).evaluation.load().pixels
    with torch.no_grad():
        return float(CLASSES(teacher()(pixels), module(pixels)).mean())


def test_it_comes_nearer_to_the_original_in_four_passes(tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in student().state_dict().items()}
    training = healed(tmp_path, 50)
    assert kl(training.module, tmp_path) < kl(student(), tmp_path)
    # Of the 50 images a tenth is held out, and four passes are as many steps of 32.
    assert training.sentence.startswith("survivors were trained on 128 images for ")
    assert all(torch.equal(value, before[name]) for name, value in student().state_dict().items())
    assert not training.module.training


@pytest.mark.parametrize(
    ("count", "reason"), [(2, "2 images are too few to retrain on"), (3, "3 images are too few to retrain on")]
)
def test_what_can_not_be_trained_stays_as_it_was(count: int, reason: str, tmp_path: Path) -> None:
    training = healed(tmp_path, count)
    assert training.sentence.startswith(f"survivors were not trained ({reason}")
    plain = student().state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in training.module.state_dict().items())


def test_the_clock_bounds_it(tmp_path: Path) -> None:
    training = healed(tmp_path, 50, minutes=1e-4)
    assert "128 images" not in training.sentence
