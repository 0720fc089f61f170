"""Scores of models side by side, against the same numbers computed directly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.image_files import damaged
from tests.support.prune_runs import GREY, model
from vitfx.deploy.evaluate import evaluate
from vitfx.images.image_set import ImageSet
from vitfx.images.splits import open_data


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return open_data("digits", GREY).evaluation.sample(50, seed=0)


def without_labels(images: ImageSet) -> ImageSet:
    return ImageSet(images.names, images.sources, None, images.preprocess)


@torch.no_grad()
def logits(module: nn.Module, pixels: Tensor) -> Tensor:
    return module(pixels)


@pytest.mark.parametrize("batch", [7, 50, 64])
def test_scores_are_those_of_a_direct_computation(digits: ImageSet, batch: int) -> None:
    first, second = model(), model(heads=4)
    found = evaluate({"first": lambda x: logits(first, x), "second": lambda x: logits(second, x)}, digits, batch=batch)
    images = digits.load()
    assert images.labels is not None
    old, new = logits(first, images.pixels), logits(second, images.pixels)
    for name, got in (("first", old), ("second", new)):
        assert found[name].images == 50
        assert found[name].skipped == 0
        assert found[name].loss == pytest.approx(F.cross_entropy(got, images.labels).item(), rel=1e-5)
        assert found[name].accuracy == pytest.approx((got.argmax(1) == images.labels).double().mean().item())
        assert found[name].seconds > 0
    assert found["first"].kl == pytest.approx(0, abs=1e-9)
    assert found["first"].agreement == 1
    kl = F.kl_div(new.log_softmax(1), old.log_softmax(1), log_target=True, reduction="batchmean").item()
    assert found["second"].kl == pytest.approx(kl, rel=1e-4)
    assert 0 < found["second"].agreement < 1
    assert found["second"].agreement == pytest.approx((old.argmax(1) == new.argmax(1)).double().mean().item())


@pytest.mark.parametrize("other", [9, 3])
def test_accuracies_on_chosen_and_on_other_classes(digits: ImageSet, other: int) -> None:
    """Of a model that always answers 9."""
    always = torch.eye(10)[9]
    (found,) = evaluate({"only": lambda x: always.expand(len(x), 10)}, digits, batch=7, other=other).values()
    images = digits.load()
    assert images.labels is not None
    chosen, others = images.labels[images.labels != other], images.labels[images.labels == other]
    assert found.by_choice == pytest.approx([float((part == 9).double().mean()) for part in (chosen, others)])


def test_without_labels_there_is_neither_loss_nor_accuracy(digits: ImageSet) -> None:
    first = model()
    (found,) = evaluate({"only": lambda x: logits(first, x)}, without_labels(digits), batch=32).values()
    assert (found.loss, found.accuracy, found.agreement, found.images) == (None, None, 1, 50)


def test_models_take_turns_and_the_first_batch_warms_up(digits: ImageSet) -> None:
    calls: list[str] = []

    def calling(name: str) -> Tensor:
        calls.append(name)
        return torch.zeros(25, 10)

    evaluate({"a": lambda _: calling("a"), "b": lambda _: calling("b")}, digits, batch=25)
    assert calls == ["a", "b", "a", "b", "b", "a"]


def test_corrupt_images_are_counted_and_not_scored(tmp_path: Path) -> None:
    images = damaged(tmp_path, good=5, bad=[b"no image"])
    seen: list[tuple[int, int]] = []
    (found,) = evaluate(
        {"only": lambda x: torch.eye(3)[torch.zeros(len(x), dtype=torch.long)]},
        images,
        batch=4,
        progress=lambda done, total: seen.append((done, total)),
    ).values()
    assert (found.images, found.skipped, found.accuracy) == (5, 2, 1)
    assert seen[-1] == (7, 7)


@pytest.mark.parametrize("batch", [2, 7])
def test_means_are_over_the_images_that_are_scored(tmp_path: Path, batch: int) -> None:
    """Of seven images two are corrupt: both models answer every other image alike."""
    images = damaged(tmp_path, good=5, bad=[b"no image"])
    answers = {"first": torch.tensor([2.0, 0, 0]), "second": torch.tensor([0.0, 1, 0])}
    found = evaluate({name: lambda x, z=z: z.expand(len(x), 3) for name, z in answers.items()}, images, batch=batch)
    first, second = (z.double().log_softmax(0) for z in answers.values())
    assert found["second"].kl == pytest.approx(float((first.exp() * (first - second)).sum()))
    assert found["second"].loss == pytest.approx(-float(second[0]))
    assert (found["second"].accuracy, found["second"].agreement) == (0, 0)


def test_the_device_is_waited_for(digits: ImageSet) -> None:
    waits: list[None] = []
    evaluate({"only": lambda x: torch.zeros(len(x), 10)}, digits, batch=25, synchronize=lambda: waits.append(None))
    assert len(waits) == 4
