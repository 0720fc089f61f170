"""Augmentation with torchvision's transforms, first of single images and then of whole batches.

Images are cropped, shifted, flipped, rotated and erased as uint8 when they are read, each with a seed of its own.
Batches become floats, get noise, and are normalised and mixed on the device that trains.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from vitfx.images.preprocess import Preprocess
from vitfx.training.config import AugmentationConfig


def sample_transform(config: AugmentationConfig, preprocess: Preprocess) -> v2.Transform:
    """uint8 (C, h, w) -> uint8 (C, height, width), drawing from torch's CPU generator.

    Rotation and erasing fill with the mean colour, which is 0 after normalisation.
    """
    size, interpolation = list(preprocess.size), InterpolationMode(preprocess.interpolation)
    mean = [round(255 * value) for value in preprocess.mean]
    parts: list[v2.Transform] = []
    if config.crop_scale:
        # Bicubic costs twice as much, and nobody looks at augmented images.
        bilinear = InterpolationMode.BILINEAR
        scale, ratio = list(config.crop_scale), list(config.crop_ratio)
        parts.append(v2.RandomResizedCrop(size, scale=scale, ratio=ratio, interpolation=bilinear))
    else:
        parts.append(v2.Resize(size, interpolation=interpolation, antialias=preprocess.antialias))
    if config.pad:
        parts.append(v2.RandomCrop(size, padding=config.pad, padding_mode="edge"))
    if config.flip:
        parts.append(v2.RandomHorizontalFlip(config.flip))
    if config.rotation:
        parts.append(v2.RandomRotation(config.rotation, interpolation=InterpolationMode.BILINEAR, fill=mean))
    if config.erasing:
        parts.append(v2.RandomErasing(config.erasing, value=mean))
    return v2.Compose(parts)


def transform_each(transform: v2.Transform, images: Tensor, seeds: Sequence[int]) -> Tensor:
    """uint8 (B, C, h, w) -> uint8 (B, C, height, width), each by its seed; torch's generator keeps its state."""
    with torch.random.fork_rng(devices=[]):
        return torch.stack([_seeded(transform, image, seed) for image, seed in zip(images, seeds, strict=True)])


def _seeded(transform: v2.Transform, image: Tensor, seed: int) -> Tensor:
    torch.default_generator.manual_seed(seed)
    augmented: Tensor = transform(image)
    return augmented


def batch_transform(config: AugmentationConfig, preprocess: Preprocess) -> v2.Transform:
    """uint8 (B, C, H, W) -> float32, normalised; noise comes from the generator of the images' device."""
    parts: list[v2.Transform] = [v2.ToDtype(torch.float32, scale=True)]
    if config.noise:
        parts.append(v2.GaussianNoise(sigma=config.noise))
    return v2.Compose([*parts, v2.Normalize(list(preprocess.mean), list(preprocess.std))])


def mixing(config: AugmentationConfig, classes: int) -> v2.Transform | None:
    """(images, labels (B,)) -> the same, or mixed images with soft targets (B, classes); None where nothing is mixed.

    CutMix (Yun et al. 2019) and MixUp (Zhang et al. 2018), equally often where the configuration has both.
    """
    mixers: list[v2.Transform] = []
    if config.cutmix:
        mixers.append(v2.CutMix(alpha=config.cutmix, num_classes=classes))
    if config.mixup:
        mixers.append(v2.MixUp(alpha=config.mixup, num_classes=classes))
    if not mixers or not config.mix:
        return None
    return v2.RandomApply([v2.RandomChoice(mixers)], p=config.mix)
