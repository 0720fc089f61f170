"""The classes that a user asked for, and the model that answers them alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import index
from typing import Any

import torch
from torch import nn

from vitfx.graph.chosen_classes import ChosenClasses
from vitfx.images.classes import imagenet_ids
from vitfx.images.image_set import Images
from vitfx.images.selection import Selection, read_asked, select_classes
from vitfx.models.checkpoint import LoadedModel
from vitfx.models.chosen import chosen_of, keep_only
from vitfx.models.huggingface import names_in_config
from vitfx.support.errors import UserError
from vitfx.support.progress import Watcher

Asked = str | Sequence[str | int]
"""A file or text with commas, or names and numbers one by one."""


def choose(
    model: LoadedModel,
    asked: Asked,
    every: Sequence[str] | None,
    logits: int,
    data: str | None = None,
    *,
    other: bool = False,
) -> LoadedModel:
    """The model with these of its logits alone; the model itself where they are all of its logits, in order.

    every: the names of its logits, None where they have none. data: the data set, which may say ids in words.
    other: whether one more logit stands for all others. Raises UserError.
    """
    names = _asked_for(asked)
    every = _or_imagenet(every, names, logits)
    before = chosen_of(model) or Selection(tuple(range(logits)), logits, every)
    if before.other is not None and every is not None:
        if before.other in names:
            raise UserError(f"`classes` names {before.other!r}, the model's class for all others: give `other` instead")
        every = every[:-1]
    positions = select_classes(names, every, len(before.positions), data)
    if positions == tuple(range(logits)) and not other:
        return model
    return keep_only(model, positions, before.then(positions, other=other))


def choose_given(module: nn.Module, images: Images, asked: Asked, *, other: bool = False) -> tuple[nn.Module, Images]:
    """The same for a module and images in memory, of which those of these classes are left; all where they have no
    labels or others have a logit. Raises UserError."""
    every = names_in_config(module)
    with torch.no_grad():
        answers = module(images.pixels[:2])
    count = len(every) if answers.dim() != 2 and every else answers.shape[-1]
    names = _asked_for(asked)
    every = _or_imagenet(every, names, count)
    positions = select_classes(names, every, count)
    if positions == tuple(range(count)) and not other:
        return module, images
    selection = Selection(tuple(range(count)), count, every).then(positions, other=other)
    chosen = ChosenClasses(module, positions, selection, images.pixels[:2]).eval()
    if images.labels is None:
        return chosen, images
    if images.labels.dim() > 1 or images.labels.is_floating_point():
        raise UserError("`classes` is for images of one class each: give integers as labels, one an image")
    places = images.labels[:, None] == torch.tensor(positions)
    kept = places.any(1)
    if int(kept.sum()) < 2:
        raise UserError(f"{int(kept.sum())} of the {len(images)} images are of the chosen classes: give 2 or more")
    if other:
        labels = torch.where(kept, places.int().argmax(1), len(positions))
        return chosen, replace(images, labels=labels)
    return chosen, replace(images.subset(kept.nonzero().flatten()), labels=places[kept].int().argmax(1))


def own_classes(settings: Mapping[str, Any], asked: Asked | None, *, other: bool) -> tuple[Asked | None, bool]:
    """The classes that were asked for, else those of a circuit, None for all, and whether all others have a logit.

    settings: of the circuit, empty without one.
    """
    classes = settings.get("classes")
    if asked is not None or classes is None:
        return asked, other
    return (classes[:-1], True) if settings.get("other") else (classes, other)


def say_choice(module: nn.Module, images: Images, watcher: Watcher) -> None:
    """Which classes were chosen, where some were. images: those that are left."""
    if isinstance(module, ChosenClasses):
        chosen = module.chosen
        left = f"{len(images):,} are left of the images"
        if chosen.other is not None and images.labels is not None:
            left += f", {int((images.labels == len(chosen.positions)).sum()):,} of them of the other classes"
        watcher.say(chosen.sentence if images.labels is None else f"{chosen.sentence}: {left}")


def _or_imagenet(every: Sequence[str] | None, names: Sequence[str | int], logits: int) -> tuple[str, ...] | None:
    """The names of the logits; where they have none and are ImageNet-1k's, its WordNet ids, if these are some."""
    if every is not None:
        return tuple(every)
    return imagenet_ids([name for name in names if isinstance(name, str)], logits)


def _asked_for(asked: Asked) -> Sequence[str | int]:
    if isinstance(asked, str):
        return read_asked(asked)
    try:
        return [item if isinstance(item, str) else index(item) for item in asked]
    except TypeError as error:
        raise UserError(f"`classes` {asked!r} are neither names nor numbers: give a list of either") from error
