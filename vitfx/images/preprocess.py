"""How a picture becomes a model's input."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vitfx.images.decoding import READERS, VITFX
from vitfx.images.geometry import CORNERS, RESAMPLERS, Resize, centre_crop, resample
from vitfx.support.errors import UserError, in_a_line

_INTERPOLATIONS = tuple(mode.value for mode in InterpolationMode)
ASSUMED = "assumed: ImageNet's mean and standard deviation, bicubic, without a crop"
"""The origin of what neither a file nor a library says."""

_TORCH_INTERPOLATIONS = tuple(name for name in _INTERPOLATIONS if name not in ("box", "hamming"))


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop the centre to `size`, scale to 0..1, then subtract `mean` and divide by `std` for each channel.

    Raises UserError for values of another type, which a damaged file may hold, and for those that make no picture.
    """

    size: tuple[int, int]  #: (height, width) in pixels of the model's images
    interpolation: str = "bicubic"  #: the name of a torchvision `InterpolationMode`
    antialias: bool = True  #: whether images are smoothed when they are made smaller; PIL always does
    #: of pixels from 0 to 1, in the order of the model's channels; another rescale factor is worked into both
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    resize: Resize | None = None  #: before the crop; None for straight to `size`, whatever the proportions
    corner: str = "nearest"  #: how the crop's corner is rounded, see `vitfx.images.geometry.centre_crop`
    fill: tuple[int, ...] = ()  #: the colour of the border around images smaller than the crop, see there
    resampler: str = "torch"  #: one of `vitfx.images.geometry.RESAMPLERS`
    reader: str = VITFX  #: how files are decoded: one of `vitfx.images.decoding.READERS`
    bgr: bool = False  #: whether the model's channels are blue, green, red
    origin: str = field(default="", compare=False)  #: where this was read or why it was assumed, in words

    def __post_init__(self) -> None:
        if self.interpolation not in _INTERPOLATIONS:
            name = in_a_line(self.interpolation)
            raise UserError(f"interpolation {name!r} is not one of {', '.join(_INTERPOLATIONS)}")
        for name in ("antialias", "bgr"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name} is {in_a_line(getattr(self, name))}: give true or false")
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
        self._check_steps()

    def _check_steps(self) -> None:
        choices = {"corner": CORNERS, "resampler": RESAMPLERS, "reader": READERS}
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise UserError(f"{name} {in_a_line(value)!r} is not one of {', '.join(known)}")
        if self.resampler != "PIL" and self.interpolation not in _TORCH_INTERPOLATIONS:
            raise UserError(
                f"torch does not resize by {self.interpolation}: give one of {', '.join(_TORCH_INTERPOLATIONS)}"
            )
        if not isinstance(self.resize, Resize | None):
            raise UserError(f"resize is {in_a_line(self.resize)}: give an object with to and edge")
        if not _are(self.fill, int) or (self.fill and len(self.fill) != len(self.mean)):
            raise UserError(f"fill is {in_a_line(self.fill)}: give a whole number for every channel, or nothing")

    @property
    def channels(self) -> int:
        return len(self.mean)

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 (C, H, W) or (B, C, H, W) of any size -> float32 (..., channels, height, width)."""
        return self.normalise(self.fit(image))

    def fit(self, image: Tensor) -> Tensor:
        """uint8 (..., C, H, W) of any size -> uint8 (..., channels, height, width), or float32 of 0 to 1."""
        if image.shape[-3] == 1 and self.channels == 3:
            image = image.expand(*image.shape[:-3], 3, *image.shape[-2:])
        if self.bgr:
            image = image.flip(-3)
        resized = self.size if self.resize is None else self.resize.of(image.shape[-2], image.shape[-1])
        image = resample(image, resized, self.interpolation, self.antialias, self.resampler)
        return image if self.resize is None else centre_crop(image, self.size, self.corner, self.fill)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8, or float32 of 0 to 1, (..., channels, height, width) -> float32 as the model takes it."""
        # Rounded once: a rescale factor that is worked into mean and std then costs no digit.
        exact = torch.float32 if self.reader == VITFX else torch.float64
        scaled = F.to_dtype(pixels, exact, scale=True)
        normalised: Tensor = F.normalize(scaled, list(self.mean), list(self.std))
        return normalised.float()

    def at(self, size: tuple[int, int]) -> Preprocess:
        """The same for a model of another image size; what is resized to before the crop changes with it."""
        resize = self.resize.scaled(self.size, size) if self.resize is not None and size != self.size else self.resize
        return replace(self, size=size, resize=resize)

    def plain(self) -> Preprocess:
        """Without mean and standard deviation: pixels of 0 to 1."""
        return replace(self, mean=(0.0,) * self.channels, std=(1.0,) * self.channels)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads, as old files have it where no step is newer than they are."""
        record: dict[str, Any] = {}
        for known in fields(self):
            value = getattr(self, known.name)
            if known.name != "origin" and (known.name in _FIRST or value != known.default):
                record[known.name] = value.to_json() if isinstance(value, Resize) else value
        return record

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Preprocess:
        """Reads a checkpoint's `preprocess`; raises UserError for anything that is not one."""
        given = _arguments(Preprocess, record, "preprocess", "size", "[height, width]")
        if given.get("resize") is not None:
            given["resize"] = Resize(**_arguments(Resize, given["resize"], "resize", "to", "[height, width]"))
        return Preprocess(**given, origin="the file's own")

    @property
    def first_line(self) -> str | None:
        """What a run says of it first; None for images that the user has prepared."""
        return f"images: {self} ({self.origin})" if self.origin else None

    def __str__(self) -> str:
        """What happens to an image, in a line: "resized to 248 on the shortest edge (bicubic, PIL), …"."""
        way = f"{self.interpolation}, PIL" if self.resampler == "PIL" else self.interpolation
        if self.resize is None:
            steps = f"resized to {_times(self.size)} ({way})"
        elif self.resize.edge == "none":
            steps = f"cropped to the central {_times(self.size)}"
        else:
            to = _times(self.resize.to) if self.resize.to[0] != self.resize.to[1] else str(self.resize.to[0])
            where = _times(self.resize.to) if self.resize.edge == "both" else f"{to} on the {self.resize.edge} edge"
            steps = f"resized to {where} ({way}), cropped to the central {_times(self.size)}"
        colours = "" if self.channels == 3 and not self.bgr else ", grey" if self.channels == 1 else ""
        colours = ", channels blue, green, red" if self.bgr else colours
        return f"{steps}{colours}; mean {_numbers(self.mean)}, std {_numbers(self.std)}"


