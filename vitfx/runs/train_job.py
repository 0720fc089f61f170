"""What a training works with: what was asked for, and the images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from vitfx.images.pixel_cache import Pixels
from vitfx.training.config import TrainConfig


@dataclass(frozen=True)
class TrainJob:
    """A checked command line."""

    config: TrainConfig
    data: str
    out: Path  #: a folder
    model_file: Path | None  #: where the last weights go as well
    cache: Path  #: of decoded images
    device: torch.device
    workers: int  #: processes that augment
    save_seconds: float  #: between two states
    init: str | None  #: see `vitfx.training.model`
    arch: str | None  #: likewise
    weights: str | None  #: likewise, "ema" or "raw"
    image_size: tuple[int, int] | None  #: (height, width); None where the user gave none
    tensorboard: bool
    force: bool
    command: str  #: as a user would type it


@dataclass(frozen=True, eq=False)
class Data:
    """The images."""

    train: Pixels
    validation: Pixels
    classes: tuple[str, ...]
    description: str
