"""How a picture becomes a model's input."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vitfx.support.errors import UserError, in_a_line

_INTERPOLATIONS = tuple(mode.value for mode in InterpolationMode)


@dataclass(frozen=True)
class Preprocess:
    """Resize to `size`, scale to 0..1, then subtract `mean` and divide by `std` for each channel.

    Raises UserError for values of another type, which a damaged file may hold, and for those that make no picture.
    """

    size: tuple[int, int]  #: (height, width) in pixels
    interpolation: str = "bicubic"  #: the name of a torchvision `InterpolationMode`
    antialias: bool = True
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.interpolation not in _INTERPOLATIONS:
            name = in_a_line(self.interpolation)
            raise UserError(f"interpolation {name!r} is not one of {', '.join(_INTERPOLATIONS)}")
        if not isinstance(self.antialias, bool):
            raise UserError(f"antialias is {in_a_line(self.antialias)}: give true or false")
        if not _are(self.size, int) or len(self.size) != 2 or min(self.size) < 1:
            raise UserError(f"the image size is {in_a_line(self.size)}: give (height, width), 1 pixel or more each")
        if not _are(self.mean, int | float) or not _are(self.std, int | float) or min(self.std, default=1) <= 0:
            raise UserError(
                f"mean is {in_a_line(self.mean)} and std is {in_a_line(self.std)}: give finite numbers, std above 0"
            )
        if len(self.mean) != len(self.std) or not self.mean:
            raise UserError(
                f"mean has {len(self.mean)} values and std has {len(self.std)}: give one of each for every channel"
            )

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
        scaled = F.to_dtype(resized, torch.float32, scale=True)
        normalised: torch.Tensor = F.normalize(scaled, list(self.mean), list(self.std))
        return normalised

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Preprocess:
        """Reads a checkpoint's `preprocess`; raises UserError for anything that is not one."""
        known = Preprocess.__dataclass_fields__
        if not isinstance(record, Mapping):
            raise UserError(f"preprocess is {in_a_line(record)}: give an object with the keys {', '.join(known)}")
        if unknown := sorted(str(key) for key in record if key not in known):
            raise UserError(f"preprocess has the unknown keys {', '.join(unknown)}: known are {', '.join(known)}")
        if "size" not in record:
            raise UserError("preprocess does not say the size: give [height, width]")
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
        }
        return Preprocess(**given)


def _are(values: object, kind: Any) -> bool:
    """Whether these are numbers of this type, finite ones."""
    return isinstance(values, tuple | list) and all(
        isinstance(value, kind) and not isinstance(value, bool) and abs(value) <= sys.float_info.max for value in values
    )
