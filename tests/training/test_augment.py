"""vitfx.training.augment: seeds alone decide, every part of the recipe acts, and targets stay distributions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vitfx.images.preprocess import Preprocess
from vitfx.training.augment import batch_transform, mixing, sample_transform, transform_each
from vitfx.training.config import read_config

RECIPE = read_config("tiny-imagenet").augmentation
OFF = read_config("digits").augmentation
NONE = replace(OFF, pad=0)
PREPROCESS = Preprocess((16, 16))
SEEDS = range(6)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)


def test_an_image_depends_on_its_own_seed_alone(images: torch.Tensor) -> None:
    transform = sample_transform(RECIPE, PREPROCESS)
    state = torch.get_rng_state()
    all_ = transform_each(transform, images, SEEDS)
    assert torch.equal(torch.get_rng_state(), state)
    assert all_.dtype == torch.uint8
    torch.rand(3)
    backwards = transform_each(transform, images.flip(0), list(SEEDS)[::-1])
    assert torch.equal(backwards.flip(0), all_)
    assert not torch.equal(transform_each(transform, images, [seed + 6 for seed in SEEDS]), all_)


def test_with_all_off_an_image_stays_as_preprocess_makes_it() -> None:
    images = torch.randint(0, 256, (6, 3, 20, 24), dtype=torch.uint8)
    plain = transform_each(sample_transform(NONE, PREPROCESS), images, SEEDS)
    made = batch_transform(NONE, PREPROCESS)(plain)
    assert torch.equal(made, PREPROCESS(images))


@pytest.mark.parametrize(
    "part",
    [{"flip": 1.0}, {"crop_scale": (0.2, 0.3)}, {"pad": 2}, {"rotation": 90.0}, {"erasing": 1.0}],
    ids=lambda part: next(iter(part)),
)
def test_every_part_acts_on_every_image(part: dict, images: torch.Tensor) -> None:
    made = transform_each(sample_transform(replace(NONE, **part), PREPROCESS), images, SEEDS)
    assert made.shape == images.shape
    changed = [not torch.equal(one, image) for one, image in zip(made, images, strict=True)]
    # A move of 0 is one of 25.
    assert sum(changed) >= 5
    if "flip" in part:
        assert torch.equal(made, images.flip(-1))


def test_what_is_erased_is_zero_once_it_is_normalised(images: torch.Tensor) -> None:
    made = transform_each(sample_transform(replace(NONE, erasing=1.0), PREPROCESS), images, SEEDS)
    erased = batch_transform(NONE, PREPROCESS)(made)[made != images]
    assert len(erased) > 100
    assert erased.abs().max() < 0.01


def test_a_moved_image_repeats_its_border() -> None:
    image = torch.arange(16, dtype=torch.uint8).expand(3, 16, 16)
    made = transform_each(
        sample_transform(replace(NONE, pad=1), PREPROCESS), image[None].expand(30, -1, -1, -1), range(30)
    )
    rows = {tuple(one[0, 0].tolist()) for one in made}
    assert rows == {(0, *range(15)), tuple(range(16)), (*range(1, 16), 15)}


def test_noise_is_as_large_as_asked_for() -> None:
    grey = torch.full((8, 3, 16, 16), 128, dtype=torch.uint8)
    made = batch_transform(replace(NONE, noise=0.05), PREPROCESS)(grey)
    spread = (made * torch.tensor(PREPROCESS.std)[:, None, None]).std(dim=(0, 2, 3))
    assert ((spread > 0.045) & (spread < 0.055)).all()


def test_mixed_targets_are_distributions(images: torch.Tensor) -> None:
    labels = torch.tensor([0, 1, 2, 3, 4, 4])
    pixels = images.float()
    for only in ({"mixup": 0.0}, {"cutmix": 0.0}):
        mixed, targets = mixing(replace(RECIPE, mix=1.0, **only), 5)(pixels, labels)
        assert targets.shape == (6, 5)
        torch.testing.assert_close(targets.sum(1), torch.ones(6))
        assert (targets > 0).sum(1).tolist() == [2, 2, 2, 2, 2, 1]
        assert not torch.equal(mixed, pixels)
    # CutMix's pixels are of one image or the other, MixUp's between them.
    cut, _ = mixing(replace(RECIPE, mix=1.0, mixup=0.0), 5)(pixels, labels)
    assert ((cut == pixels) | (cut == pixels.roll(1, 0))).all()


def test_a_share_of_the_batches_is_mixed(images: torch.Tensor) -> None:
    mix = mixing(replace(RECIPE, mix=0.5), 5)
    labels = torch.zeros(6, dtype=torch.int64)
    mixed = sum(mix(images.float(), labels)[1].ndim == 2 for _ in range(60))
    assert 15 < mixed < 45
    assert mixing(OFF, 10) is None
    assert mixing(replace(RECIPE, mix=0.0), 5) is None
