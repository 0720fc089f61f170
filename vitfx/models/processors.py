"""The preprocessing of transformers' image processors, as a `Preprocess` that is believed once its pixels are equal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from vitfx.images.decoding import UPRIGHT
from vitfx.images.geometry import Resize
from vitfx.images.preprocess import Preprocess
from vitfx.support.errors import UserError, in_a_line
from vitfx.support.files import temporary_folder

# Pillow's numbers for ways to resample, which files use, as transformers' torchvision backend takes them.
_RESAMPLE = {0: "nearest-exact", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_TOLERANCE = 1e-6
# transformers gives DINOv2 BiT's processor, whose own mean and standard deviation are CLIP's; the published folders
# (facebook/dinov2-base and its relatives) say these.
_DINOV2_TYPES = ("dinov2", "dinov2_with_registers")
_DINOV2: Mapping[str, Any] = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
_LARGEST = 4096
_TRIED = ((61, 90), (83, 57), (5, 3))
"""Heights and widths of images on which a recipe is compared with the processor, beside one larger than its own."""


def processor_recipe(record: Mapping[str, Any] | None, name: str, config: Any, transformers: Any) -> Preprocess | None:
    """What `AutoImageProcessor` of the installed transformers does by default (its torchvision backend), on images as
    its `load_image` opens them: upright, and without transparency.

    record: what the folder says of its processor; where it says nothing, the model type's own processor counts, for
        DINOv2, which has none of its own, that of its published models, and None is returned where there is none
    name: of the file with the record, for messages
    config: the model's, whose image size counts where the record has none

    Raises UserError where transformers does not take the record, and where its processor does more than resize, crop,
    rescale and normalise.
    """
    # Older versions read null as the processor's own; this one refuses it.
    nulls = [key for key in ("image_mean", "image_std") if record and key in record and record[key] is None]
    published = record is None and getattr(config, "model_type", None) in _DINOV2_TYPES
    usual = _DINOV2 if published else record or {}
    given = {key: value for key, value in usual.items() if key not in ("auto_map", *nulls)}
    try:
        processor = _make(given, config, transformers)
    except Exception as error:  # transformers refuses with many kinds of exception.
        if record is None:
            return None
        raise _refusal(name, in_a_line(error)) from error
    kind = type(processor).__name__
    if record is None:
        missing, name = name, f"the defaults of {getattr(config, 'model_type', kind)} (there is no {name})"
        origin = "published DINOv2 models'" if published else f"{kind}'s defaults"
        origin += f", as there is no {missing}"
    else:
        origin = f"{kind}'s, from {name}"
    origin += f", whose {' and '.join(nulls)} {'are' if len(nulls) > 1 else 'is'} null" if nulls else ""
    try:
        plain = _read(processor, name, getattr(config, "num_channels", 3))
        # DINOv3's rescales first and resizes numbers that are no bytes any more.
        recipe = next(each for each in (plain, replace(plain, resampler="torch-float")) if _agrees(each, processor))
    except UserError:
        raise
    except StopIteration:
        raise _refusal(name, f"{kind} does more than resize, crop, rescale and normalise") from None
    except Exception as error:
        raise _refusal(name, in_a_line(error)) from error
    if (published or not {"size", "crop_size"} & given.keys()) and (own := _own_size(config)):
        recipe = recipe.at(own)
    return replace(recipe, origin=origin)


def _refusal(name: str, reason: str) -> UserError:
    return UserError(f"the preprocessing in {name} can't be followed ({reason}): correct it, or save a plain one")


def _make(record: Mapping[str, Any], config: Any, transformers: Any) -> Any:
    """The processor that transformers makes of a folder with this record, from its own code alone."""
    with temporary_folder() as folder:
        (folder / "preprocessor_config.json").write_text(json.dumps(record), encoding="utf-8")
        return transformers.AutoImageProcessor.from_pretrained(
            folder, config=config, local_files_only=True, trust_remote_code=False
        )


def _read(processor: Any, name: str, channels: int) -> Preprocess:
    size, resize = _geometry(processor, name)
    mean, std = _normalisation(processor, channels)
    return Preprocess(
        size=size,
        interpolation=_RESAMPLE[int(processor.resample)] if processor.do_resize else "bilinear",
        mean=mean,
        std=std,
        resize=resize,
        corner="down",
        reader=UPRIGHT,
        bgr=bool(getattr(processor, "do_flip_channel_order", False)),
    )


def _geometry(processor: Any, name: str) -> tuple[tuple[int, int], Resize | None]:
    """The size of the model's images, and what they are resized to before a crop."""
    crop = _pair(processor.crop_size) if getattr(processor, "do_center_crop", False) else None
    if not processor.do_resize:
        if crop is None:
            raise _refusal(name, "it neither resizes nor crops, so that images differ in size")
        return crop, Resize(crop, "none")
    exact, edge = _pair(processor.size), getattr(processor.size, "shortest_edge", None)
    if exact is None and (edge is None or getattr(processor.size, "longest_edge", None)):
        sizes = {key: value for key, value in dict(processor.size).items() if value is not None}
        raise UserError(f"{name} gives the image size as {sizes}: give height and width, or shortest_edge and a crop")
    if exact is None and crop is None:
        raise _refusal(name, f"the shortest edge becomes {edge} without a crop, so that images differ in size")
    to: tuple[int, int] = exact or (edge, edge)  # type: ignore[assignment]
    if max(*to, *(crop or to)) > _LARGEST:
        raise _refusal(name, f"images of {max(*to, *(crop or to))} pixels are too large")
    return (to, None) if crop is None else (crop, Resize(to, "both" if exact else "shortest"))


