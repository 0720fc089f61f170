"""Models of torchvision and timm by name, their sizes inferred from a bare state_dict's shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

import torch
import torchvision
from torch import nn

from vitfx.images.preprocess import ASSUMED, Preprocess
from vitfx.models.factory import ARGUMENTS, check_arguments, import_extra, is_classifier
from vitfx.models.huggingface import default_recipe
from vitfx.models.recipes import timm_recipe, torchvision_recipe
from vitfx.models.state_dicts import ChosenWeights, choose_weights, tensor_names
from vitfx.models.weights import load_weights
from vitfx.support.errors import UserError, in_a_line

KNOWN_ARCHES = "torchvision:NAME, timm:NAME or hf:DIR"


def build_from_arch(arch: str, weights: Mapping[str, torch.Tensor], source: str) -> tuple[nn.Module, Preprocess]:
    """The module that `arch` ("torchvision:vit_b_16", "timm:NAME") names, holding `weights`, and its preprocessing.

    The number of classes comes from the classifier's rows, the image size from the position embedding's length,
    and the preprocessing from the library.

    Raises UserError for a name that the library does not know and for weights that do not fit.
    """
    library, name, _ = _split(arch)
    sizes = arch_sizes(arch, weights)
    try:
        if library == "timm":
            module = import_extra("timm", "timm").create_model(name, pretrained=False, **sizes)
            preprocess = timm_preprocess(module)
        else:
            module = torchvision.models.get_model(name, weights=None, **sizes)
            side = sizes.get("image_size")
            preprocess = torchvision_recipe(name, None if side is None else (side, side))
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(
            f"--arch {arch} cannot be made with the sizes of {source} ({in_a_line(error)}): "
            "name the model that it was saved from"
        ) from error
    load_weights(module, weights, arch, source)
    return module, preprocess


def arch_factory(arch: str) -> tuple[str, dict[str, Any]]:
    """What a checkpoint names as factory and first arguments of the model that `arch` names; raises UserError."""
    library, name, options = _split(arch)
    if library == "timm":
        return "timm:create_model", {"model_name": name, **options}
    return "torchvision.models:get_model", {"name": name, **options}


def choose_for_arch(arch: str, contents: Any, source: str, which: str | None = None) -> ChosenWeights:
    """The weights in `contents` that belong to `arch`, see `vitfx.models.state_dicts.choose_weights`."""
    library, name, options = _split(arch)
    wanted = _on_meta(library, name, options).state_dict().keys()
    pooled = any(key.endswith("fc_norm.weight") for key in tensor_names(contents))
    if library == "timm" and pooled and "norm.weight" in wanted and "global_pool" not in options:
        wanted = _on_meta(library, name, options | {"global_pool": "avg"}).state_dict().keys()
        chosen = choose_weights(contents, wanted, arch, source, which)
        pooling = "model: global_pool=avg, as the weights have fc_norm"
        return replace(chosen, note=f"{chosen.note}; {pooling}" if chosen.note else pooling)
    return choose_weights(contents, wanted, arch, source, which)


def arch_sizes(arch: str, weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What `weights` show of the model and what `arch` gives, as arguments of `arch_factory`'s factory.

    Of all models the number of classes and the image's side; of timm's also the channels, and the mean over patches
    where the norm stands behind it. Raises UserError for a name that the library does not know.
    """
    library, name, options = _split(arch)
    default = _on_meta(library, name, options)
    if library == "timm":
        heads = default.default_cfg.get("classifier", ())
        sizes = _classes(weights, [f"{head}.weight" for head in ([heads] if isinstance(heads, str) else heads)])
        prefix = 0 if getattr(default, "no_embed_class", False) else getattr(default, "num_prefix_tokens", 0)
        sizes |= _image_size("img_size", weights, "pos_embed", "patch_embed.proj.weight", prefix)
        names = default.state_dict().keys()
        if "fc_norm.weight" in weights and "fc_norm.weight" not in names and "norm.weight" in names:
            sizes["global_pool"] = "avg"
        patches, own = weights.get("patch_embed.proj.weight"), default.state_dict().get("patch_embed.proj.weight")
        if patches is not None and own is not None and patches.ndim == 4 and patches.shape[1] != own.shape[1]:
            sizes["in_chans"] = patches.shape[1]
        return sizes | options
    sizes = _classes(weights, [key for key, value in default.state_dict().items() if value.ndim == 2][-1:])
    return sizes | _image_size("image_size", weights, "encoder.pos_embedding", "conv_proj.weight", 1) | options


