"""Image classifiers from a local Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitfx.images.preprocess import Preprocess
from vitfx.models.factory import import_extra
from vitfx.models.weights import check_finite, load_weights
from vitfx.support.errors import UserError

# Pillow's numbers for ways to resample, which preprocessor_config.json uses.
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


class Logits(nn.Module):
    """Takes a model that answers with a record and keeps the logits: (B, C, H, W) -> (B, K)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images).logits


def load_folder(
    folder: Path, weights: Mapping[str, torch.Tensor] | None, source: str
) -> tuple[nn.Module, Preprocess, tuple[str, ...] | None]:
    """The classifier, its preprocessing and its class names from `folder` (config.json and weights).

    weights: a state_dict to load instead of the folder's own.

    Raises UserError where the folder holds no image classifier, or one whose weights are missing or do not fit.
    """
    transformers = import_extra("transformers", "hf")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: give a folder that save_pretrained wrote")
    factory = transformers.AutoModelForImageClassification
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        with _quiet(transformers):
            if weights is None:
                module, info = factory.from_pretrained(folder, local_files_only=True, output_loading_info=True)
            else:
                module, info = factory.from_config(config), {}
    except Exception as error:  # transformers refuses with many kinds of exception.
        raise UserError(
            f"{folder} cannot be loaded as an image classifier ({' '.join(str(error).split())[:300]}): "
            "check its config.json and weights"
        ) from error
    if absent := sorted(info.get("missing_keys", ())):
        raise UserError(
            f"{folder} has no weights for {len(absent)} tensors (first: {absent[0]}): "
            "give a model fine-tuned for image classification"
        )
    module = module.float()
    if weights is None:
        check_finite(module.state_dict(), source)
    else:
        load_weights(module, weights, f"hf:{folder}", source)
    return Logits(module), _preprocess(folder, config), _class_names(config)


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the library's progress bar and its load report: what it would report is told as a UserError."""
    log = transformers.utils.logging
    verbosity, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bar:
            log.enable_progress_bar()


def _preprocess(folder: Path, config: Any) -> Preprocess:
    path = folder / "preprocessor_config.json"
    try:
        record = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): save the processor again") from error
    size = record.get("crop_size") if record.get("do_center_crop") else None
    size = size or record.get("size") or getattr(config, "image_size", None)
    values: dict[str, Any] = {"size": _height_width(size, path)}
    if record.get("resample") in _RESAMPLE:
        values["interpolation"] = _RESAMPLE[record["resample"]]
    if record.get("do_normalize") is False:
        values |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    elif "image_mean" in record and "image_std" in record:
        values |= {"mean": tuple(record["image_mean"]), "std": tuple(record["image_std"])}
    return Preprocess(**values)


def _height_width(size: Any, path: Path) -> tuple[int, int]:
    match size:
        case int():
            return size, size
        case [int() as height, int() as width]:
            return height, width
        case {"height": int() as height, "width": int() as width}:
            return height, width
        case {"shortest_edge": int() as edge}:
            return edge, edge
    raise UserError(f"{path} gives the image size as {size!r}: give height and width")


def _class_names(config: Any) -> tuple[str, ...] | None:
    names = tuple(str(config.id2label[key]) for key in sorted(config.id2label))
    # transformers makes these up where the model was saved without names.
    invented = all(name == f"LABEL_{position}" for position, name in enumerate(names))
    return None if invented else names
