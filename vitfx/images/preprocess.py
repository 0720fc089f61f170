"""How a picture becomes a model's input."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vitfx.support.errors import UserError

_KNOWN_INTERPOLATIONS = tuple(mode.value for mode in InterpolationMode)


@dataclass(frozen=True)
class Preprocess:
    """Resize to `size`, scale to 0..1, then subtract `mean` and divide by `std` for each channel.

    size: (height, width) in pixels.
    interpolation: the name of a torchvision `InterpolationMode`, such as "bicubic".
    """

    size: tuple[int, int]
    interpolation: str = "bicubic"
    antialias: bool = True
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.interpolation not in _KNOWN_INTERPOLATIONS:
            raise UserError(f"interpolation {self.interpolation!r} is not one of {', '.join(_KNOWN_INTERPOLATIONS)}")
        if len(self.mean) != len(self.std) or not self.mean:
            raise UserError(f"mean has {len(self.mean)} channels and std has {len(self.std)}: give as many of both")
        if len(self.size) != 2 or min(self.size) < 1:
            raise UserError(f"the image size is {self.size}: give (height, width), 1 pixel or more each")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise UserError(f"mean is {self.mean} and std is {self.std}: give finite numbers, std above 0")

    @property
    def channels(self) -> int:
        return len(self.mean)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 (C, H, W) or (B, C, H, W) of any size -> float32 (..., channels, height, width)."""
        if image.shape[-3] == 1 and self.channels == 3:
            image = image.expand(*image.shape[:-3], 3, *image.shape[-2:])
        resized = F.resize(
            image, list(self.size), interpolation=InterpolationMode(self.interpolation), antialias=self.antialias
        )
        return F.normalize(F.to_dtype(resized, torch.float32, scale=True), list(self.mean), list(self.std))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(record: dict[str, Any]) -> Preprocess:
        """Reads a checkpoint's `preprocess`; raises UserError for keys that it does not know."""
        known = Preprocess.__dataclass_fields__
        if unknown := sorted(set(record) - set(known)):
            raise UserError(f"preprocess has the unknown keys {', '.join(unknown)}: known are {', '.join(known)}")
        if "size" not in record:
            raise UserError("preprocess does not say the size: give [height, width]")
        settings: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
        }
        return Preprocess(**settings)
