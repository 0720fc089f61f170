"""The model to train, from scratch or from existing weights, with the data's classes."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.vision_transformer import interpolate_embeddings

from vitfx.images.preprocess import Preprocess
from vitfx.models.architectures import arch_factory, arch_sizes, build_from_arch, choose_for_arch
from vitfx.models.factory import build_from_factory, import_extra
from vitfx.models.image_size import Size, shown
from vitfx.models.model_file import read_model_file
from vitfx.models.record import CHECKPOINT_FORMAT, read_record
from vitfx.models.vit import ViT
from vitfx.models.weights import check_finite
from vitfx.support.errors import UserError
from vitfx.training.config import ModelConfig

_OWN = "vitfx.models:ViT"
_POSITIONS = ("positions", "pos_embed", "encoder.pos_embedding")


@dataclass(frozen=True)
class TrainModel:
    """A model and how a checkpoint describes it."""

    module: nn.Module
    factory: str  #: makes the module from `kwargs`
    kwargs: dict[str, Any]  #: without dropout
    preprocess: Preprocess
    notes: tuple[str, ...] = ()  #: for the user


def new_model(config: ModelConfig, preprocess: Preprocess, classes: int) -> TrainModel:
    """The architecture, with weights drawn from torch's generator. Raises UserError where there is no such model.

    preprocess: for images of the configuration's size.
    """
    if config.arch == "vit":
        kwargs: dict[str, Any] = {
            "image_size": _side_or_sides(config.size),
            "patch_size": config.patch,
            "channels": preprocess.channels,
            "classes": classes,
            "width": config.width,
            "depth": config.depth,
            "heads": config.heads,
            "mlp": config.mlp,
        }
        return _built(_OWN, kwargs, config, preprocess)
    factory, named = arch_factory(config.arch)
    # There are no weights to read sizes from, but names that the library does not know are refused.
    arch_sizes(config.arch, {}, config.arch)
    kwargs = named | {"num_classes": classes}
    if preprocess.channels != 3:
        if not factory.startswith("timm"):
            raise UserError(
                f"{config.arch} takes images of 3 channels, but images.mean has {preprocess.channels}: give three "
                "values for images.mean and images.std, such as `set` images.mean=[0.5,0.5,0.5]"
            )
        kwargs["in_chans"] = preprocess.channels
    return _sized(factory, kwargs, config, preprocess)


def model_from(
    init: str,
    arch: str | None,
    config: ModelConfig,
    classes: Sequence[str],
    image_size: int | Size | None,
    which: str | None = None,
) -> TrainModel:
    """A model with the weights in the file `init`, and a new classifier if the classes differ.

    init: a vitfx checkpoint; or bare weights, with `arch` ("timm:NAME", "torchvision:NAME").
    which: "ema" or "raw", where bare weights have both.
    image_size: if it is not that of the weights, positions are interpolated, where the model has them.

    The preprocessing is that of the weights, at this size. Raises UserError for weights that do not fit.
    """
    path = Path(init)
    if not path.is_file():
        raise UserError(
            f"`init` {init} is not a file: give a vitfx checkpoint or weights saved with torch or safetensors"
        )
    contents = read_model_file(path, trust_pickle=False)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    known: Sequence[str] | None = None
    taken: str | None = None
    if isinstance(contents, Mapping) and "format" in contents:
        if which is not None:
            raise UserError(f"{init} has only one set of weights, so `weights` {which} is not needed: leave it out")
        factory, kwargs, weights, preprocess = _from_record(contents, init, arch)
        known = contents.get("classes")
    else:
        if arch is None or arch == "vit":
            raise UserError(f"{init} has only weights: name their model with `arch`, as timm:… or torchvision:…")
        chosen = choose_for_arch(arch, contents, init, which)
        weights, taken = chosen.weights, chosen.note
        factory, named = arch_factory(arch)
        built = build_from_arch(arch, weights, chosen.source, size, at_most=True)
        kwargs, preprocess = named | built.sizes, built.preprocess
        taken = "; ".join(text for text in (taken, built.image_size.note) if text) or None
    check_finite(weights, init)
    same = known is None or list(known) == list(classes)
    notes = [f"{init}: {len(weights)} tensors, trained on images {preprocess} ({preprocess.origin})"]
    kwargs = kwargs | {"classes" if factory == _OWN else "num_classes": len(classes)}
    notes += [taken] if taken else []
    if size is None or size == preprocess.size:
        made = _built(factory, kwargs, config, preprocess)
    else:
        made = _sized(factory, kwargs, config, preprocess.at(size))
        changed = "positions are interpolated" if any(name in weights for name in _POSITIONS) else "images are resized"
        notes.append(f"{changed} to {shown(size)}")
    fresh = _load(made.module, weights, init, None if size is None else preprocess.size, keep_classifier=same)
    if fresh:
        notes.append(f"the classifier ({', '.join(fresh)}) is new, for {len(classes)} classes")
    return replace(made, notes=(*notes, *made.notes))


def _sized(factory: str, kwargs: dict[str, Any], config: ModelConfig, preprocess: Preprocess) -> TrainModel:
    """The model for images of the preprocessing's size, which its factory is given if it takes one."""
    height, width = preprocess.size
    own: dict[str, Any] = {"image_size": height}
    if factory.startswith("timm"):
        own = {"img_size": _side_or_sides(preprocess.size)}
    elif factory == _OWN:
        own = {"image_size": _side_or_sides(preprocess.size)}
    elif height != width:
        # torchvision's ViTs are square; its other models take images of any size.
        return _built(factory, kwargs, config, preprocess)
    try:
        return _built(factory, kwargs | own, config, preprocess)
    except UserError as error:
        # Convolutional models take images of any size and have no such argument.
        if not isinstance(error.__cause__, TypeError):
            raise
        return _built(factory, kwargs, config, preprocess)


