"""Models of torchvision and timm by name, their sizes inferred from a bare state_dict's shapes."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
import torchvision
from torch import nn

from vitfx.images.preprocess import Preprocess
from vitfx.models.factory import import_extra, is_classifier
from vitfx.models.recipes import timm_recipe, torchvision_recipe
from vitfx.models.weights import load_weights
from vitfx.support.errors import UserError, in_a_line

KNOWN_ARCHES = "torchvision:NAME, timm:NAME or hf:DIR"


def build_from_arch(arch: str, weights: Mapping[str, torch.Tensor], source: str) -> tuple[nn.Module, Preprocess]:
    """The module that `arch` ("torchvision:vit_b_16", "timm:NAME") names, holding `weights`, and its preprocessing.

    The number of classes comes from the classifier's rows, the image size from the position embedding's length,
    and the preprocessing from the library.

    Raises UserError for a name that the library does not know and for weights that do not fit.
    """
    library, name = _split(arch)
    sizes = arch_sizes(arch, weights)
    if library == "timm":
        module = import_extra("timm", "timm").create_model(name, pretrained=False, **sizes)
        preprocess = timm_preprocess(module)
    else:
        module = torchvision.models.get_model(name, weights=None, **sizes)
        side = sizes.get("image_size")
        preprocess = torchvision_recipe(name, None if side is None else (side, side))
    load_weights(module, weights, arch, source)
    return module, preprocess


def arch_factory(arch: str) -> tuple[str, dict[str, Any]]:
    """What a checkpoint names as factory and first argument of the model that `arch` names; raises UserError."""
    library, name = _split(arch)
    if library == "timm":
        return "timm:create_model", {"model_name": name}
    return "torchvision.models:get_model", {"name": name}


def arch_sizes(arch: str, weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """The number of classes and the image's side that `weights` show, as arguments of `arch_factory`'s factory.

    Raises UserError for a name that the library does not know.
    """
    library, name = _split(arch)
    default = _on_meta(library, name)
    if library == "timm":
        heads = default.default_cfg.get("classifier", ())
        sizes = _classes(weights, [f"{head}.weight" for head in ([heads] if isinstance(heads, str) else heads)])
        prefix = 0 if getattr(default, "no_embed_class", False) else getattr(default, "num_prefix_tokens", 0)
        return sizes | _image_size("img_size", weights, "pos_embed", "patch_embed.proj.weight", prefix)
    sizes = _classes(weights, [key for key, value in default.state_dict().items() if value.ndim == 2][-1:])
    return sizes | _image_size("image_size", weights, "encoder.pos_embedding", "conv_proj.weight", 1)


def _split(arch: str) -> tuple[str, str]:
    library, _, name = arch.partition(":")
    if library not in ("torchvision", "timm") or not name or ":" in name:
        raise UserError(f"--arch {arch} is not one of {KNOWN_ARCHES}: give one of these")
    if not is_classifier(library, name):
        raise UserError(f"--arch {arch} cannot be made: {library} has no image classifier of this name, so correct it")
    return library, name


def timm_preprocess(module: nn.Module) -> Preprocess:
    """The preprocessing that a timm model's own configuration names, at the size that the model was built for."""
    patches: Any = getattr(module, "patch_embed", None)
    # The configuration goes on naming the size that the weights were published for.
    size = getattr(patches, "img_size", None)
    channels = getattr(getattr(patches, "proj", None), "in_channels", 3)
    config: Any = module.pretrained_cfg
    return timm_recipe(config, config.get("architecture") or type(module).__name__, size and tuple(size), channels)


def _on_meta(library: str, name: str) -> Any:
    """The default model without memory: only to read which sizes it takes."""
    try:
        with torch.device("meta"):
            if library == "timm":
                return import_extra("timm", "timm").create_model(name, pretrained=False)
            return torchvision.models.get_model(name, weights=None)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"--arch {library}:{name} cannot be made ({in_a_line(error)}): name another model") from error


def _classes(weights: Mapping[str, torch.Tensor], heads: list[str]) -> dict[str, int]:
    rows = [weights[head].shape[0] for head in heads if head in weights]
    return {"num_classes": rows[0]} if rows else {}


def _image_size(
    argument: str, weights: Mapping[str, torch.Tensor], positions: str, patches: str, prefix: int
) -> dict[str, int]:
    """The image's side, where the patches make a square; else nothing, and loading reports the misfit.

    positions, patches: the names of the two weights that show it.
    prefix: how many positions are not patches'.
    """
    if not {positions, patches} <= weights.keys() or (weights[positions].ndim, weights[patches].ndim) != (3, 4):
        return {}
    count = max(weights[positions].shape[1] - prefix, 0)
    side = isqrt(count)
    return {argument: side * weights[patches].shape[-1]} if side * side == count and side else {}
