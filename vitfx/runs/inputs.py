"""What a command works on: the model and the images that the user gave."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vitfx.images.image_set import Images
from vitfx.images.overrides import Overrides
from vitfx.images.splits import Splits, open_data
from vitfx.models.checkpoint import LoadedModel, load_model
from vitfx.support.errors import UserError, in_a_line
from vitfx.support.progress import Report


@dataclass(frozen=True)
class Inputs:
    """The model and its data set, opened."""

    model: LoadedModel
    splits: Splits
    data: str  #: as the user gave it, for a report that says how to open the same again
    arch: str | None  #: likewise

    @property
    def first_lines(self) -> tuple[str, ...]:
        """What was inferred of the model and its data, to be said before anything else."""
        return tuple(line for line in (self.model.weights_note, self.splits.description) if line)

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


def open_inputs(options: argparse.Namespace) -> Inputs:
    """Loads the model and opens its data; raises UserError.

    options: with the arguments of `vitfx.cli.options.add_inputs` and `add_loading`
    """
    model = open_model(options)
    data = options.data or model.data
    if data is None:
        raise UserError(f"{options.model} does not name its data: give images with --data, a folder, an .npz or digits")
    classes = _class_names(options, model)
    splits = open_data(data, model.preprocess, classes)
    if classes is None and splits.classes is not None:
        splits = _matched(splits, model, data)
    return Inputs(replace(model, classes=classes), splits, data, options.arch)


def _class_names(options: argparse.Namespace, model: LoadedModel) -> tuple[str, ...] | None:
    """Of the model's logits: from --class-names, else as the model has them. Raises UserError."""
    path: Path | None = getattr(options, "class_names", None)
    if path is None:
        return model.classes
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--class-names {path} can't be read ({in_a_line(error)}): give a text file") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != (logits := _logits(model)):
        raise UserError(f"--class-names {path} has {len(names)} names and the model {logits} logits: give one for each")
    return names


def _logits(model: LoadedModel) -> int:
    with torch.no_grad():
        answer = model.module(torch.zeros(2, model.preprocess.channels, *model.preprocess.size))
    return int(answer.shape[1])


def _matched(splits: Splits, model: LoadedModel, data: str) -> Splits:
    """Labels for a model whose logits have no names: numbers are positions, as many classes as logits are matched in
    their order, which is said, and anything else is refused with a UserError."""
    assert splits.classes is not None
    logits, names = _logits(model), splits.classes
    if all(name.isdecimal() and int(name) < logits for name in names) and len(set(map(int, names))) == len(names):
        position = dict(enumerate(map(str, range(logits)))) | {int(name): name for name in names}
        splits = open_data(data, model.preprocess, tuple(position[index] for index in range(logits)))
        return replace(splits, description=f"{splits.description}; its classes are numbers of logits")
    if len(names) != logits:
        raise UserError(
            f"{data} has {len(names)} classes and the model {logits} logits, which have no names: name them in their "
            "order with --class-names FILE, one name a line, or give images without class folders"
        )
    ends = f"{names[0]!r} is the first logit and {names[-1]!r} the last"
    return replace(splits, description=f"{splits.description}; the model's logits have no names, so that {ends}")


def open_model(options: argparse.Namespace) -> LoadedModel:
    """Loads the model alone; raises UserError."""
    return load_model(
        options.model,
        arch=options.arch,
        trust_pickle=options.trust_pickle,
        overrides=_overrides(options),
        weights=options.weights,
    )


def _overrides(options: argparse.Namespace) -> Overrides:
    """options: with the arguments of `vitfx.cli.options.add_reading`"""
    return Overrides(
        size=None if options.image_size is None else (options.image_size, options.image_size),
        mean=None if options.mean is None else tuple(options.mean),
        std=None if options.std is None else tuple(options.std),
        interpolation=options.interpolation,
        resize=options.resize,
        crop_pct=options.crop_pct,
    )