def _side_or_sides(size: Size) -> int | list[int]:
    """One side of square images, as checkpoints have it."""
    height, width = size
    return height if height == width else [height, width]


def _from_record(
    record: Mapping[str, Any], init: str, arch: str | None
) -> tuple[str, dict[str, Any], dict[str, Tensor], Preprocess]:
    if record["format"] != CHECKPOINT_FORMAT:
        raise UserError(f"{init} has the format {record['format']!r}: `init` takes {CHECKPOINT_FORMAT} or bare weights")
    if arch not in (None, "vit"):
        raise UserError(f"{init} names its own model, which `arch` {arch} can't change: leave out `arch`")
    checked = read_record(record, init)
    if checked.preprocess is None:
        raise UserError(f"{init} has no preprocessing: write it with vitfx.models.checkpoint.save_checkpoint")
    return checked.factory, dict(checked.kwargs), checked.weights, checked.preprocess


def _built(factory: str, kwargs: dict[str, Any], config: ModelConfig, preprocess: Preprocess) -> TrainModel:
    """The module, with as much of the configuration's dropout as the factory takes."""
    notes: list[str] = []
    name = str(kwargs.get("model_name", kwargs.get("name", factory)))
    names = _dropout_names(factory)
    wanted = {names[key]: value for key in names if (value := getattr(config, key))}
    for key in ("dropout", "attention_dropout", "drop_path"):
        if key not in names and getattr(config, key):
            notes.append(f"{factory} has no {key}: model.{key} does nothing")
    module = _try(factory, kwargs | wanted)
    if module is None:
        refused = [key for key, value in wanted.items() if _try(factory, kwargs | {key: value}) is None]
        taken = {key: value for key, value in wanted.items() if key not in refused}
        module = build_from_factory(factory, kwargs | taken)
        notes.append(f"{name} takes no {' or '.join(refused)}")
    plain = {key: value for key, value in kwargs.items() if key not in set(names.values())}
    return TrainModel(_answering(module, preprocess, name), factory, plain, preprocess, tuple(notes))


def _try(factory: str, kwargs: dict[str, Any]) -> nn.Module | None:
    """The model, or None where a library refuses these arguments. vitfx's own raises its UserError instead."""
    try:
        return build_from_factory(factory, kwargs)
    except UserError:
        if factory == _OWN:
            raise
        return None


def _dropout_names(factory: str) -> dict[str, str]:
    """The configuration's keys, and the factory's names for them."""
    if factory == _OWN:
        return {"dropout": "dropout", "attention_dropout": "attention_dropout", "drop_path": "drop_path"}
    if factory.startswith("timm"):
        return {"dropout": "drop_rate", "attention_dropout": "attn_drop_rate", "drop_path": "drop_path_rate"}
    if factory.startswith("torchvision"):
        return {"dropout": "dropout", "attention_dropout": "attention_dropout"}
    return {}


