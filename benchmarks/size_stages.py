"""The stages that `benchmarks.sizes` measures, each on a random ViT."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from benchmarks.gpu.models import patterns, small_vit, spread_logits
from benchmarks.gpu.plans import ALIGNED, plan_for
from benchmarks.gpu.sizes import Shape
from passes.cost import measure_cost
from vitfx.deploy.deployment import default_deployment
from vitfx.deploy.export import export_onnx
from vitfx.discovery.basis.journal import NoJournal
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.run import discover, origins
from vitfx.graph.canonical import read_module
from vitfx.graph.verify import rewrite, verify
from vitfx.images.image_set import Images
from vitfx.pruning.compensation import compensate
from vitfx.pruning.goal import FLOPS, Goal, Target
from vitfx.pruning.prune_for_goal import compile_for_goal
from vitfx.pruning.target_bench import GoalRequest
from vitfx.support.progress import Silent

_PATCH, _CLASSES, _SHARE = 16, 1000, 0.3
_MIB = 2**20
_BATCH = 32
SHAPES = {"ti": (192, 12, 3), "s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}
"""Width, depth and heads of Touvron et al. 2021 (arXiv:2012.12877) and Dosovitskiy et al. 2021 (arXiv:2010.11929)."""


@dataclass(frozen=True)
class Cell:
    """What one process measures."""

    model: str  #: of `SHAPES`
    tokens: int  #: with the class token
    stage: str  #: of `STAGES`
    images: int
    seed: int

    @property
    def name(self) -> str:
        return f"vit-{self.model}/{self.tokens}/{self.stage}"

    @property
    def shape(self) -> Shape:
        width, depth, heads = SHAPES[self.model]
        return Shape(_PATCH * math.isqrt(self.tokens - 1), _PATCH, width, depth, heads, 4 * width, _CLASSES)


@dataclass(frozen=True)
class _Ready:
    """A model and images, before the stage begins."""

    module: nn.Module
    graph_module: GraphModule
    pixels: Tensor
    seed: int

    @property
    def images(self) -> Images:
        return Images(self.pixels, None, tuple(map(str, range(len(self.pixels)))))


def _trace(ready: _Ready) -> None:
    read_module(ready.module, ready.pixels, Silent())


def _discover(ready: _Ready) -> None:
    """One attribution of all edges, by eap."""
    settings = Settings(method="eap", remove=_SHARE, samples=len(ready.pixels), seed=ready.seed)
    graph_module, watcher = ready.graph_module, Silent()
    discover(graph_module, ready.images, settings, origins(graph_module, ready.images), NoJournal(), watcher)


def _search(ready: _Ready) -> None:
    """For 70 % of the FLOPs, without token merging."""
    deployment = default_deployment((), torch.device("cpu"), portable=True)
    asked = GoalRequest(Goal(FLOPS, 1 - _SHARE), Target(), deployment, seed=ready.seed, tokens="off")
    compile_for_goal(ready.module, ready.images, asked, device=torch.device("cpu"), watcher=Silent())


def _compensate(ready: _Ready) -> None:
    """Of 30 % of all MLPs' neurons, whose survivors are refitted."""
    plan = plan_for(ready.graph_module, ALIGNED, _SHARE, ready.seed)
    compensate(ready.graph_module, plan, ready.pixels)


def _prove(ready: _Ready) -> None:
    """That deleting these neurons is their ablation."""
    plan = plan_for(ready.graph_module, ALIGNED, _SHARE, ready.seed, constants=True)
    artifact = rewrite(ready.graph_module, plan).graph_module.eval()
    verify(ready.graph_module, artifact, plan, ready.pixels)


def _export(ready: _Ready) -> None:
    with TemporaryDirectory() as folder:
        export_onnx(ready.graph_module, Path(folder) / "model.onnx", ready.pixels[:2], {})


_WORK: dict[str, Callable[[_Ready], None]] = {
    "trace": _trace, "discovery": _discover, "search": _search, "compensation": _compensate, "proof": _prove,
    "export": _export,
}  # fmt: skip
STAGES = tuple(_WORK)


def measure(cell: Cell) -> dict[str, Any]:
    """Seconds of the processor, on one thread; MiB that the process holds before the stage, and at most during it."""
    torch.set_num_threads(1)
    ready = _prepare(cell)
    parts = ready.pixels.split(_BATCH)
    with torch.no_grad():
        ready.module(parts[0])
        began = time.process_time()
        for part in parts:
            ready.module(part)
        forward = time.process_time() - began
    cost = measure_cost(ready.graph_module, ready.pixels.shape[1:])
    _forget_peak()
    before = _memory("VmRSS")
    began, on_the_clock = time.process_time(), time.perf_counter()
    _WORK[cell.stage](ready)
    return {
        "seconds": time.process_time() - began,
        "clock_seconds": time.perf_counter() - on_the_clock,
        "forward_seconds": forward,
        "before_mib": before,
        "peak_mib": _memory("VmHWM"),
        "parameters": cost.parameters,
        "flops": cost.flops,
    }


def _prepare(cell: Cell) -> _Ready:
    torch.manual_seed(cell.seed)
    module = small_vit(cell.shape)
    pixels = patterns(cell.images, cell.shape.image, cell.seed)
    spread_logits(module, pixels[:4])
    return _Ready(module, read_module(module, pixels, Silent()).graph_module, pixels, cell.seed)


def _forget_peak() -> None:
    """VmHWM counts anew from here."""
    Path("/proc/self/clear_refs").write_text("5")


def _memory(field: str) -> float:
    """A field of Linux' own account of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / _MIB for line in lines if line.startswith(f"{field}:"))
