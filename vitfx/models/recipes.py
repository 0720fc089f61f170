"""The preprocessing that torchvision's and timm's own evaluation pipelines do, as a `Preprocess`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torchvision

from vitfx.images.decoding import PIL
from vitfx.images.geometry import Resize, covering
from vitfx.images.preprocess import Preprocess
from vitfx.models.factory import import_extra
from vitfx.support.errors import UserError, in_a_line


def torchvision_recipe(name: str, size: tuple[int, int] | None) -> Preprocess:
    """That of the published weights for images of this size, where there are any; else of the first weights, at it.

    name: of a torchvision classifier.

    Source: `torchvision.transforms._presets.ImageClassification`, on images as `ImageFolder` opens them.
    """
    weights = list(torchvision.models.get_model_weights(name))
    presets = [(choice, choice.transforms()) for choice in weights]
    choice, preset = next((pair for pair in presets if pair[1].crop_size * 2 == list(size or ())), presets[0])
    crop, resized = preset.crop_size[0], preset.resize_size[0]
    recipe = Preprocess(
        size=(crop, crop),
        interpolation=preset.interpolation.value,
        antialias=bool(preset.antialias),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        resize=Resize((resized, resized)),
        resampler="PIL",
        reader=PIL,
        origin=f"torchvision's, of {name} {choice.name}",
    )
    return recipe if size is None else recipe.at(size)


def timm_recipe(
    pretrained_cfg: Mapping[str, Any], name: str, size: tuple[int, int] | None, channels: int = 3
) -> Preprocess:
    """That of `timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg))`, on images as timm opens
    them, at this size where one is given.

    pretrained_cfg: a model's `pretrained_cfg`, or that of a `config.json`
    name: of the model, for messages

    Raises UserError for values that timm does not know.
    """
    try:
        config = import_extra("timm", "timm").data.resolve_data_config({}, pretrained_cfg=dict(pretrained_cfg))
        size = size or _pair(config["input_size"][-2:])
        mean, std = (_for_channels(config[part], channels) for part in ("mean", "std"))
        mode, crop_pct = config["crop_mode"], float(config["crop_pct"])
        edge = {"squash": "both", "border": "longest"}.get(mode, "shortest")
        return Preprocess(
            size=size,
            interpolation=config["interpolation"],
            mean=mean,
            std=std,
            resize=Resize(covering(size, crop_pct), edge, crop_pct),
            fill=tuple(round(255 * value) for value in mean) if mode == "border" else (),
            resampler="PIL",
            reader=PIL,
            origin=f"timm's, of {name}",
        )
    except (TypeError, ValueError, KeyError, IndexError, ArithmeticError) as error:
        raise UserError(
            f"timm's configuration of {name} holds no preprocessing ({in_a_line(error)}): correct its pretrained_cfg"
        ) from error


def _pair(size: Sequence[int]) -> tuple[int, int]:
    height, width = size
    return height, width


def _for_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Equal values are repeated for another number of channels; which others would be meant, nobody knows."""
    return (values[0],) * channels if len(set(values)) == 1 else tuple(values)