def _answering(module: nn.Module, preprocess: Preprocess, name: str) -> nn.Module:
    shape = (2, preprocess.channels, *preprocess.size)
    try:
        with torch.no_grad():
            answer = module.eval()(torch.zeros(shape))
            # Auxiliary classifiers answer only in training. A copy, because running statistics change.
            with torch.random.fork_rng(devices=[]):
                trained = copy.deepcopy(module).train()(torch.zeros(shape))
    except Exception as error:  # Models raise what they like on images of another size.
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name} does not take images of {shape[1]}×{shape[2]}×{shape[3]} ({reason}): give its `image_size`"
        ) from error
    for logits, mode in ((answer, ""), (trained, " in training mode")):
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise UserError(f"{name} does not return (B, classes) logits{mode}: give a classifier")
    return module


def _load(
    module: nn.Module, weights: Mapping[str, Tensor], init: str, trained: Size | None, *, keep_classifier: bool
) -> list[str]:
    """Loads everything, except the classifier if it differs, and returns the names that were not loaded.

    trained: the size of the weights' own images, where these may be others.
    """
    own = module.state_dict()
    given = dict(weights)
    if trained is not None:
        given |= {
            name: _resampled(module, given[name], own[name], trained)
            for name in _POSITIONS
            if name in given and name in own
        }
    classifier = _classifier(module)
    fresh = [
        name
        for name in own
        if name in classifier and (not keep_classifier or given.get(name, own[name][:0]).shape != own[name].shape)
    ]
    wanted = {name for name in own if name not in fresh}
    unfit = sorted(wanted ^ (given.keys() - set(fresh)))
    unfit += [name for name in sorted(wanted & given.keys()) if given[name].shape != own[name].shape]
    if unfit:
        raise UserError(
            f"{len(unfit)} tensors of {init} do not fit the model (first: {unfit[0]}): "
            "name the model that they were saved from"
        )
    module.load_state_dict({name: given[name] for name in wanted} | {name: own[name] for name in fresh})
    return fresh


def _classifier(module: nn.Module) -> set[str]:
    """The parameters of the last linear layer, or of the layers that timm calls the classifier."""
    named = getattr(module, "default_cfg", {}).get("classifier")
    last = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)][-1:]
    layers = last if not named else [named] if isinstance(named, str) else list(named)
    return {f"{layer}.{name}" for layer in layers for name in ("weight", "bias")}


def _resampled(module: Any, positions: Tensor, own: Tensor, trained: Size) -> Tensor:
    """(1, 1 + n², D) -> the shape of `own`, bicubic, by the model's own library. trained: the size of its images."""
    if hasattr(module, "num_prefix_tokens"):
        layers = import_extra("timm", "timm").layers
        grid, patch = module.patch_embed.grid_size, module.patch_embed.patch_size
        before = [side // of for side, of in zip(trained, patch, strict=True)]
        prefix = 0 if getattr(module, "no_embed_class", False) else module.num_prefix_tokens
        if before == list(grid) or positions.ndim != 3 or positions.shape[1] != prefix + before[0] * before[1]:
            return positions
        resampled: Tensor = layers.resample_abs_pos_embed(positions, list(grid), before, num_prefix_tokens=prefix)
        return resampled
    if isinstance(module, ViT):
        before = [side * of // whole for side, of, whole in zip(trained, module.grid, module.image_size, strict=True)]
        if before == list(module.grid) or positions.shape[1:2] != (1 + before[0] * before[1],):
            return positions
        grid = positions[:, 1:].unflatten(1, before).permute(0, 3, 1, 2)
        patches = F.interpolate(grid, module.grid, mode="bicubic", align_corners=True).flatten(2).mT
        return torch.cat([positions[:, :1], patches], dim=1)
    if positions.shape == own.shape:
        return positions
    side = round((own.shape[1] - 1) ** 0.5)
    # In units of patches: lengths alone give their number.
    key = "encoder.pos_embedding"
    interpolated: Tensor = interpolate_embeddings(side, 1, OrderedDict({key: positions}))[key]
    return interpolated
