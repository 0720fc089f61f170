"""A few minutes of recovery as the last step of pruning: no labels, no settings, never worse on its held-out images."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule

from vitfx.graph.divergence import Divergence
from vitfx.images.image_set import ImageSet
from vitfx.pruning.healing import Training
from vitfx.recovery.data import open_recover_data
from vitfx.recovery.retrain import recover
from vitfx.recovery.settings import RecoverSettings
from vitfx.support.errors import UserError
from vitfx.support.progress import Watcher

MINUTES = 3.0
"""The default for a price. What a limit allows to be lost is too little to be healed in minutes."""
_PASSES = 4
"""More would learn a few images by heart."""
_CHECKED, _CHECKS = 256, 4
"""Images held out here, and how often they are looked at."""
_TIMED = 8
_LEAST_STEP = 1.5
"""A step takes at least as long as so many runs of the original: so little in bf16, where a CPU has that, else 3."""


def heal(
    artifact: GraphModule,
    original: GraphModule,
    images: ImageSet,
    minutes: float,
    *,
    cache: Path,
    device: torch.device,
    watcher: Watcher,
    measure: Divergence,
    seed: int,
) -> Training:
    """Trains a copy of the artifact towards the original's answers and streams. What can't be trained stays as it is.

    images: to train on, with or without labels
    minutes: by the clock; less where that is more than a few passes over the images
    cache: see `vitfx.images.pixel_cache.open_pixels`
    """
    try:
        settings = RecoverSettings(minutes=minutes, checks=_CHECKS, patience=_CHECKS, seed=seed)
        # What the clock allows at most: decoding more would be in vain.
        affordable = 60 * minutes / _seconds_an_image(original, images)
        count = min(len(images), max(4 * _CHECKED, int(affordable)))
        data = open_recover_data(
            images.sample(count, seed), cache, watcher, held_out=_CHECKED, samples=count, seed=seed
        )
        if _PASSES * len(data.train) < affordable:
            settings = replace(settings, minutes=None, epochs=_PASSES)
        result = recover(artifact, original, data, settings, device=device, watcher=watcher, measure=measure)
    except UserError as error:
        # What follows the colon is advice for `vitfx.recover`.
        reason = str(error).partition(": ")[0].replace("`minutes`", "`heal_minutes`")
        return Training(artifact, f"survivors were not trained ({reason})")
    seen = result.steps * min(settings.batch, len(data.train))
    return Training(
        result.module,
        f"survivors were trained on {seen:,} images for {result.seconds / 60:.1f} minutes, without labels",
        {"images": seen, "seconds": result.seconds, "lr": result.rate, "seed": seed},
    )


@torch.no_grad()
def _seconds_an_image(original: GraphModule, images: ImageSet) -> float:
    """What a step takes an image at least, by runs of the original on the CPU."""
    pixels: Tensor = images.sample(min(_TIMED, len(images)), 0).load().pixels
    original(pixels)
    began = time.perf_counter()
    original(pixels)
    return _LEAST_STEP * (time.perf_counter() - began) / len(pixels)
