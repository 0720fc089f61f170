"""What a training works with: what was asked for, and the images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from vitfx.images.pixel_cache import Pixels
from vitfx.training.config import TrainConfig


@dataclass(frozen=True)
class TrainJob:
    """What was asked for. out: a folder; model_file: where the last weights go as well. init, arch, image_size: see
    `vitfx.training.model`; image_size is None where the user gave none. command: as a user would type it.
    """

    config: TrainConfig
    data: str
    out: Path
    model_file: Path | None
    cache: Path
    device: torch.device
    workers: int
    save_seconds: float
    init: str | None
    arch: str | None
    image_size: int | None
    tensorboard: bool
    force: bool
    command: str


@dataclass(frozen=True, eq=False)
class Data:
    train: Pixels
    validation: Pixels
    classes: tuple[str, ...]
    description: str
