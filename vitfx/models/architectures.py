"""Models of torchvision and timm by name, their sizes inferred from a bare state_dict's shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isqrt
from typing import Any

import torch
import torchvision
from torch import nn

from vitfx.images.preprocess import Preprocess
from vitfx.models.factory import import_extra
from vitfx.models.weights import load_weights
from vitfx.support.errors import UserError

KNOWN_ARCHES = "torchvision:NAME, timm:NAME or hf:DIR"


def build_from_arch(arch: str, weights: Mapping[str, torch.Tensor], source: str) -> tuple[nn.Module, Preprocess]:
    """The module that `arch` ("torchvision:vit_b_16", "timm:NAME") names, holding `weights`, and its preprocessing.

    The number of classes comes from the classifier's rows, the image size from the position embedding's length,
    and the preprocessing from the library.

    Raises UserError for a name that the library does not know and for weights that do not fit.
    """
    library, name = _split(arch)
    if library == "timm":
        module, preprocess = _timm(name, weights)
    else:
        module, preprocess = _torchvision(name, weights)
    load_weights(module, weights, arch, source)
    return module, preprocess


def arch_factory(arch: str) -> tuple[str, dict[str, Any]]:
    """What a checkpoint names as factory and first argument of the model that `arch` names; raises UserError."""
    library, name = _split(arch)
    if library == "timm":
        import_extra("timm", "timm")
        return "timm:create_model", {"model_name": name}
    return "torchvision.models:get_model", {"name": name}


def arch_sizes(arch: str, weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """The number of classes and the image's side that `weights` show, as arguments of `arch_factory`'s factory.

    Raises UserError for a name that the library does not know.
    """
    library, name = _split(arch)
    return _timm_sizes(name, weights) if library == "timm" else _torchvision_sizes(name, weights)


def _split(arch: str) -> tuple[str, str]:
    library, _, name = arch.partition(":")
    if library not in ("torchvision", "timm") or not name or ":" in name:
        raise UserError(f"--arch {arch} is not one of {KNOWN_ARCHES}: give one of these")
    return library, name


def timm_preprocess(module: nn.Module) -> Preprocess:
    """The preprocessing that a timm model's own configuration names."""
    config = import_extra("timm", "timm").data.resolve_data_config({}, model=module)
    # The configuration goes on naming the size that the weights were published for, whatever the model was built for.
    size = getattr(getattr(module, "patch_embed", None), "img_size", None) or config["input_size"][1:]
    return Preprocess(
        size=tuple(size),
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _torchvision(name: str, weights: Mapping[str, torch.Tensor]) -> tuple[nn.Module, Preprocess]:
    models = torchvision.models
    sizes = _torchvision_sizes(name, weights)
    presets = [choice.transforms() for choice in models.get_model_weights(name)]
    fitting = [preset for preset in presets if list(preset.crop_size) == [sizes.get("image_size")]]
    preset = (fitting or presets)[0]
    side = sizes.get("image_size", preset.crop_size[0])
    preprocess = Preprocess(
        size=(side, side),
        interpolation=preset.interpolation.value,
        antialias=bool(preset.antialias),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
    return models.get_model(name, weights=None, **sizes), preprocess


def _torchvision_sizes(name: str, weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    default = _on_meta(lambda: torchvision.models.get_model(name, weights=None), f"torchvision:{name}")
    sizes = _classes(weights, [key for key, value in default.state_dict().items() if value.ndim == 2][-1:])
    positions, patches = weights.get("encoder.pos_embedding"), weights.get("conv_proj.weight")
    if positions is not None and patches is not None:
        sizes |= _image_size("image_size", positions.shape[1] - 1, patches.shape[-1])
    return sizes


def _timm(name: str, weights: Mapping[str, torch.Tensor]) -> tuple[nn.Module, Preprocess]:
    timm = import_extra("timm", "timm")
    module = timm.create_model(name, pretrained=False, **_timm_sizes(name, weights))
    return module, timm_preprocess(module)


def _timm_sizes(name: str, weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    timm = import_extra("timm", "timm")
    default: Any = _on_meta(lambda: timm.create_model(name, pretrained=False), f"timm:{name}")
    heads = default.default_cfg.get("classifier", ())
    sizes = _classes(weights, [f"{head}.weight" for head in ([heads] if isinstance(heads, str) else heads)])
    positions, patches = weights.get("pos_embed"), weights.get("patch_embed.proj.weight")
    if positions is not None and patches is not None and positions.ndim == 3 and patches.ndim == 4:
        prefix = 0 if getattr(default, "no_embed_class", False) else getattr(default, "num_prefix_tokens", 0)
        sizes |= _image_size("img_size", positions.shape[1] - prefix, patches.shape[-1])
    return sizes


def _on_meta(create: Callable[[], nn.Module], arch: str) -> nn.Module:
    """The default model without memory: only to read which sizes it takes."""
    try:
        with torch.device("meta"):
            return create()
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"--arch {arch} cannot be made ({error}): check the name against the library's list") from error


def _classes(weights: Mapping[str, torch.Tensor], heads: list[str]) -> dict[str, int]:
    rows = [weights[head].shape[0] for head in heads if head in weights]
    return {"num_classes": rows[0]} if rows else {}


def _image_size(argument: str, patches: int, patch_size: int) -> dict[str, int]:
    """The image's side, where the patches make a square; else nothing, and the shapes' misfit is told on loading."""
    side = isqrt(max(patches, 0))
    return {argument: side * patch_size} if side * side == patches and side else {}
