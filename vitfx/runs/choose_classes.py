"""The classes that a user asked for, and the model that answers them alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import index

import torch
from torch import nn

from vitfx.graph.chosen_classes import ChosenClasses
from vitfx.images.classes import imagenet_ids
from vitfx.images.image_set import Images
from vitfx.images.selection import Selection, list_names, read_asked, select_classes
from vitfx.models.checkpoint import LoadedModel
from vitfx.models.chosen import chosen_of, keep_only
from vitfx.models.huggingface import names_in_config
from vitfx.support.errors import UserError
from vitfx.support.progress import Watcher

Asked = str | Sequence[str | int]
"""A file or text with commas, or names and numbers one by one."""


def choose(
    model: LoadedModel, asked: Asked, every: Sequence[str] | None, logits: int, data: str | None = None
) -> LoadedModel:
    """The model with these of its logits alone; the model itself where they are all of its logits, in order.

    every: the names of its logits, None where they have none. data: the data set, which may say ids in words.
    Raises UserError.
    """
    names = _asked_for(asked)
    every = _or_imagenet(every, names, logits)
    positions = select_classes(names, every, logits, data)
    if positions == tuple(range(logits)):
        return model
    before = chosen_of(model) or Selection(tuple(range(logits)), logits, every)
    return keep_only(model, positions, before.then(positions))


def choose_given(module: nn.Module, images: Images, asked: Asked) -> tuple[nn.Module, Images]:
    """The same for a module and images in memory, of which those of these classes are left; all where they have no
    labels. Raises UserError."""
    every = names_in_config(module)
    with torch.no_grad():
        answers = module(images.pixels[:2])
    count = len(every) if answers.dim() != 2 and every else answers.shape[-1]
    names = _asked_for(asked)
    every = _or_imagenet(every, names, count)
    positions = select_classes(names, every, count)
    if positions == tuple(range(count)):
        return module, images
    chosen = ChosenClasses(module, positions, Selection(positions, count, every), images.pixels[:2]).eval()
    if images.labels is None:
        return chosen, images
    if images.labels.dim() > 1 or images.labels.is_floating_point():
        raise UserError("`classes` is for images of one class each: give integers as labels, one an image")
    places = images.labels[:, None] == torch.tensor(positions)
    kept = places.any(1)
    if int(kept.sum()) < 2:
        raise UserError(f"{int(kept.sum())} of the {len(images)} images are of the chosen classes: give 2 or more")
    own = tuple(images.names[place] for place in kept.nonzero().flatten().tolist())
    labels = places[kept].int().argmax(1)
    return chosen, replace(images, pixels=images.pixels[kept], labels=labels, names=own)


def say_choice(module: nn.Module, images: Images, watcher: Watcher) -> None:
    """Which classes were chosen, where some were. images: those that are left."""
    if isinstance(module, ChosenClasses):
        chosen = module.chosen
        which = f"{len(chosen.positions)} of {chosen.count} classes are kept, {list_names(chosen.names)}"
        watcher.say(which if images.labels is None else f"{which}: {len(images):,} are left of the images")


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
