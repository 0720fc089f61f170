"""From a pruned module to a folder of files: artifact, ONNX files, circuit, plan, and what was measured of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitfx.deploy.deployment import Deployment
from vitfx.deploy.evaluate import Scores, evaluate
from vitfx.deploy.export import export_checked, export_plain, onnx_metadata, to_onnx
from vitfx.deploy.lowering import lower
from vitfx.deploy.precision_file import HALVES
from vitfx.deploy.precisions import FP32, ONNX_RUNTIME
from vitfx.deploy.program_file import write_program
from vitfx.deploy.runtime import Session
from vitfx.deploy.runtimes import open_on
from vitfx.graph.divergence import CLASSES, Divergence
from vitfx.images.image_set import Images, ImageSet
from vitfx.models.checkpoint import LoadedModel, save_artifact
from vitfx.models.chosen import CHOSEN
from vitfx.pruning.plan_file import PLAN_FILES, write_plan
from vitfx.pruning.prune_by_circuit import Pruned
from vitfx.runs.prune_run import BATCHES
from vitfx.support.devices import synchronize
from vitfx.support.files import write_aside
from vitfx.support.progress import Watcher
from vitfx.support.timing import Ratio, Timing, ratio, time_interleaved
from vitfx.version import VERSION

RESULTS = (
    "pruned.pt", "pruned.pt2", "pruned.onnx", "baseline.onnx", "circuit.json", *PLAN_FILES, "report.json",
    "report.md", "report.html",
)  # fmt: skip
_EVALUATION_BATCH = 64
_ROUNDS = 15
_SECONDS, _MOST_SECONDS = 4.0, 60.0


@dataclass(frozen=True)
class Written:
    """The files of a run that other runtimes read."""

    onnx_error: float  #: greatest |onnx − torch| by the greatest |torch| of baseline.onnx and pruned.onnx
    program_error: float  #: likewise of pruned.pt2
    deployment: Mapping[str, Any] = field(default_factory=dict)  #: how pruned.onnx was made, and what that changed
    precision: Mapping[str, Any] = field(default_factory=dict)  #: how a third file was made, if there is one


@dataclass(frozen=True)
class Measured:
    """What the ONNX files did on the runtime. A third file is named after itself, without its suffix."""

    provider: str
    scores: Mapping[str, Scores]
    timings: Mapping[int, Mapping[str, Timing]]  #: by batch and model
    ratios: Mapping[int, Ratio]  #: baseline by pruned, by batch
    onnx_error: float  #: see `Written`
    program_error: float  #: see `Written`
    deployment: Mapping[str, Any] = field(default_factory=dict)  #: see `Written`
    precision: Mapping[str, Any] = field(default_factory=dict)  #: see `Written`


def write_files(
    folder: Path, pruned: Pruned, model: LoadedModel, images: Images, deployment: Deployment, watcher: Watcher
) -> Written:
    """Writes circuit, plan and artifact, baseline.onnx as torch exports it, and pruned.onnx as deployed, whose graph
    pruned.pt2 has for torch alone.

    Raises ExportMismatch where a file is not its module, VerificationError, with nothing written, where an exact
    rewrite is not exact.
    """
    if deployment.remark:
        watcher.say(deployment.remark)
    watcher.say("proving the exact rewrites")
    pixels = images.pixels
    lowered = lower(pruned.module, deployment.graph_rewrites, pixels)
    write_aside(folder / "circuit.json", pruned.circuit.to_json())
    write_plan(folder, pruned.plan)
    provenance = _provenance(pruned, model)
    origin = {name: model.provenance[name] for name in (CHOSEN,) if name in model.provenance}
    save_artifact(
        folder / "pruned.pt", pruned.module, model.preprocess, model.classes, model.data, {**provenance, **origin}
    )
    metadata = onnx_metadata(model, {**provenance, "precision": FP32})
    watcher.say("exporting baseline.onnx")
    baseline, source = export_plain(
        model.module, pruned.original, pixels[:2], {**metadata, "role": "baseline"}, deployment.opset
    )
    errors = [export_checked(baseline, folder / "baseline.onnx", pruned.original, pixels)]
    del baseline  # It holds all weights, as the next one will.
    watcher.say("exporting pruned.onnx")
    told = {**metadata, "role": "pruned"}
    exported = to_onnx(lowered.graph_module, pixels[:2], told, deployment.opset)
    formed = deployment.formed(exported).model
    del exported
    errors.append(export_checked(formed, folder / "pruned.onnx", lowered.graph_module, pixels))
    program_error = write_program(folder / "pruned.pt2", lowered.graph_module, pixels, told)
    applied = {"applied": list(lowered.applied), "float64": lowered.error}
    return Written(max(errors), program_error, {**deployment.to_json(), **applied, "baseline": source})


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
    written: Written,
    watcher: Watcher,
    batches: Sequence[int] = BATCHES,
    divergence: Divergence = CLASSES,
    runtime: str = ONNX_RUNTIME,
    other: int | None = None,
) -> Measured:
    """Runs the ONNX files over the evaluation images and times them at these batches, in turns.
    device, runtime: where they run. divergence: of the model's kind of answers. other: see `evaluate`."""
    others = [Path(written.precision["file"]).stem] if written.precision else []
    files = {name: folder / f"{name}.onnx" for name in ("baseline", "pruned", *others)}
    sessions = {name: open_on(runtime, path, device, layouts=path.name not in HALVES) for name, path in files.items()}
    scores = evaluate(
        {name: session.run for name, session in sessions.items()},
        evaluation,
        batch=_EVALUATION_BATCH,
        divergence=divergence,
        other=other,
        synchronize=partial(synchronize, device),
        progress=watcher.bar("evaluating"),
    )
    sample = next(evaluation.batches(max(batches))).pixels
    timings = {batch: _time(sessions, sample, batch, device, watcher) for batch in batches}
    ratios = {batch: ratio(by_model["baseline"], by_model["pruned"]) for batch, by_model in timings.items()}
    provider = sessions["pruned"].provider
    return Measured(
        provider,
        scores,
        timings,
        ratios,
        written.onnx_error,
        written.program_error,
        dict(written.deployment),
        dict(written.precision),
    )


def _time(
    sessions: Mapping[str, Session], sample: Tensor, batch: int, device: torch.device, watcher: Watcher
) -> dict[str, Timing]:
    pixels = sample.repeat(-(-batch // len(sample)), 1, 1, 1)[:batch]
    return time_interleaved(
        {name: session.bind(pixels) for name, session in sessions.items()},
        rounds=_ROUNDS,
        min_seconds=_SECONDS,
        max_seconds=_MOST_SECONDS,
        synchronize=partial(synchronize, device),
        progress=watcher.bar(f"timing, batch {batch}"),
    )
