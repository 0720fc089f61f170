"""What rewrites and forms are worth in time: sessions that take turns on the same images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import onnx
import torch
from torch import Tensor
from torch.fx import GraphModule

from vitfx.deploy.deployment import Deployment, deploy
from vitfx.deploy.export import to_onnx
from vitfx.deploy.lowering import NEEDS, plain_pixels
from vitfx.deploy.onnx_forms import FORMS, Form
from vitfx.deploy.precisions import ONNX_RUNTIME
from vitfx.deploy.runtime import Session
from vitfx.deploy.runtimes import open_on
from vitfx.images.preprocess import Preprocess
from vitfx.support.devices import synchronize
from vitfx.support.progress import Watcher
from vitfx.support.timing import Ratio, Timing, ratio, time_interleaved

_FIRST = "baseline"
_ROUNDS = 15
_CHOOSING_ROUNDS = 7
_SECONDS, _MOST_SECONDS = 4.0, 60.0
Model = Path | onnx.ModelProto


@dataclass(frozen=True)
class OptimizeBench:
    """Times models in turns."""

    device: torch.device
    batches: tuple[int, ...]  #: sizes to measure
    pixels: Tensor  #: (N, C, H, W), normalised, repeated to a batch
    plain: Preprocess | None  #: undoes that for all models but the first, which then take pixels of 0 to 1
    watcher: Watcher
    runtime: str = ONNX_RUNTIME

    def against(self, first: Model, others: Mapping[str, Model]) -> dict[str, dict[int, Ratio]]:
        """The time of each other model as a share of the first one's, by batch."""
        timings = self._timings(first, others, _CHOOSING_ROUNDS)
        return {
            name: {batch: ratio(by_model[name], by_model[_FIRST]) for batch, by_model in timings.items()}
            for name in others
        }

    def final(self, first: Model, others: Mapping[str, Model]) -> dict[int, dict[str, Timing]]:
        """The times of the first ("baseline") and the others, by batch, in more rounds."""
        return self._timings(first, others, _ROUNDS)

    def _timings(self, first: Model, others: Mapping[str, Model], rounds: int) -> dict[int, dict[str, Timing]]:
        sessions = {name: self._open(model) for name, model in {_FIRST: first, **others}.items()}
        return {batch: self._at(sessions, batch, rounds) for batch in self.batches}

    def _open(self, model: Model) -> Session:
        return open_on(self.runtime, model if isinstance(model, Path) else model.SerializeToString(), self.device)

    def _at(self, sessions: dict[str, Session], batch: int, rounds: int) -> dict[str, Timing]:
        pixels = self.pixels.repeat(-(-batch // len(self.pixels)), 1, 1, 1)[:batch]
        plain = pixels if self.plain is None else plain_pixels(pixels, self.plain)
        return time_interleaved(
            {name: session.bind(pixels if name == _FIRST else plain) for name, session in sessions.items()},
            rounds=rounds,
            min_seconds=_SECONDS,
            max_seconds=_MOST_SECONDS,
            synchronize=partial(synchronize, self.device),
            progress=self.watcher.bar(f"timing {', '.join(sessions)}, batch {batch}"),
        )


def fastest(forms: Mapping[str, Mapping[int, Ratio]]) -> str:
    """The form whose ratios, over all batches, have the least product."""
    return min(forms, key=lambda name: math.prod(ratio.paired for ratio in forms[name].values()))


def measure_alone(
    bench: OptimizeBench, canonical: GraphModule, deployment: Deployment, form: Form
) -> dict[str, dict[int, Ratio]]:
    """Each rewrite, with what it needs, and the form by itself, against the canonical graph with none of them.

    At one batch, the middle one. Rewrites that find nothing to do have no entry.
    """
    middle = sorted(bench.batches)[len(bench.batches) // 2]
    bench = replace(bench, batches=(middle,), plain=None)
    plain = to_onnx(canonical, bench.pixels[:2], {}, deployment.opset)
    ratios = {}
    for title, alone in _alone(deployment, form).items():
        if not alone.graph_rewrites:
            ratios[title] = bench.against(plain, {title: alone.formed(plain).model})[title]
            continue
        deployed = deploy(canonical, alone, bench.pixels, {})
        if title == _title(form) or title in deployed.lowered.applied:
            ratios[title] = bench.against(plain, {title: deployed.model})[title]
    return ratios


def _alone(deployment: Deployment, form: Form) -> dict[str, Deployment]:
    exported = FORMS["exported"]
    chosen = {}
    for name in deployment.rewrites:
        if name == "pack_qkv" and not form.packed:
            continue
        # Packing only shows in a packed form.
        own = replace(exported, packed=name == "pack_qkv")
        chosen[name] = Deployment((*NEEDS.get(name, ()), name), own, opset=deployment.opset)
    if form.attention is not None:
        chosen[_title(form)] = Deployment(("pack_qkv",) if form.packed else (), form)
    return chosen


def _title(form: Form) -> str:
    return f"form {form.name}"
