"""From an image of any size to one of the model's: resizing, cropping and padding as the libraries do them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vitfx.support.errors import UserError, in_a_line

EDGES = ("both", "shortest", "longest", "none")
CORNERS = ("nearest", "down")
RESAMPLERS = ("torch", "torch-float", "PIL")
"""torch resizes bytes and rounds to bytes, "torch-float" resizes unrounded numbers of 0 to 1, PIL rounds to bytes and
always smooths (antialias) when it makes an image smaller."""

_LARGEST = 10_000


@dataclass(frozen=True)
class Resize:
    """The size that an image is brought to before its centre is cut out.

    Raises UserError for values of another type, which a damaged file may hold, and for those that make no picture.
    """

    to: tuple[int, int]  #: (height, width) in pixels; the crop's own size where `edge` is none
    #: both: to exactly this size, whatever the proportions; shortest, longest: with its proportions, so that it just
    #: covers this size or just fits into it; none: left as it is
    edge: str = "shortest"
    #: timm's share of this size that the crop has, from which other sizes follow; 0 where there is none
    crop_pct: float = 0.0

    def __post_init__(self) -> None:
        if self.edge not in EDGES:
            raise UserError(f"resize has the edge {in_a_line(self.edge)!r}: give one of {', '.join(EDGES)}")
        whole = isinstance(self.to, tuple) and len(self.to) == 2 and all(type(side) is int for side in self.to)
        if not whole or not 1 <= min(self.to) <= max(self.to) <= _LARGEST:
            raise UserError(f"images are resized to {in_a_line(self.to)}: give (height, width) of 1 to {_LARGEST:,}")
        if type(self.crop_pct) not in (int, float) or not 0 <= self.crop_pct < math.inf:
            raise UserError(f"crop_pct is {in_a_line(self.crop_pct)}: give a number above 0, or 0 for none")

    def of(self, height: int, width: int) -> tuple[int, int]:
        """The size that an image of this size gets.

        Sources: torchvision's `transforms.functional._compute_resized_output_size`, which transformers'
        `image_transforms.get_resize_output_image_size` repeats, and timm's `data.transforms.ResizeKeepRatio`.
        """
        if self.edge == "both":
            return self.to
        if self.edge == "none":
            return height, width
        if self.edge == "shortest" and self.to[0] == self.to[1]:
            short, side = min(height, width), self.to[0]
            longer = int(side * max(height, width) / short)
            return (longer, side) if width <= height else (side, longer)
        ratios = height / self.to[0], width / self.to[1]
        ratio = min(ratios) if self.edge == "shortest" else max(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def scaled(self, before: tuple[int, int], after: tuple[int, int]) -> Resize:
        """The same for a crop of another size: by crop_pct where there is one, else in proportion."""
        if self.crop_pct:
            return replace(self, to=covering(after, self.crop_pct))
        pairs = zip(self.to, before, after, strict=True)
        height, width = (max(1, round(side * new / old)) for side, old, new in pairs)
        return replace(self, to=(height, width))

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {"to": list(self.to), "edge": self.edge}
        return record | ({"crop_pct": self.crop_pct} if self.crop_pct else {})


def covering(size: tuple[int, int], crop_pct: float) -> tuple[int, int]:
    """The size of which a crop of `size` is this share, as `timm.data.transforms_factory` rounds it."""
    return math.floor(size[0] / crop_pct), math.floor(size[1] / crop_pct)


def resample(image: Tensor, size: tuple[int, int], interpolation: str, antialias: bool, resampler: str) -> Tensor:
    """uint8 (..., C, H, W) -> uint8, or float32 of 0 to 1 for "torch-float", of another height and width."""
    mode = InterpolationMode(interpolation)
    if resampler == "PIL":
        pixels = image.reshape(-1, *image.shape[-3:])
        return torch.stack([_resample_pil(each, size, interpolation) for each in pixels]).reshape(
            *image.shape[:-2], *size
        )
    if resampler == "torch-float":
        image = F.to_dtype(image, torch.float32, scale=True)
    resized: Tensor = F.resize(image, list(size), interpolation=mode, antialias=antialias)
    return resized


def _resample_pil(image: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """PIL resamples each channel by itself, but it has only images of one channel or three."""
    if tuple(image.shape[-2:]) == size:
        return image
    way = Image.Resampling[interpolation.partition("-")[0].upper()]
    parts = [image] if image.shape[0] == 3 else list(image.split(1))
    resized = []
    for part in parts:
        pixels = part.permute(1, 2, 0).contiguous().numpy()
        small = np.array(Image.fromarray(pixels if len(part) == 3 else pixels[..., 0]).resize(size[::-1], way))
        resized.append(torch.from_numpy(small).reshape(*size, -1).permute(2, 0, 1))
    return torch.cat(resized)


def centre_crop(image: Tensor, size: tuple[int, int], corner: str, fill: Sequence[int] = ()) -> Tensor:
    """(..., C, H, W) -> (..., C, height, width) from the centre; a smaller image gets a border first.

    corner: how it is rounded, nearest (torchvision, timm; halves to the even number) or down (transformers).
    fill: the border's colour, 0 to 255 for each channel; empty for black.

    Sources: torchvision's `transforms.functional.center_crop`, timm's `center_crop_or_pad` and transformers'
    `TorchvisionBackend.center_crop`.
    """
    missing = [max(0, wanted - side) for wanted, side in zip(size, image.shape[-2:], strict=True)]
    if any(missing):
        (top, left), (bottom, right) = ([(part + more) // 2 for part in missing] for more in (0, 1))
        colour = [float(value) for value in fill] if not image.is_floating_point() else [value / 255 for value in fill]
        image = F.pad(image, [left, top, right, bottom], fill=colour or 0)
    cut = round if corner == "nearest" else int
    top, left = (int(cut((side - wanted) / 2.0)) for wanted, side in zip(size, image.shape[-2:], strict=True))
    return image[..., top : top + size[0], left : left + size[1]]
