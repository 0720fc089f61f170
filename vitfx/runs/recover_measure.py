"""Models before and after retraining, side by side on a runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.fx import GraphModule

from passes.cost import Cost, measure_cost
from vitfx.deploy.evaluate import Scores, evaluate
from vitfx.deploy.precisions import ONNX_RUNTIME
from vitfx.deploy.runtime import Session
from vitfx.deploy.runtimes import open_on
from vitfx.graph.divergence import CLASSES, Divergence
from vitfx.images.image_set import ImageSet
from vitfx.reports.records import RecoveredModel
from vitfx.support.devices import is_gpu, synchronize
from vitfx.support.progress import Watcher
from vitfx.support.timing import Timing, time_interleaved

_BATCH = 64
_ROUNDS, _SECONDS, _MOST_SECONDS = 15, 4.0, 60.0


@dataclass(frozen=True)
class Row:
    """A model of the table."""

    name: str
    module: GraphModule
    onnx: Path | bytes  #: its file, or the file's bytes


@dataclass(frozen=True)
class Timed:
    """All models on one runtime."""

    provider: str
    scores: Mapping[str, Scores]  #: over the evaluation images
    single: Mapping[str, Timing]  #: one image at a time


@dataclass(frozen=True)
class Measured:
    """All models on all runtimes."""

    costs: Mapping[str, Cost]  #: by model
    runtimes: tuple[Timed, ...]  #: the CPU's, and the GPU's where one is used

    @property
    def names(self) -> list[str]:
        return list(self.costs)

    def to_json(self) -> list[RecoveredModel]:
        first = self.runtimes[0]
        models: list[RecoveredModel] = []
        for name in self.names:
            scores = first.scores[name]
            model: RecoveredModel = {
                "name": name,
                "loss": scores.loss,
                "accuracy": scores.accuracy,
                "kl": scores.kl,
                "agreement": scores.agreement,
                "params": self.costs[name].parameters,
                "flops": self.costs[name].flops,
                "runtimes": {timed.provider: _times(timed, name) for timed in self.runtimes},
            }
            if scores.by_choice is not None:
                model["accuracy_by_choice"] = list(scores.by_choice)
            models.append(model)
        return models


def _times(timed: Timed, name: str) -> dict[str, float]:
    seconds = timed.scores[name].seconds
    return {
        "evaluation_seconds": seconds,
        "ms_per_image": 1e3 * seconds / timed.scores[name].images,
        "ms_at_batch_1": timed.single[name].median_ms,
    }


def measure(
    rows: Sequence[Row],
    evaluation: ImageSet,
    device: torch.device,
    watcher: Watcher,
    divergence: Divergence = CLASSES,
    runtime: str = ONNX_RUNTIME,
) -> Measured:
    """All models over the evaluation images and on single ones, taking turns.

    rows: the first is the unpruned model. divergence: of the models' kind of answers. runtime: on the CPU; a GPU's is
    ONNX Runtime.
    """
    devices = [torch.device("cpu"), *([device] if is_gpu(device) else [])]
    pixels = next(evaluation.batches(1)).pixels
    runtimes = []
    for runs_on in devices:
        on = ONNX_RUNTIME if is_gpu(runs_on) else runtime
        sessions = {row.name: open_on(on, row.onnx, runs_on) for row in rows}
        runtimes.append(_timed(sessions, evaluation, pixels, runs_on, watcher, divergence))
    costs = {row.name: measure_cost(row.module, pixels.shape[1:]) for row in rows}
    return Measured(costs, tuple(runtimes))


def _timed(
    sessions: dict[str, Session],
    evaluation: ImageSet,
    pixels: torch.Tensor,
    device: torch.device,
    watcher: Watcher,
    divergence: Divergence,
) -> Timed:
    wait = partial(synchronize, device)
    scores = evaluate(
        {name: session.run for name, session in sessions.items()},
        evaluation, batch=_BATCH, divergence=divergence, other=evaluation.half, synchronize=wait,
        progress=watcher.bar("evaluating"),
    )  # fmt: skip
    single = time_interleaved(
        {name: session.bind(pixels) for name, session in sessions.items()},
        rounds=_ROUNDS, min_seconds=_SECONDS, max_seconds=_MOST_SECONDS, synchronize=wait,
        progress=watcher.bar("timing"),
    )  # fmt: skip
    return Timed(next(iter(sessions.values())).provider, scores, single)
