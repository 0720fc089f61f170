"""What a command works on: the model and the images that the user gave."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch

from vitfx.images.image_set import Images, ImageSet
from vitfx.images.preprocess import Preprocess
from vitfx.images.splits import Splits, open_data
from vitfx.models.checkpoint import LoadedModel, load_model
from vitfx.support.errors import UserError
from vitfx.support.progress import Report


@dataclass(frozen=True)
class Inputs:
    """The model and its data set, opened."""

    model: LoadedModel
    splits: Splits
    data: str  #: as the user gave it, for a report that says how to open the same again
    arch: str | None  #: likewise

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
    splits = open_data(data, model.preprocess, model.classes)
    for part in (splits.calibration, splits.evaluation):
        _check_labels(model, part, data)
    return Inputs(model, splits, data, options.arch)


def open_model(options: argparse.Namespace) -> LoadedModel:
    """Loads the model alone; raises UserError."""
    return load_model(
        options.model, arch=options.arch, trust_pickle=options.trust_pickle, preprocess=_preprocess(options)
    )


def _preprocess(options: argparse.Namespace) -> Preprocess | None:
    if options.image_size is None:
        if options.mean or options.std:
            raise UserError("--mean and --std need --image-size: give the size that the model was trained at")
        return None
    size = (options.image_size, options.image_size)
    default = Preprocess(size)
    return Preprocess(size, mean=tuple(options.mean or default.mean), std=tuple(options.std or default.std))


def _check_labels(model: LoadedModel, images: ImageSet, data: str) -> None:
    """Classes without names are matched by position. Raises UserError where one has no logit."""
    if images.labels is None:
        return
    with torch.no_grad():
        logits = model.module(torch.zeros(2, model.preprocess.channels, *model.preprocess.size)).shape[1]
    if max(images.labels) >= logits:
        raise UserError(
            f"{data} has at least {max(images.labels) + 1} classes and the model has {logits} logits: "
            "give the data that it was trained on, or images without class folders"
        )
