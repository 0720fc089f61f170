"""Models of torchvision and timm by name, their sizes inferred from a bare state_dict's shapes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torchvision
from torch import nn

from vitfx.images.preprocess import ASSUMED, Preprocess
from vitfx.models.factory import ARGUMENTS, check_arguments, import_extra, is_classifier, timm_arguments
from vitfx.models.huggingface import default_recipe
from vitfx.models.image_size import ImageSize, Size, infer_size
from vitfx.models.recipes import timm_recipe, torchvision_recipe
from vitfx.models.state_dicts import ChosenWeights, choose_weights, tensor_names
from vitfx.models.weights import load_weights
from vitfx.support.errors import UserError, in_a_line

KNOWN_ARCHES = "torchvision:NAME, timm:NAME or hf:DIR"
_PATCHES = {"timm": "patch_embed.proj.weight", "torchvision": "conv_proj.weight"}
_REGISTERS = "reg_tokens"


@dataclass(frozen=True)
class Built:
    """A library's model with weights in it."""

    module: nn.Module
    preprocess: Preprocess
    sizes: dict[str, Any]  #: the factory's arguments beside the name, see `arch_factory`
    image_size: ImageSize  #: how its images' size is known


def build_from_arch(
    arch: str, weights: Mapping[str, torch.Tensor], source: str, size: Size | None = None, *, at_most: bool = False
) -> Built:
    """The module that `arch` ("torchvision:vit_b_16", "timm:NAME") names, holding `weights`, and its preprocessing.

    The number of classes comes from the classifier's rows, and the preprocessing from the library.

    size: of its images as the user gave it, (height, width), see `vitfx.models.image_size.infer_size`
    at_most: take this size only where the weights fit it

    Raises UserError for a name that the library does not know and for weights that do not fit.
    """
    library, name, _ = _split(arch)
    sizes, image_size = arch_sizes(arch, weights, source, size, at_most=at_most)
    try:
        if library == "timm":
            module = import_extra("timm", "timm").create_model(name, pretrained=False, **timm_arguments(sizes))
            preprocess = timm_preprocess(module)
        else:
            module = torchvision.models.get_model(name, weights=None, **sizes)
            preprocess = torchvision_recipe(name, image_size.size)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(
            f"`arch` {arch} cannot be made with the sizes of {source} ({in_a_line(error)}): "
            "name the model that it was saved from"
        ) from error
    load_weights(module, weights, arch, source)
    return Built(module, preprocess, sizes, image_size)


def arch_factory(arch: str) -> tuple[str, dict[str, Any]]:
    """What a checkpoint names as factory and first arguments of the model that `arch` names; raises UserError."""
    library, name, options = _split(arch)
    if library == "timm":
        return "timm:create_model", {"model_name": name, **options}
    return "torchvision.models:get_model", {"name": name, **options}


def choose_for_arch(arch: str, contents: Any, source: str, which: str | None = None) -> ChosenWeights:
    """The weights in `contents` that belong to `arch`, see `vitfx.models.state_dicts.choose_weights`."""
    library, name, options = _split(arch)
    implied = _implied(library, name, options, tensor_names(contents))
    wanted = _on_meta(library, name, options | implied).state_dict().keys()
    chosen = choose_weights(contents, wanted, arch, source, which)
    notes = [chosen.note] if chosen.note else []
    notes += ["model: global_pool=avg, as the weights have fc_norm"] if "global_pool" in implied else []
    notes += (
        [f"model: reg_tokens={_registers(chosen.weights)}, as the weights have them"] if _REGISTERS in implied else []
    )
    return replace(chosen, note="; ".join(notes) or None)


def arch_sizes(
    arch: str, weights: Mapping[str, torch.Tensor], source: str, size: Size | None = None, *, at_most: bool = False
) -> tuple[dict[str, Any], ImageSize]:
    """What `weights` show of the model and what `arch` gives, as arguments of `arch_factory`'s factory, and how the
    images' size is known.

    Of all models the number of classes and the images' size; of timm's also the channels, registers, and the mean
    over patches where the norm stands behind it. `source`, `size` and `at_most` are those of `build_from_arch`.

    Raises UserError for a name that the library does not know and for a size that does not fit.
    """
    library, name, options = _split(arch)
    options = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    implied = _implied(library, name, options, weights.keys())
    if _REGISTERS in implied:
        implied[_REGISTERS] = _registers(weights)
    default = _on_meta(library, name, options | implied)
    sizes = _classes(weights, _heads(library, default))
    patches, own = weights.get(_PATCHES[library]), default.state_dict().get(_PATCHES[library])
    if library == "timm" and patches is not None and own is not None and patches.ndim == 4:
        sizes |= {"in_chans": patches.shape[1]} if patches.shape[1] != own.shape[1] else {}
    sizes |= implied
    argument, positions, prefix, usual = _positions(library, default)
    image_size = infer_size(
        weights, positions, _PATCHES[library], prefix=prefix, usual=usual,
        given=size or (usual if argument in options else None), source=source, at_most=at_most,
        square=library == "torchvision",
    )  # fmt: skip
    if image_size.size is None or usual is None:
        return sizes | options, image_size
    height, width = image_size.size
    return sizes | options | {argument: height if height == width else [height, width]}, image_size


