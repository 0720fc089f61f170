"""Shifted images: how strong, and that each depends on itself and its number alone."""

import pytest
import torch

from vitfx.images.shifts import SHIFTS, blurred, noisy


def pixels(count=6, height=40, width=56):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SHIFTS)
def test_an_image_is_shifted_alike_whichever_others_are_with_it(name):
    images, shift = pixels(), SHIFTS[name]
    whole = shift(images, range(6), 3)
    parts = torch.empty_like(whole)
    for rank in (0, 1):
        parts[rank::2] = shift(images[rank::2], range(rank, 6, 2), 3)
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)
    assert not torch.equal(whole, images)


def test_noise_is_half_as_strong_as_the_image_and_the_seeds_own():
    images = pixels(2, 200, 200) * torch.tensor([1.0, 4.0])[:, None, None, None]
    noise = noisy(images, [0, 1], 0) - images
    torch.testing.assert_close(noise.std(dim=(1, 2, 3)), torch.tensor([0.5, 2.0]), rtol=0.02, atol=0)
    assert not torch.equal(noisy(images, [0, 1], 1) - images, noise)
    assert not torch.equal(noisy(images, [1, 0], 0) - images, noise)


def test_a_blur_spreads_a_point_by_its_standard_deviation_and_keeps_the_mean():
    point = torch.zeros(1, 1, 112, 224)
    point[..., 56, 112] = 1
    spread = blurred(point, [0], 0)[0, 0]
    rows, columns = (torch.arange(side) - side // 2 for side in (112, 224))
    assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
    assert float((spread.sum(1) * rows**2).sum()) ** 0.5 == pytest.approx(1.5, rel=0.03)
    assert float((spread.sum(0) * columns**2).sum()) ** 0.5 == pytest.approx(3, rel=0.03)


def test_small_images_are_blurred_too():
    point = torch.zeros(1, 1, 8, 8)
    point[..., 4, 4] = 1
    assert float(blurred(point, [0], 0)[0, 0, 4, 4]) < 0.7