def _pair(size: Any) -> tuple[int, int] | None:
    height, width = getattr(size, "height", None), getattr(size, "width", None)
    return (height, width) if height and width else None


def _normalisation(processor: Any, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels of 0 to 1: (factor · x + offset − mean) / std in other words."""
    factor = float(processor.rescale_factor) * 255 if processor.do_rescale else 255.0
    offset = -1.0 if processor.do_rescale and getattr(processor, "rescale_offset", False) else 0.0
    normalise = processor.do_normalize
    means = _values(processor.image_mean if normalise else 0.0, channels)
    stds = _values(processor.image_std if normalise else 1.0, channels)
    mean, std = tuple((value - offset) / factor for value in means), tuple(value / factor for value in stds)
    if getattr(processor, "do_flip_channel_order", False):
        mean, std = mean[::-1], std[::-1]
    return mean, std


def _values(given: float | Sequence[float], channels: int) -> tuple[float, ...]:
    values = tuple(given) if isinstance(given, Sequence) else (float(given),)
    return values * channels if len(values) == 1 else values


def _own_size(config: Any) -> tuple[int, int] | None:
    # A classifier of CLIP's or SigLIP's has its tower's configuration inside.
    tower = getattr(config, "vision_config", None)
    match getattr(config if tower is None else tower, "image_size", None):
        case int() as side:
            return side, side
        case [int() as height, int() as width]:
            return height, width
    return None


def _agrees(recipe: Preprocess, processor: Any) -> bool:
    for image in _images(recipe):
        own: Tensor = processor(image, return_tensors="pt")["pixel_values"][0].float()
        pixels = recipe(F.pil_to_tensor(image))
        scale = max(1.0, float(own.abs().max()))
        # Written so that NaN fails.
        if pixels.shape != own.shape or not float((pixels - own).abs().max()) <= _TOLERANCE * scale:
            return False
    return True


def _images(recipe: Preprocess) -> Iterator[Image.Image]:
    generator = np.random.default_rng(0)
    larger = recipe.size[0] + 41, recipe.size[1] + 83
    for height, width in (*_TRIED, larger):
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        yield Image.fromarray(pixels if recipe.channels == 3 else pixels[..., 0])
