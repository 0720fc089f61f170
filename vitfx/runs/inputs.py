"""What a command works on: the model and the images that the user gave."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from vitfx.graph.answers import Kind
from vitfx.images.classes import read_class_names
from vitfx.images.image_set import Images
from vitfx.images.overrides import Overrides
from vitfx.images.sources import CorruptImageError
from vitfx.images.splits import Splits, open_data
from vitfx.models.checkpoint import LoadedModel, load_model
from vitfx.models.chosen import chosen_of, renamed
from vitfx.runs.choose_classes import Asked, choose
from vitfx.runs.tasks import blank_answers, is_classless, known_task, without_labels
from vitfx.support.devices import words_for
from vitfx.support.errors import UserError
from vitfx.support.progress import Report, Watcher

# Images that are decoded to see whether they are square.
_LOOKED_AT = 32


@dataclass(frozen=True)
class Inputs:
    """The model and its data set, opened."""

    model: LoadedModel
    splits: Splits
    data: str  #: as the user gave it, for a report that says how to open the same again
    arch: str | None  #: likewise
    task: Kind | None = None  #: the kind of the model's answers, where the user or the file says
    weights: str | None = None  #: which were asked for: "ema" or "raw"
    labels: Path | None = None  #: the file of the images' labels, where one was given
    output: str | None = None  #: which tensor of the model's answer was asked for

    @property
    def first_lines(self) -> tuple[str, ...]:
        """What was inferred of the model and its data, to be said before anything else."""
        return (*self.model.first_lines, self.splits.description)

    @property
    def remarks(self) -> tuple[str, ...]:
        """The same for a report, which has the numbers of images already."""
        return (*self.model.first_lines, *self.splits.remarks)

    def tell(self, watcher: Watcher, device: torch.device, more: str = "") -> None:
        """Says what was inferred, and where it runs. more: what else is to be said of that."""
        for line in (*self.first_lines, f"device: {words_for(device)}{more}"):
            watcher.say(line)

    def available(self, samples: int) -> int:
        """This many calibration images, or all that there are: for a default, which the user did not ask for."""
        return min(samples, max(2, len(self.splits.calibration)))

    def calibration(self, samples: int, seed: int, progress: Report | None = None) -> Images:
        """Raises UserError where fewer than two are whole."""
        images = self.splits.calibration.sample(samples, seed).load(progress)
        if len(images) < 2:
            raise UserError(
                f"{images.skipped} of the {samples} sampled images are corrupt: replace them in {self.data}"
            )
        return images


def open_inputs(options: argparse.Namespace, model: LoadedModel | None = None) -> Inputs:
    """Loads the model and opens its data; raises UserError.

    options: with the arguments of `vitfx.cli.options.add_inputs` and `add_loading`
    model: of `open_model`, where it is loaded already
    """
    model = open_model(options) if model is None else model
    data = options.data or model.data
    if data is None:
        raise UserError(f"{options.model} does not name its data: give images with `data`, a folder, an .npz or digits")
    task = known_task(options, model)
    answers = cache(partial(blank_answers, model))
    labels = getattr(options, "labels", None)
    asked, other = getattr(options, "classes", None), getattr(options, "other", False)
    if other and asked is None:
        raise UserError("`other` stands for the classes that are left out: say with `classes` which are kept")
    classless = is_classless(task, model, answers)
    if asked is not None and (classless or (task is not None and task.name != "classes")):
        kind = "none" if task is None else f"{task.name}, {task.reason}"
        raise UserError(f"`classes` chooses among classes, and the answers of {model.source} are {kind}: leave it out")
    if classless:
        if labels is not None:
            raise UserError(
                f"`labels` {labels} names classes or labels, and the answers of {model.source} are none: leave it out, "
                "or say what they are with `task`"
            )
        splits = without_labels(open_data(data, model.preprocess))
        model = replace(model, classes=None)
    else:
        model, splits = open_splits(
            model, data, lambda: _count(answers()), class_names=options.class_names, labels=labels, asked=asked,
            other=other,
        )  # fmt: skip
    if model.image_size.question is not None and not _all_square(splits):
        raise UserError(model.image_size.question)
    return Inputs(model, splits, data, options.arch, task, options.weights, labels, options.output)


def open_splits(
    model: LoadedModel,
    data: str,
    logits: Callable[[], int],
    *,
    class_names: Path | None = None,
    labels: Path | None = None,
    asked: Asked | None = None,
    other: bool = False,
) -> tuple[LoadedModel, Splits]:
    """The model with the names of its logits, and the data with its labels among them. Raises UserError.

    Where classes were asked for, or the model is an artifact that answers only some of the data's, these are left.

    logits: how many classes the model tells apart. class_names: a file with their names. labels: of the images.
    other: whether one more logit stands for all classes that were not asked for.
    """
    if class_names is not None:
        names = read_class_names(class_names)
        if len(names) != logits():
            raise UserError(
                f"`class_names` {class_names} has {len(names)} names and the model {logits()} logits: give one for each"
            )
        model = renamed(model, names)
    if (known := chosen_of(model)) is not None:
        splits = open_data(data, model.preprocess, known.every, lambda: known.count, labels)
    else:
        splits = open_data(data, model.preprocess, model.classes, logits, labels)
    if asked is not None:
        model = choose(model, asked, model.classes or splits.classes, logits(), data, other=other)
    chosen = chosen_of(model)
    return model, splits if chosen is None else chosen.only_images(splits)


def _all_square(splits: Splits) -> bool:
    """Whether images are as wide as they are high, as far as a few of them tell."""
    sources = splits.calibration.sources
    sizes = set()
    for source in sources[:: max(1, len(sources) // _LOOKED_AT)]:
        with suppress(CorruptImageError):
            sizes.add(tuple(source.decode(3).shape[1:]))
    return bool(sizes) and all(height == width for height, width in sizes)


def open_model(options: argparse.Namespace) -> LoadedModel:
    """Loads the model alone; raises UserError."""
    return load_model(
        options.model,
        arch=options.arch,
        trust_pickle=options.trust_pickle,
        overrides=_overrides(options),
        weights=options.weights,
        output=options.output,
    )


def _overrides(options: argparse.Namespace) -> Overrides:
    """options: with the arguments of `vitfx.cli.options.add_reading`"""
    return Overrides(
        size=options.image_size,
        mean=None if options.mean is None else tuple(options.mean),
        std=None if options.std is None else tuple(options.std),
        interpolation=options.interpolation,
        resize=options.resize,
        crop_pct=options.crop_pct,
    )


def count_logits(model: LoadedModel) -> int:
    """Of one image, found by running the model: the classes that they tell apart, two by one logit."""
    return _count(blank_answers(model))


def _count(answers: Tensor) -> int:
    return 2 if answers.dim() == 1 or answers.shape[1] == 1 else int(answers.shape[1])
