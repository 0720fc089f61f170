"""From a pruned module to a folder of files: artifact, ONNX pair, circuit, plan, measurements, report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor
from torch.fx import GraphModule

from vitfx.deploy.deployment import Deployment
from vitfx.deploy.evaluate import Scores, evaluate
from vitfx.deploy.export import ExportMismatch, compare_onnx, export_plain, to_onnx, write_onnx
from vitfx.deploy.lowering import lower
from vitfx.deploy.precision_file import HALVES
from vitfx.deploy.precisions import FP32
from vitfx.deploy.runtime import OnnxModel, open_session
from vitfx.images.image_set import Images, ImageSet
from vitfx.models.checkpoint import LoadedModel, save_artifact
from vitfx.pruning.plan_file import PLAN_FILES, write_plan
from vitfx.pruning.prune_by_circuit import Pruned
from vitfx.support.devices import synchronize
from vitfx.support.files import write_aside
from vitfx.support.progress import Watcher
from vitfx.support.timing import Ratio, Timing, ratio, time_interleaved
from vitfx.version import VERSION

RESULTS = (
    "pruned.pt", "pruned.onnx", "baseline.onnx", "circuit.json", *PLAN_FILES, "report.json", "report.md",
    "report.html",
)  # fmt: skip
BATCHES = (1, 64)
"""At which times are measured, whatever the run is for."""
_EVALUATION_BATCH = 64
_ROUNDS = 15
_SECONDS = 4.0


@dataclass(frozen=True)
class Measured:
    """What the two ONNX files did on the runtime. timings and ratios: by batch; a ratio is baseline by pruned.

    onnx_error: greatest |onnx − torch| by the greatest |torch| of the two files. deployment: see `Written`. precision:
    how a third file, in other numbers, was made; its scores and timings are named after it.
    """

    provider: str
    scores: Mapping[str, Scores]
    timings: Mapping[int, Mapping[str, Timing]]
    ratios: Mapping[int, Ratio]
    onnx_error: float
    deployment: Mapping[str, Any] = field(default_factory=dict)
    precision: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """onnx_error: greatest relative difference of the two ONNX files from torch. deployment: how pruned.onnx was made
    of the artifact, and what that changed."""

    onnx_error: float
    deployment: dict[str, Any]


def write_files(
    folder: Path, pruned: Pruned, model: LoadedModel, images: Images, deployment: Deployment, watcher: Watcher
) -> Written:
    """Writes circuit, plan, artifact and both ONNX files: baseline.onnx as torch exports it, pruned.onnx as deployed.

    Raises ExportMismatch where a file is not its module, VerificationError, with nothing written, where an exact
    rewrite is not exact.
    """
    watcher.say("exporting")
    lowered = lower(pruned.module, deployment.graph_rewrites, images.pixels)
    write_aside(folder / "circuit.json", pruned.circuit.to_json())
    write_plan(folder, pruned.plan)
    provenance = _provenance(pruned, model)
    save_artifact(folder / "pruned.pt", pruned.module, model.preprocess, model.classes, model.data, provenance)
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in provenance.items()}
    metadata |= {"preprocess": json.dumps(model.preprocess.to_json()), "precision": FP32}
    if model.classes is not None:
        metadata["classes"] = json.dumps(model.classes)
    example = images.pixels[:2]
    plain, said = export_plain(model.module, pruned.original, example, {**metadata, "role": "baseline"})
    whole = _write(folder / "baseline.onnx", plain, pruned.original, images.pixels)
    exported = to_onnx(lowered.graph_module, example, {**metadata, "role": "pruned"})
    formed = deployment.formed(exported).model
    small = _write(folder / "pruned.onnx", formed, lowered.graph_module, images.pixels)
    applied = {"applied": list(lowered.applied), "float64": lowered.error}
    return Written(max(whole, small), {**deployment.to_json(), **applied, "baseline": said})


def _write(path: Path, model: onnx.ModelProto, module: GraphModule, pixels: Tensor) -> float:
    write_onnx(model, path)
    try:
        return compare_onnx(path, module, pixels[:8])
    except ExportMismatch:
        path.unlink()
        raise


def _provenance(pruned: Pruned, model: LoadedModel) -> dict[str, Any]:
    return {
        "vitfx": VERSION,
        "model": model.source,
        "model_fingerprint": model.fingerprint,
        "circuit_fingerprint": pruned.circuit.fingerprint(),
        "tau": pruned.circuit.settings.get("tau"),
        "settings": dict(pruned.circuit.settings),
        "kl": pruned.circuit.kl,
    }


def measure(
    folder: Path,
    evaluation: ImageSet,
    device: torch.device,
    onnx_error: float,
    watcher: Watcher,
    others: Sequence[str] = (),
    batches: Sequence[int] = BATCHES,
) -> Measured:
    """Runs both ONNX files, and `others` beside them, over the evaluation images and times them at these batches, in
    turns, on ONNX Runtime. device: where they run."""
    sessions = {name: _open(folder / f"{name}.onnx", device) for name in ("baseline", "pruned", *others)}
    wait = partial(synchronize, device)
    scores = evaluate(
        {name: session.run for name, session in sessions.items()},
        evaluation,
        batch=_EVALUATION_BATCH,
        synchronize=wait,
        progress=watcher.bar("evaluating"),
    )
    sample = next(evaluation.batches(max(batches))).pixels
    timings = {batch: _time(sessions, sample, batch, device, watcher) for batch in batches}
    ratios = {batch: ratio(found["baseline"], found["pruned"]) for batch, found in timings.items()}
    return Measured(sessions["pruned"].provider, scores, timings, ratios, onnx_error)


def _open(path: Path, device: torch.device) -> OnnxModel:
    return open_session(path, device, layouts=path.name not in HALVES)


def _time(
    sessions: dict[str, OnnxModel], sample: Tensor, batch: int, device: torch.device, watcher: Watcher
) -> dict[str, Timing]:
    pixels = sample.repeat(-(-batch // len(sample)), 1, 1, 1)[:batch]
    return time_interleaved(
        {name: session.bind(pixels) for name, session in sessions.items()},
        rounds=_ROUNDS,
        min_seconds=_SECONDS,
        synchronize=partial(synchronize, device),
        progress=watcher.bar(f"timing, batch {batch}"),
    )
