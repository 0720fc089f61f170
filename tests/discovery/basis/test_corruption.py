"""corrupt: what each kind does to images, that it is seeded, and what it refuses."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from vitfx.discovery.basis.corruption import corrupt
from vitfx.discovery.basis.settings import CORRUPTIONS
from vitfx.images.preprocess import Preprocess
from vitfx.images.splits import Images, open_data
from vitfx.support.errors import UserError


def numbered(labels: list[int] | None, count: int = 0) -> Images:
    """Images of one pixel each, whose value is their position."""
    count = count if labels is None else len(labels)
    pixels = torch.arange(count, dtype=torch.float32).reshape(-1, 1, 1, 1)
    return Images(pixels, None if labels is None else torch.tensor(labels), tuple(map(str, range(count))))


def noise_images(*shape: int) -> Images:
    pixels = torch.randn(shape)
    return Images(pixels, torch.arange(shape[0]) % 2, tuple(map(str, range(shape[0]))))


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.integers(0, 2**32))
def test_swap_takes_another_class(labels: list[int], seed: int) -> None:
    if len(set(labels)) == 1:
        with pytest.raises(UserError, match="are of class"):
            corrupt(numbered(labels), "swap", seed)
        return
    partner = corrupt(numbered(labels), "swap", seed).flatten().int().tolist()
    assert all(labels[there] != labels[here] for here, there in enumerate(partner))
    if 2 * max(Counter(labels).values()) <= len(labels):
        assert sorted(partner) == list(range(len(labels)))


@given(st.integers(2, 40), st.integers(0, 2**32))
def test_swap_without_labels_takes_another_image(count: int, seed: int) -> None:
    partner = corrupt(numbered(None, count), "swap", seed).flatten().int().tolist()
    assert sorted(partner) == list(range(count))
    assert all(here != there for here, there in enumerate(partner))


def test_swap_mixes_classes() -> None:
    """One class's images do not all go to one other class."""
    labels = [index % 4 for index in range(80)]
    partner = corrupt(numbered(labels), "swap", 0).flatten().int().tolist()
    assert len({(labels[here], labels[there]) for here, there in enumerate(partner)}) > 4


def test_noise_is_as_strong_as_the_channels_own_spread() -> None:
    images = noise_images(64, 3, 16, 16)
    images.pixels.mul_(torch.tensor([0.1, 1.0, 5.0]).reshape(1, 3, 1, 1)).add_(7)
    added = corrupt(images, "noise", 1) - images.pixels
    spread = images.pixels.std(dim=(0, 2, 3))
    assert torch.allclose(added.std(dim=(0, 2, 3)), spread, rtol=0.05)
    assert (added.mean(dim=(0, 2, 3)).abs() < 0.05 * spread).all()
    correlation = torch.corrcoef(torch.stack([added.flatten(), (images.pixels - 7).flatten()]))[0, 1]
    assert correlation.abs() < 0.05


@pytest.mark.parametrize("side", [8, 64, 112])
def test_blur_is_a_gaussian_of_an_eighth_of_the_side(side: int) -> None:
    images = noise_images(2, 3, side, 2 * side)
    sigma = (0, 0, side / 8, side / 4)
    expected = gaussian_filter(images.pixels.numpy(), sigma, mode="mirror", truncate=2)
    assert torch.allclose(corrupt(images, "blur", 0), torch.from_numpy(expected), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 5)])
def test_small_and_oblong_images(shape: tuple[int, int]) -> None:
    images = noise_images(4, 3, *shape)
    for kind in CORRUPTIONS:
        corrupted = corrupt(images, kind, 0)
        assert corrupted.shape == images.pixels.shape and corrupted.isfinite().all()


