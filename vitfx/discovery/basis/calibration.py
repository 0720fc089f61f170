"""What methods run on: clean and corrupted images, and which of them this process holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitfx.discovery.basis.corruption import corrupt
from vitfx.graph.divergence import CLASSES, Divergence
from vitfx.images.image_set import Images
from vitfx.support.processes import Alone, Share


@dataclass(frozen=True)
class Calibration:
    """This process's share of the calibration images."""

    clean: Tensor  #: (n, C, H, W) on the model's device
    corrupted: Tensor  #: their counterparts
    labels: Tensor | None  #: int64 (n,)
    draws: Tensor  #: uniform in [0, 1), float64 (n,) on the CPU: a number for each image, whichever process holds it
    total: int  #: images of all processes
    share: Share
    divergence: Divergence = CLASSES  #: of the model's kind of answers

    def mean(self, total: Tensor) -> Tensor:
        """From this process's sum over its images to the mean over all images."""
        return self.share.sum(total) / self.total


def calibrate(
    images: Images,
    corruption: str,
    seed: int,
    device: torch.device,
    share: Share | None = None,
    divergence: Divergence = CLASSES,
) -> Calibration:
    """Corrupts the images, then takes this process's share: every world-th, beginning with its rank.

    Raises UserError where these images can't be corrupted this way.
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
        divergence=divergence,
    )
