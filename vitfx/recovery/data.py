"""The images that a pruned model is retrained on, and those held out to check whether it helps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vitfx.images.image_set import ImageSet
from vitfx.images.pixel_cache import Pixels, open_pixels
from vitfx.images.preprocess import Preprocess
from vitfx.support.errors import UserError
from vitfx.support.processes import Alone, Share
from vitfx.support.progress import Watcher
from vitfx.support.seeds import derive_seed
from vitfx.training.augment import sample_transform
from vitfx.training.config import AugmentationConfig
from vitfx.training.loader import BatchPlan, default_workers, load_batches

_LEAST = 4
_PLAIN = AugmentationConfig(
    flip=0, crop_scale=(), crop_ratio=(1, 1), pad=0, rotation=0, noise=0, erasing=0, cutmix=0, mixup=0, mix=0
)
_CROPPED = replace(_PLAIN, flip=0.5, crop_scale=(0.5, 1.0), crop_ratio=(0.75, 4 / 3))
VARIANTS = {"none": 1, "flip": 2}
"""How many variants of an image there are, where these are few; each has its place among the teacher's answers."""


@dataclass(frozen=True, eq=False)
class PixelSubset(Pixels):
    """Some of the images of another set."""

    positions: Tensor  #: in that set

    def rows(self, indices: Tensor) -> Tensor:
        return super().rows(self.positions[indices])

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True, eq=False)
class RecoverData:
    """Images for retraining, decoded at the model's size."""

    train: PixelSubset
    held_out: PixelSubset  #: disjoint from `train`
    labelled: bool  #: whether the labels mean anything
    preprocess: Preprocess

    @property
    def fingerprint(self) -> str:
        return f"{self.train.fingerprint}/{len(self.train)}"


def open_recover_data(
    images: ImageSet, cache: Path, watcher: Watcher, *, held_out: int, samples: int, seed: int
) -> RecoverData:
    """Decodes images, once for all runs, and divides them at random.

    images: the training images, labelled or not
    cache: see `vitfx.images.pixel_cache.open_pixels`
    held_out: how many to hold out at most, and never more than a tenth
    samples: how many to use at most

    Raises UserError where they are too few.
    """
    labelled = images.has_labels
    if samples < len(images):
        images = images.sample(samples, seed)
    # The cache needs labels: -1 stands for none.
    given = images if labelled else replace(images, labels=(-1,) * len(images))
    pixels = open_pixels(given, images.preprocess.size, cache, progress=watcher.bar("decoding images"))
    if pixels.skipped:
        watcher.say(f"{pixels.skipped} corrupt images are left out")
    if len(pixels) < _LEAST:
        raise UserError(f"{len(pixels)} images are too few to retrain on: give {_LEAST} or more")
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(derive_seed(seed, "held out")))
    count = max(1, min(held_out, len(pixels) // 10))
    return RecoverData(
        _subset(pixels, order[count:].sort().values), _subset(pixels, order[:count]), labelled, images.preprocess
    )


def _subset(pixels: Pixels, positions: Tensor) -> PixelSubset:
    return PixelSubset(
        pixels.shape,
        pixels.labels[positions],
        pixels.skipped,
        pixels.fingerprint,
        pixels.memory,
        pixels.path,
        positions,
    )


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch of training images."""

    images: Tensor  #: float32 (B, C, H, W), preprocessed, on the CPU
    labels: Tensor  #: int64 (B,)
    #: int64 (B,), numbers each image's variant, all images of one variant after another; None where there are too many
    places: Tensor | None


def load(
    data: RecoverData,
    augment: str,
    batch: int,
    epochs: int,
    seed: int,
    start: int,
    device: torch.device,
    share: Share | None = None,
) -> Iterator[Batch]:
    """The batches from step `start` on. They depend only on the arguments, so that a run can resume in the middle.

    batch: images over all processes; each gets its part.
    augment: "none", "flip" or "crop"; "flip" mirrors half of the images in each epoch, every image every second epoch.
    """
    share = share or Alone()
    plan = BatchPlan(len(data.train), batch, epochs, seed, share.rank, share.world)
    config = _CROPPED if augment == "crop" else _PLAIN
    transform = sample_transform(config, data.preprocess)
    workers = default_workers(device)
    loaded = load_batches(data.train, transform, plan, start, workers, device)
    for (epoch, indices), (images, labels) in zip(plan.batches(start), loaded, strict=True):
        places = None if augment == "crop" else indices
        if augment == "flip":
            mirrored = (indices + epoch) % 2 == 1
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
            places = indices + mirrored * len(data.train)
        yield Batch(data.preprocess.normalise(images), labels, places)
