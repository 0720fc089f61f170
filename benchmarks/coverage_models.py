"""timm's ViT-like models, each built small."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

from vitfx.support.errors import UserError

CLASSES = (
    "VisionTransformer",
    "VisionTransformerDistilled",
    "VisionTransformerRelPos",
    "Eva",
    "Beit",
    "NaFlexVit",
    "Cait",
    "Xcit",
    "VisionTransformerSAM",
    "Qwen3VitClassifier",
    "Qwen3VitEncoder",
    "Gemma4VitClassifier",
    "Gemma4VitEncoder",
    "DeepseekVitClassifier",
    "DeepseekVitEncoder",
)
"""timm's classes of plain, isotropic transformers."""
_MODULES = (
    "vision_transformer",
    "vision_transformer_hybrid",
    "vision_transformer_relpos",
    "vitamin",
    "deit",
    "eva",
    "beit",
    "naflexvit",
    "cait",
    "xcit",
    "vision_transformer_sam",
    "qwen3_vit",
    "gemma4_vit",
    "deepseek_vit",
)
"""timm's modules that build them: to look at every one of its 1,300 names takes minutes."""
_GRID, _DEPTH, _GREATEST = 4, 2, 100e6


def model_names(pattern: str) -> Iterator[tuple[str, str]]:
    """Names and classes of timm's ViT-like models."""
    import timm

    for module in _MODULES:
        for name in timm.list_models(pattern, module=module):
            kind = _class_of(name)
            if kind in CLASSES:
                yield name, kind


def _class_of(name: str) -> str:
    import timm

    # A model on the meta device has its class and no weights.
    with torch.device("meta"):
        try:
            one_layer: dict[str, Any] = {} if "xcit" in name else {"depth": 1}
            return type(timm.create_model(name, **one_layer)).__name__
        except (TypeError, ValueError, AssertionError, RuntimeError):
            return type(timm.create_model(name)).__name__


def build(name: str) -> nn.Module:
    """A small model of this name: few layers and tokens, its kinds of parts untouched. Raises UserError."""
    import timm

    patch = int(name.split("patch")[1].split("_")[0]) if "patch" in name else 16
    sizes: dict[str, Any] = {"depth": _DEPTH, "num_classes": 7}
    widths, image = {"embed_dim": 96, "num_heads": 3}, {"img_size": _GRID * patch}
    grouped: dict[str, Any] = {"embed_dim": 96, "num_heads": 4, "num_kv_heads": (2, 4)}
    more: dict[str, Any]
    for more in (widths | image, grouped | image, image, widths, {}):
        try:
            with torch.device("meta"):
                size = sum(weight.numel() for weight in timm.create_model(name, **sizes, **more).parameters())
            if size < _GREATEST:
                return timm.create_model(name, **sizes, **more).eval()
        except (TypeError, ValueError, AssertionError, RuntimeError):
            continue
    raise UserError(f"{name} can't be built small")


def image_shape(model: nn.Module) -> tuple[int, ...]:
    """(channels, height, width) that a model of `build` takes."""
    channels, height, width = cast("dict[str, Any]", model.pretrained_cfg)["input_size"]
    patches = getattr(model, "patch_embed", getattr(model, "embeds", None))
    return channels, *(getattr(patches, "img_size", None) or (height, width))
