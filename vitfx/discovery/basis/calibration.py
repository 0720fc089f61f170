"""What scorers run on: clean and corrupted images, and which part of them this process holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitfx.discovery.basis.corruption import corrupt
from vitfx.images.image_set import Images
from vitfx.support.processes import Alone, Share


@dataclass(frozen=True)
class Calibration:
    """clean, corrupted: this process's images and their counterparts, (n, C, H, W) on the model's device. labels: int64
    (n,), or None. draws: uniform in [0, 1), float64 (n,) on the CPU, one for each image whoever holds it. total: images
    of all processes."""

    clean: Tensor
    corrupted: Tensor
    labels: Tensor | None
    draws: Tensor
    total: int
    share: Share

    def mean(self, total: Tensor) -> Tensor:
        """From this process's sum over its images to the mean over all images."""
        return self.share.sum(total) / self.total


def calibrate(
    images: Images, corruption: str, seed: int, device: torch.device, share: Share | None = None
) -> Calibration:
    """Corrupts the images and takes this process's share: every world-th from its rank on.

    Raises UserError where the corruption can't be made of these images.
    """
    share = share or Alone()
    mine = slice(share.rank, None, share.world)
    draws = torch.rand(len(images), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Calibration(
        clean=images.pixels[mine].to(device),
        corrupted=corrupt(images, corruption, seed)[mine].to(device),
        labels=None if images.labels is None else images.labels[mine].to(device),
        draws=draws[mine],
        total=len(images),
        share=share,
    )