def _split(arch: str) -> tuple[str, str, dict[str, Any]]:
    """The library, the model's name and the arguments that `arch` gives it, as in timm:NAME,in_chans=1."""
    library, _, rest = arch.partition(":")
    name, *given = rest.split(",")
    if library not in ARGUMENTS or not name or ":" in name:
        raise UserError(f"--arch {arch} is not one of {KNOWN_ARCHES}: give one of these")
    if not is_classifier(library, name):
        raise UserError(f"--arch {arch} cannot be made: {library} has no image classifier of this name, so correct it")
    options = {}
    for argument in given:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"--arch {arch} has {argument!r}: give arguments as NAME=VALUE, such as in_chans=1")
        options[key.strip()] = _value(value.strip())
    check_arguments(options, ARGUMENTS[library], f"the argument in --arch {arch},")
    return library, name, options


def _value(text: str) -> bool | int | float | str | None:
    words: dict[str, bool | None] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for make in (int, float):
        try:
            return make(text)
        except ValueError:
            continue
    return text


def timm_preprocess(module: nn.Module) -> Preprocess:
    """The preprocessing that a timm model's own configuration names, at the size that the model was built for."""
    patches: Any = getattr(module, "patch_embed", None)
    # The configuration goes on naming the size that the weights were published for.
    size = getattr(patches, "img_size", None)
    channels = getattr(getattr(patches, "proj", None), "in_channels", 3)
    config: Any = module.pretrained_cfg
    return timm_recipe(config, config.get("architecture") or type(module).__name__, size and tuple(size), channels)


def own_preprocess(module: nn.Module) -> Preprocess | None:
    """That of a model's own library, or the model's image size with ImageNet's mean and standard deviation."""
    if getattr(module, "pretrained_cfg", None):
        return timm_preprocess(module)
    config = getattr(module, "config", None)
    if hasattr(config, "model_type") and (recipe := default_recipe(config)):
        return recipe
    size = getattr(module, "image_size", None) or getattr(config, "image_size", None)
    return Preprocess(size=(size, size), origin=ASSUMED) if isinstance(size, int) else None


def _on_meta(library: str, name: str, options: Mapping[str, Any]) -> Any:
    """The default model with `options`, without memory: only to read which sizes it takes."""
    try:
        with torch.device("meta"):
            if library == "timm":
                return import_extra("timm", "timm").create_model(name, pretrained=False, **options)
            return torchvision.models.get_model(name, weights=None, **options)
    except (RuntimeError, ValueError, KeyError, TypeError, AssertionError) as error:
        given = "".join(f",{key}={value}" for key, value in options.items())
        advice = "correct its arguments" if options else "name another model"
        raise UserError(f"--arch {library}:{name}{given} cannot be made ({in_a_line(error)}): {advice}") from error


def _classes(weights: Mapping[str, torch.Tensor], heads: list[str]) -> dict[str, Any]:
    rows = [weights[head].shape[0] for head in heads if head in weights]
    return {"num_classes": rows[0]} if rows else {}


def _image_size(
    argument: str, weights: Mapping[str, torch.Tensor], positions: str, patches: str, prefix: int
) -> dict[str, Any]:
    """The image's side, where the patches make a square; else nothing, and loading reports the misfit.

    positions, patches: the names of the two weights that show it.
    prefix: how many positions are not patches'.
    """
    if not {positions, patches} <= weights.keys() or (weights[positions].ndim, weights[patches].ndim) != (3, 4):
        return {}
    count = max(weights[positions].shape[1] - prefix, 0)
    side = isqrt(count)
    return {argument: side * weights[patches].shape[-1]} if side * side == count and side else {}
