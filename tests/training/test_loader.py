"""vitfx.training.loader: the order is the seed's, whatever the processes, the workers and the restarts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vitfx.images.pixel_cache import Pixels, open_pixels
from vitfx.images.splits import open_data
from vitfx.support.devices import GPU
from vitfx.support.errors import UserError
from vitfx.training.augment import sample_transform
from vitfx.training.config import read_config
from vitfx.training.loader import BatchPlan, default_workers, load_batches

CPU = torch.device("cpu")
CONFIG = read_config("digits")
PLAN = BatchPlan(count=23, batch=6, epochs=3, seed=0)


def order(plan: BatchPlan, start: int = 0) -> list[tuple[int, list[int]]]:
    return [(epoch, indices.tolist()) for epoch, indices in plan.batches(start)]


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Pixels:
    images = open_data("digits", CONFIG.preprocess).calibration.sample(23, 0)
    return open_pixels(images, (8, 8), tmp_path_factory.mktemp("cache"))


def test_each_epoch_takes_each_image_once_in_an_order_of_its_own() -> None:
    found = order(PLAN)
    assert (PLAN.epoch_steps, PLAN.steps, len(found)) == (3, 9, 9)
    epochs = [[index for epoch, indices in found if epoch == number for index in indices] for number in range(3)]
    assert all(len(set(one)) == 18 and set(one) < set(range(23)) for one in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order(replace(PLAN, seed=1)) != found


@pytest.mark.parametrize("start", [0, 1, 3, 5, 8, 9])
def test_from_any_step_on_the_order_is_the_same(start: int) -> None:
    assert order(PLAN, start) == order(PLAN)[start:]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_batches_of_one(world: int) -> None:
    shares = [order(replace(PLAN, rank=rank, world=world)) for rank in range(world)]
    for parts, (epoch, whole) in zip(zip(*shares, strict=True), order(PLAN), strict=True):
        assert {one for one, _ in parts} == {epoch}
        assert sorted(index for _, indices in parts for index in indices) == sorted(whole)
        assert {len(indices) for _, indices in parts} == {6 // world}


def test_batches_that_can_not_be_are_told() -> None:
    with pytest.raises(UserError, match=r"`batch` is 24, but there are 23 images"):
        replace(PLAN, batch=24)
    with pytest.raises(UserError, match="is 6, which 4 processes can't share equally"):
        replace(PLAN, world=4)


def test_batches_are_the_same_with_workers_and_after_a_restart(pixels: Pixels) -> None:
    transform = sample_transform(replace(CONFIG.augmentation, flip=0.5), CONFIG.preprocess)
    alone = list(load_batches(pixels, transform, PLAN, 0, 0, CPU))
    helped = list(load_batches(pixels, transform, PLAN, 4, 1, CPU))
    assert len(alone) == 9
    for (images, labels), (again, same) in zip(alone[4:], helped, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, same)
    # Another epoch, another augmentation of the same image.
    first = {
        index: image
        for (_, ids), (images, _) in zip(order(PLAN)[:3], alone[:3], strict=True)
        for index, image in zip(ids, images, strict=True)
    }
    later = {
        index: image
        for (_, ids), (images, _) in zip(order(PLAN)[3:6], alone[3:6], strict=True)
        for index, image in zip(ids, images, strict=True)
    }
    both = first.keys() & later.keys()
    assert sum(torch.equal(first[index], later[index]) for index in both) < len(both) / 2


def test_labels_are_those_of_their_images(pixels: Pixels) -> None:
    transform = sample_transform(replace(CONFIG.augmentation, pad=0), CONFIG.preprocess)
    for (_, indices), (images, labels) in zip(
        PLAN.batches(0), load_batches(pixels, transform, PLAN, 0, 0, CPU), strict=True
    ):
        assert torch.equal(images, pixels.rows(indices))
        assert torch.equal(labels, pixels.labels[indices])


def test_a_cpu_augments_where_it_trains() -> None:
    assert default_workers(CPU) == 0
    assert default_workers(torch.device(GPU)) >= 0
