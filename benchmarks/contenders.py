"""The models of a comparison: read from a folder that `vitfx.prune` wrote, or from files."""

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
from vitfx.deploy.runtime import open_session
from vitfx.images.preprocess import Preprocess
from vitfx.models.checkpoint import load_model
from vitfx.support.errors import UserError


@dataclass(frozen=True)
class Contender:
    """One model in the forms that the runtimes take.

    module: None where there is no torch form, and then no_module says why. onnx: the file's bytes.
    data: the data set that the model names for itself.
    own: what the model wants of its images, where its mean or standard deviation is another than `preprocess` has, in
    which the images come.
    """

    name: str
    source: str
    onnx: bytes
    module: nn.Module | None
    no_module: str
    preprocess: Preprocess | None
    classes: tuple[str, ...] | None
    data: str | None
    own: Preprocess | None = None

    def adapted(self, pixels: Tensor) -> Tensor:
        """Images (B, C, H, W) prepared by `preprocess` as this model wants them."""
        if self.own is None or self.preprocess is None:
            return pixels
        return normalised_pixels(plain_pixels(pixels, self.preprocess), self.own)


def load_contenders(models: Sequence[str]) -> tuple[Contender, ...]:
    """One folder that `vitfx.prune` or `vitfx.recover` wrote, or two or more models: ONNX files, or what `load_model`
    reads.

    The first is what the others are compared with. Raises UserError for anything else, and for models that do
    not take the same preprocessing.
    """
    one = len(models) == 1
    found = _from_folder(Path(models[0])) if one else tuple(_from_file(model) for model in models)
    return _with_one_preprocess(_with_distinct_names(found))


def _from_folder(folder: Path) -> tuple[Contender, ...]:
    """The original and the pruned model; the original's torch form may be gone by now."""
    report = folder / "report.json"
    if not report.is_file():
        raise UserError(f"{folder} holds no report.json: give a folder that vitfx.prune wrote, or two or more models")
    settings = _read_settings(report)
    pruned = replace(_from_onnx(folder / "pruned.onnx"), name="pruned")
    loaded = load_model(str(folder / "pruned.pt"))
    data = settings.get("data") or loaded.data
    pruned = replace(pruned, module=loaded.module, preprocess=loaded.preprocess, classes=loaded.classes, data=data)
    baseline = replace(_from_onnx(folder / "baseline.onnx"), name="baseline", data=data)
    try:
        # What vitfx.recover retrained is pruned itself; its baseline is the teacher.
        original = load_model(str(settings.get("teacher") or settings["model"]), arch=settings.get("arch"))
    except UserError as error:
        baseline = replace(baseline, no_module=str(error))
    else:
        baseline = replace(baseline, module=original.module, preprocess=original.preprocess, classes=original.classes)
    return baseline, pruned


def _read_settings(report: Path) -> dict[str, Any]:
    try:
        settings = json.loads(report.read_text(encoding="utf-8"))["settings"]
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
    )


def _from_onnx(path: Path) -> Contender:
    metadata = open_session(path, torch.device("cpu")).metadata
    recorded = metadata.get("preprocess")
    return Contender(
        name=path.stem,
        source=str(path),
        onnx=path.read_bytes(),
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
    return tuple(replace(one, name=f"{one.name} ({number})") for number, one in enumerate(contenders, start=1))


def _with_one_preprocess(contenders: Sequence[Contender]) -> tuple[Contender, ...]:
    """All take the first one's images; mean and standard deviation are changed for those that have others."""
    known = [one for one in contenders if one.preprocess is not None]
    if not known:
        raise UserError("none of the models says how its images are prepared: give at least one that vitfx wrote")
    common = known[0].preprocess
    assert common is not None
    found = []
    for one in contenders:
        own = one.preprocess
        if own is not None and replace(own, mean=common.mean, std=common.std) != common:
            raise UserError(
                f"the models {known[0].name} and {one.name} prepare images differently: give models of the same size"
            )
        found.append(replace(one, preprocess=common, own=None if own == common else own))
    return tuple(found)
