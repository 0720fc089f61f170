"""The models of a comparison, read from a folder that `vitfx.prune` wrote or from files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitfx.deploy.export import export_onnx
from vitfx.deploy.lowering import normalised_pixels, plain_pixels
from vitfx.deploy.onnx_file import read_onnx
from vitfx.deploy.runtime import open_session
from vitfx.images.preprocess import Preprocess
from vitfx.images.selection import Selection
from vitfx.models.checkpoint import load_model
from vitfx.models.chosen import chosen_of, keep_same
from vitfx.runs.inputs import count_logits
from vitfx.support.errors import UserError


@dataclass(frozen=True)
class Contender:
    """One model in the forms that the runtimes take."""

    name: str
    source: str
    onnx: bytes  #: of the file
    module: nn.Module | None
    no_module: str  #: why there is no module
    preprocess: Preprocess | None  #: how the images are prepared that it is given
    classes: tuple[str, ...] | None
    data: str | None  #: the data set that the model names
    chosen: Selection | None = None  #: the classes that the model answers, where it came from one of more
    own: Preprocess | None = None  #: the model's own mean and standard deviation, where they differ from `preprocess`

    def adapted(self, pixels: Tensor) -> Tensor:
        """Images (B, C, H, W) prepared by `preprocess`, changed to what this model expects."""
        if self.own is None or self.preprocess is None:
            return pixels
        return normalised_pixels(plain_pixels(pixels, self.preprocess), self.own)


def load_contenders(models: Sequence[str]) -> tuple[Contender, ...]:
    """models: one folder that `vitfx.prune` or `vitfx.recover` wrote, or two or more ONNX files or models that
    `load_model` reads.

    The others are compared with the first. Raises UserError for anything else, and for models whose images differ in
    more than mean and standard deviation.
    """
    contenders = _from_folder(Path(models[0])) if len(models) == 1 else tuple(_from_file(model) for model in models)
    return _with_one_preprocess(_with_distinct_names(contenders))


def _from_folder(folder: Path) -> tuple[Contender, ...]:
    """The original and the pruned model; the file of the original's torch form may no longer exist."""
    report = folder / "report.json"
    if not report.is_file():
        raise UserError(f"{folder} holds no report.json: give a folder that vitfx.prune wrote, or two or more models")
    settings = _read_settings(report)
    pruned = replace(_from_onnx(folder / "pruned.onnx"), name="pruned")
    loaded = load_model(str(folder / "pruned.pt"))
    data, chosen = settings.get("data") or loaded.data, chosen_of(loaded)
    pruned = replace(
        pruned, module=loaded.module, preprocess=loaded.preprocess, classes=loaded.classes, data=data, chosen=chosen
    )
    baseline = replace(_from_onnx(folder / "baseline.onnx"), name="baseline", data=data)
    try:
        # The model that vitfx.recover was given is already pruned: its baseline is the teacher.
        original = load_model(
            str(settings.get("teacher") or settings["model"]),
            arch=settings.get("arch"),
            weights=settings.get("weights"),
            preprocess=loaded.preprocess,
        )
        if chosen is not None:
            original = keep_same(original, chosen, count_logits(original))
    except UserError as error:
        baseline = replace(baseline, no_module=str(error))
    else:
        baseline = replace(baseline, module=original.module, preprocess=original.preprocess, classes=original.classes)
    return baseline, pruned


def _read_settings(report: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))["settings"]
        return settings | {"model": settings["model"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{report} does not say which model was pruned: give a folder that vitfx.prune wrote"
        ) from error


def _from_file(model: str) -> Contender:
    if model.endswith(".onnx"):
        return _from_onnx(Path(model))
    loaded = load_model(model)
    height, width = loaded.preprocess.size
    example = torch.zeros(2, loaded.preprocess.channels, height, width)
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(loaded.module, Path(folder) / "model.onnx", example, {})
        exported = (Path(folder) / "model.onnx").read_bytes()
    return Contender(
        name=Path(model).stem or model,
        source=model,
        onnx=exported,
        module=loaded.module,
        no_module="",
        preprocess=loaded.preprocess,
        classes=loaded.classes,
        data=loaded.data,
        chosen=chosen_of(loaded),
    )


def _from_onnx(path: Path) -> Contender:
    contents = read_onnx(path).SerializeToString()
    metadata = open_session(contents, torch.device("cpu")).metadata
    recorded = metadata.get("preprocess")
    return Contender(
        name=path.stem,
        source=str(path),
        onnx=contents,
        module=None,
        no_module="an ONNX file has no torch form",
        preprocess=Preprocess.from_json(json.loads(recorded)) if recorded else None,
        classes=None,
        data=None,
    )


def _with_distinct_names(contenders: Sequence[Contender]) -> tuple[Contender, ...]:
    names = [contender.name for contender in contenders]
    if len(set(names)) == len(names):
        return tuple(contenders)
    return tuple(replace(each, name=f"{each.name} ({number})") for number, each in enumerate(contenders, start=1))


def _with_one_preprocess(contenders: Sequence[Contender]) -> tuple[Contender, ...]:
    """All get images prepared for the first; those with another mean or standard deviation note their own."""
    first = next((contender for contender in contenders if contender.preprocess is not None), None)
    if first is None or first.preprocess is None:
        raise UserError("none of the models says how its images are prepared: give at least one that vitfx wrote")
    common = first.preprocess
    for contender in contenders:
        own = contender.preprocess
        if own is not None and replace(own, mean=common.mean, std=common.std) != common:
            raise UserError(
                f"the models {first.name} and {contender.name} prepare images differently: give models of one size"
            )
    return tuple(
        replace(contender, preprocess=common, own=None if contender.preprocess == common else contender.preprocess)
        for contender in contenders
    )