_FIRST = ("size", "interpolation", "antialias", "mean", "std")
"""What every file has: other fields are written only where they differ from their defaults."""


def _arguments(kind: type, record: Any, name: str, needed: str, form: str) -> dict[str, Any]:
    """The record as arguments of a dataclass, with tuples for lists; raises UserError."""
    known = [each for each in kind.__dataclass_fields__ if each != "origin"]  # type: ignore[attr-defined]
    if not isinstance(record, Mapping):
        raise UserError(f"{name} is {in_a_line(record)}: give an object with the keys {', '.join(known)}")
    if unknown := sorted(str(key) for key in record if key not in known):
        raise UserError(f"{name} has the unknown keys {', '.join(unknown)}: known are {', '.join(known)}")
    if needed not in record:
        raise UserError(f"{name} does not say the {needed}: give {form}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


def _numbers(values: tuple[float, ...]) -> str:
    shown = [f"{value:.4g}" for value in values]
    return shown[0] if len(set(shown)) == 1 else " ".join(shown)


def _are(values: object, kind: Any) -> bool:
    """Whether these are numbers of this type, finite ones."""
    return isinstance(values, tuple | list) and all(
        isinstance(value, kind) and not isinstance(value, bool) and abs(value) <= sys.float_info.max for value in values
    )