def _heads(library: str, default: Any) -> list[str]:
    """The names of the classifiers' weights."""
    if library == "torchvision":
        return [key for key, value in default.state_dict().items() if value.ndim == 2][-1:]
    heads = default.default_cfg.get("classifier", ())
    return [f"{head}.weight" for head in ([heads] if isinstance(heads, str) else heads)]


def _positions(library: str, default: Any) -> tuple[str, str, int, Size | None]:
    """The argument for the images' size, the name of the position embedding, how many positions are not patches',
    and the size of the model's images."""
    if library == "torchvision":
        side: int | None = getattr(default, "image_size", None)
        return "image_size", "encoder.pos_embedding", 1, (side, side) if side else None
    size = getattr(getattr(default, "patch_embed", None), "img_size", None)
    prefix = 0 if getattr(default, "no_embed_class", False) else getattr(default, "num_prefix_tokens", 0)
    return "img_size", "pos_embed", prefix, (size[0], size[1]) if size else None


def _implied(library: str, name: str, options: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The arguments of a timm model that names of weights show, which may have prefixes: the mean over patches where
    the norm stands behind it, and registers, whose number their shape has."""
    if library != "timm":
        return {}
    own = _on_meta(library, name, options).state_dict().keys()
    implied: dict[str, Any] = {}
    if "fc_norm.weight" not in own and "norm.weight" in own and "global_pool" not in options:
        implied |= {"global_pool": "avg"} if any(key.endswith("fc_norm.weight") for key in names) else {}
    if "reg_token" not in own and "cls_token" in own and _REGISTERS not in options:
        implied |= {_REGISTERS: 1} if any(re.search(r"(^|\.)reg_token$", key) for key in names) else {}
    return implied


def _registers(weights: Mapping[str, torch.Tensor]) -> int:
    tokens = weights.get("reg_token")
    return tokens.shape[1] if tokens is not None and tokens.ndim == 3 else 1


def _split(arch: str) -> tuple[str, str, dict[str, Any]]:
    """The library, the model's name and the arguments that `arch` gives it, as in timm:NAME,in_chans=1."""
    library, _, rest = arch.partition(":")
    name, *given = rest.split(",")
    if library not in ARGUMENTS or not name or ":" in name:
        raise UserError(f"`arch` {arch} is not one of {KNOWN_ARCHES}: give one of these")
    if not is_classifier(library, name):
        raise UserError(f"`arch` {arch} cannot be made: {library} has no image classifier of this name, so correct it")
    options = {}
    for argument in given:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"`arch` {arch} has {argument!r}: give arguments as NAME=VALUE, such as in_chans=1")
        options[key.strip()] = _value(value.strip())
    check_arguments(options, ARGUMENTS[library], f"the argument in `arch` {arch},")
    return library, name, options


def _value(text: str) -> bool | int | float | str | Size | None:
    if size := re.fullmatch(r"(\d{1,6})x(\d{1,6})", text, re.ASCII):
        return int(size[1]), int(size[2])
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
    size: Any = getattr(module, "image_size", None) or getattr(config, "image_size", None)
    size = (size, size) if isinstance(size, int) else size
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(type(side) is int for side in size):
        return None
    return Preprocess(size=(size[0], size[1]), origin=ASSUMED)


def _on_meta(library: str, name: str, options: Mapping[str, Any]) -> Any:
    """The default model with `options`, without memory: only to read which sizes it takes."""
    try:
        with torch.device("meta"):
            if library == "timm":
                return import_extra("timm", "timm").create_model(name, pretrained=False, **timm_arguments(options))
            return torchvision.models.get_model(name, weights=None, **options)
    except (RuntimeError, ValueError, KeyError, TypeError, AssertionError) as error:
        given = "".join(f",{key}={value}" for key, value in options.items())
        advice = "correct its arguments" if options else "name another model"
        raise UserError(f"`arch` {library}:{name}{given} cannot be made ({in_a_line(error)}): {advice}") from error


def _classes(weights: Mapping[str, torch.Tensor], heads: list[str]) -> dict[str, Any]:
    rows = [weights[head].shape[0] for head in heads if head in weights]
    return {"num_classes": rows[0]} if rows else {}
