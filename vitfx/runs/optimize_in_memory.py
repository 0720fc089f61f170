"""Exact rewrites of a module in memory, behind `vitfx.optimize`. Nothing is written before `to_onnx` is called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import nn
from torch.fx import GraphModule

from vitfx.deploy.deployment import Deployment, default_deployment, deploy
from vitfx.deploy.export import export_checked, onnx_metadata, write_onnx
from vitfx.deploy.lowering import lower
from vitfx.deploy.precision_file import write_int8
from vitfx.deploy.precisions import BF16, FP32, INT8
from vitfx.deploy.quantize import Quantized
from vitfx.graph.canonical import read_module
from vitfx.images.image_set import Images
from vitfx.models.checkpoint import LoadedModel
from vitfx.runs.choose_classes import say_choice
from vitfx.runs.memory_inputs import as_loaded
from vitfx.runs.optimize_int8 import bf16_compared, int8_compared
from vitfx.support.files import check_new_file
from vitfx.support.progress import Watcher


@dataclass(frozen=True)
class OptimizedModel:
    """A model after exact rewrites, which computes what the original computes."""

    module: GraphModule  #: for inference; not to be trained or pruned
    canonical: GraphModule  #: before the rewrites
    applied: tuple[str, ...]  #: the rewrites that found something to do
    error: float  #: greatest difference of the logits by the greatest logit, in float64
    notes: tuple[str, ...]  #: sublayers that were not recognised, and why
    model: LoadedModel  #: the original
    images: Images
    deployment: Deployment
    int8: Quantized | None = None  #: what ONNX files have, where that was asked for
    bf16: onnx.ModelProto | None = None  #: likewise
    divergence: float | None = None  #: of either from float32, mean over images that int8 was not calibrated on

    def to_onnx(self, out: str | Path, *, force: bool = False) -> Path:
        """Writes the model, any batch: in float32 checked against torch. Raises UserError and ExportMismatch."""
        path = Path(out)
        if self.int8 is not None:
            check_new_file(path, force=force)
            write_int8(self.int8, path)
        elif self.bf16 is not None:
            check_new_file(path, force=force)
            write_onnx(self.bf16, path)
        else:
            write_checked(path, self.canonical, self.deployment, self.model, self.images, force=force)
        return path


def rewrite_exactly(
    module: nn.Module,
    images: Images,
    rewrites: tuple[str, ...],
    *,
    portable: bool,
    device: torch.device,
    watcher: Watcher,
    precision: str = FP32,
) -> OptimizedModel:
    """Raises UserError and VerificationError."""
    say_choice(module, images, watcher)
    front = read_module(module, images.pixels, watcher, merged=True)
    # OpenVINO, which computes in bf16, knows standard operators alone.
    deployment = default_deployment(rewrites, device, portable=portable or precision == BF16)
    lowered = lower(front.graph_module, deployment.graph_rewrites, images.pixels)
    model, int8, bf16, divergence = as_loaded(module, images), None, None, None
    if precision != FP32:
        exported = deploy(front.graph_module, deployment, images.pixels, onnx_metadata(model, {})).model
        kind = front.kind(None, None, watcher).name
        if precision == INT8:
            int8, divergence = int8_compared(exported, images.pixels, kind)
        else:
            bf16, divergence = bf16_compared(exported, images.pixels, kind)
    return OptimizedModel(
        module=lowered.graph_module,
        canonical=front.graph_module,
        applied=lowered.applied,
        error=lowered.error,
        notes=front.notes,
        model=model,
        images=images,
        deployment=deployment,
        int8=int8,
        bf16=bf16,
        divergence=divergence,
    )


def write_checked(
    path: Path, canonical: GraphModule, deployment: Deployment, model: LoadedModel, images: Images, *, force: bool
) -> Path:
    """An artifact after its deployment's exact rewrites, checked against torch; the path. canonical: before them.

    Raises UserError where the file is there already, unless force, and ExportMismatch.
    """
    check_new_file(path, force=force)
    made = deploy(canonical, deployment, images.pixels, onnx_metadata(model, {}))
    export_checked(made.model, path, made.lowered.graph_module, images.pixels)
    return path
