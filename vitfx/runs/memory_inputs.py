"""Models and images that are given in Python: checked, and made what the commands' work takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from vitfx.graph.chosen_classes import ChosenClasses
from vitfx.graph.outputs import OneOutput, choose_output
from vitfx.graph.plain_module import plain_module
from vitfx.images.image_set import Images
from vitfx.images.preprocess import Preprocess
from vitfx.models.checkpoint import LoadedModel
from vitfx.models.chosen import CHOSEN
from vitfx.models.weights import fingerprint
from vitfx.runs.choose_classes import Asked, choose_given
from vitfx.support.errors import UserError, in_a_line

_FEWEST = 2


def open_given(
    model: nn.Module,
    images: Tensor | ArrayLike,
    labels: Tensor | ArrayLike | None,
    output: str | None = None,
    classes: Asked | None = None,
    other: bool = False,
) -> tuple[nn.Module, Images]:
    """A plain copy of the model that returns one tensor, and checked pixels and labels, on the CPU.

    model: see `vitfx.graph.plain_module`; where it returns several tensors, `output` names the answer, or `logits` is.
    images: floats (N, C, H, W), preprocessed; N is 2 or more.
    labels: integers (N,), a 0 or 1 for each label (N, K), numbers, or None; whether they fit the answers shows later.
    classes: those that are needed; the others' logits and images are left out. other: but for one logit for all of
        them, and their images.
    Raises UserError.
    """
    opened = open_images(images, labels)
    if other and classes is None:
        raise UserError("`other` stands for the classes that are left out: say with `classes` which are kept")
    if not isinstance(model, nn.Module):
        raise UserError(
            f"the model is a {type(model).__name__}: give an nn.Module (vitfx.models.checkpoint.load_model reads files)"
        )
    module = plain_module(model).cpu()
    try:
        with torch.no_grad():
            answer: Any = module(opened.pixels[:2])
    except Exception:  # Tracing has sentences for what goes wrong in a model.
        return module, opened
    name, _ = choose_output(answer, len(opened.pixels[:2]), output)
    module = module if name is None else OneOutput(module, name).eval()
    return (module, opened) if classes is None else choose_given(module, opened, classes, other=other)


def open_images(images: Tensor | ArrayLike, labels: Tensor | ArrayLike | None) -> Images:
    """Checked pixels and labels, on the CPU; see `open_given`. Raises UserError."""
    pixels = _tensor("images", images)
    if pixels.dim() != 4 or not pixels.is_floating_point():
        raise UserError(
            f"images are {tuple(pixels.shape)} of {pixels.dtype}: give floats (images, channels, height, width)"
        )
    if not bool(torch.isfinite(pixels).all()):
        raise UserError("some pixels are NaN or infinite: give finite images")
    if len(pixels) < _FEWEST:
        raise UserError(f"{len(pixels)} images are too few to calibrate on: give {_FEWEST} or more")
    names = tuple(str(index) for index in range(len(pixels)))
    if labels is None:
        return Images(pixels, None, names)
    classes = _tensor("labels", labels)
    if classes.shape[:1] != pixels.shape[:1]:
        raise UserError(f"labels are {tuple(classes.shape)} for {len(pixels)} images: give one for each")
    if classes.is_complex() or (classes.dtype == torch.bool and classes.dim() == 1):
        raise UserError(f"labels are of {classes.dtype}: give integers, the positions of classes among the logits")
    return Images(pixels, classes if classes.is_floating_point() else classes.long(), names)


def _tensor(title: str, values: Tensor | ArrayLike) -> Tensor:
    """A tensor, an array, or a list of numbers, arrays or tensors as a tensor on the CPU."""
    try:
        if isinstance(values, Tensor):
            return values.detach().cpu()
        if isinstance(values, list | tuple) and values and isinstance(values[0], Tensor):
            return torch.stack(list(values)).detach().cpu()
        array = np.asarray(values)
        # Python's own numbers become what torch makes of them.
        if (
            isinstance(values, list | tuple)
            and values
            and array.dtype == np.float64
            and not isinstance(values[0], np.ndarray)
        ):
            array = array.astype(np.float32)
        return torch.from_numpy(np.array(array.astype(array.dtype.newbyteorder("="))))
    except Exception as error:  # numpy and torch refuse in many ways what is no array.
        raise UserError(
            f"{title} are a {type(values).__name__} that is no array ({in_a_line(error)}): give a tensor, an array or "
            "a list of numbers"
        ) from error


def as_loaded(module: nn.Module, images: Images) -> LoadedModel:
    """A module in memory as files describe one: its pixels come normalised, and its classes have no names, unless some
    were chosen."""
    channels, *size = images.pixels.shape[1:]
    preprocess = Preprocess((size[0], size[1]), mean=(0.0,) * channels, std=(1.0,) * channels)
    chosen = module.chosen if isinstance(module, ChosenClasses) else None
    return LoadedModel(
        module,
        preprocess,
        None if chosen is None else chosen.names,
        None,
        type(module if chosen is None else module.model).__name__,
        fingerprint(module.state_dict()),
        {} if chosen is None else {CHOSEN: chosen.to_json()},
    )