@pytest.mark.parametrize("side, patch", [(112, 28), (64, 16), (8, 2), (14, 2), (30, 6), (7, 1)])
def test_shuffle_moves_whole_patches(side: int, patch: int) -> None:
    images = noise_images(5, 3, side, side)
    shuffled = corrupt(images, "shuffle", 0)
    cut = "n c (y h) (x w) -> n (y x) (c h w)"
    before, after = (rearrange(pixels, cut, h=patch, w=patch) for pixels in (images.pixels, shuffled))
    matches = (before[:, :, None] == after[:, None]).all(dim=-1)
    assert (matches.sum(dim=1) == 1).all() and (matches.sum(dim=2) == 1).all()
    places = matches.int().argmax(dim=2)
    assert len({tuple(order.tolist()) for order in places}) == 5
    assert not (places == torch.arange(places.shape[1])).all(dim=1).any()


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_same_seed_same_images(kind: str) -> None:
    images = noise_images(9, 3, 16, 16)
    original, state = images.pixels.clone(), torch.get_rng_state()
    first = corrupt(images, kind, 5)
    torch.rand(3)
    assert torch.equal(first, corrupt(images, kind, 5))
    torch.set_rng_state(state)
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(images.pixels, original)
    assert not torch.equal(first, original) and first.dtype == torch.float32
    if kind not in ("blur", "mean-patch"):
        assert not torch.equal(first, corrupt(images, kind, 6))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_global_random_state_is_left_alone(kind: str) -> None:
    images = noise_images(4, 1, 8, 8)
    state = torch.get_rng_state()
    corrupt(images, kind, 1)
    assert torch.equal(state, torch.get_rng_state())


@given(st.lists(st.integers(0, 4), min_size=2, max_size=40), st.integers(0, 2**32))
def test_same_class_takes_another_image_of_the_class(labels: list[int], seed: int) -> None:
    alone = sum(count == 1 for count in Counter(labels).values())
    if alone:
        with pytest.raises(UserError, match=f"two images of each class, and {alone} of {len(labels)} are alone"):
            corrupt(numbered(labels), "same-class", seed)
        return
    partner = corrupt(numbered(labels), "same-class", seed).flatten().int().tolist()
    assert sorted(partner) == list(range(len(labels)))
    assert all(labels[there] == labels[here] and there != here for here, there in enumerate(partner))


def test_same_class_pairs_at_random() -> None:
    """Seeds pair an image with different others."""
    images = numbered([0] * 8)
    assert len({int(corrupt(images, "same-class", seed)[0]) for seed in range(40)}) == 7


def test_a_mean_patch_is_embedded_as_the_mean_of_the_patches() -> None:
    images = noise_images(6, 3, 8, 8)
    images.pixels.add_(torch.arange(8.0))
    embed = torch.nn.Conv2d(3, 5, 4, 4)
    with torch.no_grad():
        embedded, expected = embed(corrupt(images, "mean-patch", 0)), embed(images.pixels).mean(dim=0)
    assert torch.allclose(embedded, expected.expand_as(embedded), atol=1e-5)
    assert embedded.std(dim=(2, 3)).min() > 0.01


def test_refusals() -> None:
    with pytest.raises(UserError, match="'gauss' is not known: choose one of swap, noise, blur, shuffle"):
        corrupt(numbered([0, 1]), "gauss", 0)
    for labels in (None, [3]):
        with pytest.raises(UserError, match="there is only one"):
            corrupt(numbered(labels, 1), "swap", 0)
        with pytest.raises(UserError, match="there is only one"):
            corrupt(numbered(labels, 1), "mean-patch", 0)
    for unclassed in (None, torch.ones(4, 2), torch.ones(4)):
        with pytest.raises(UserError, match="same-class needs images with a class each: give labels"):
            corrupt(replace(numbered([0] * 4), labels=unclassed), "same-class", 0)
    with pytest.raises(UserError, match="all 4 are of class 2"):
        corrupt(numbered([2] * 4), "swap", 0)


def test_real_images(shared: Path) -> None:
    data = open_data(str(shared / "data" / "tiny-imagenet-200"), Preprocess((112, 112)))
    images = data.calibration.sample(32, 0).load()
    with pytest.raises(UserError, match="are alone in theirs: give more `samples` or fewer `classes`"):
        corrupt(images, "same-class", 0)
    for kind in (kind for kind in CORRUPTIONS if kind != "same-class"):
        corrupted = corrupt(images, kind, 0)
        changed = (corrupted - images.pixels).abs().mean(dim=(1, 2, 3))
        assert corrupted.shape == (32, 3, 112, 112) and (changed > 0.05).all()
