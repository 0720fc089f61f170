"""report.json of `vitfx.prune`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from passes.cost import Cost
from vitfx.deploy.precision_file import precision_record
from vitfx.images.image_set import Images
from vitfx.pruning.prune_by_circuit import Pruned
from vitfx.runs.prune_files import Measured

FORMAT = "vitfx-prune-report/1"


class Side(TypedDict):
    """One of the two models. Times are keyed by the batch."""

    loss: float | None
    accuracy: float | None
    params: int
    flops: int
    heads: int
    mlp_neurons: int
    sublayers: int
    latency_ms: dict[str, float]  #: the median
    latency_spread_ms: dict[str, list[float]]  #: tenth and ninetieth percentile
    evaluation_seconds: float


class ImageCounts(TypedDict):
    calibration: int
    evaluation: int
    skipped: int


class CircuitFacts(TypedDict):
    source: str | None  #: the file that the circuit was read from, None where this run discovered it
    method: str
    granularity: str
    kl: float
    artifact_kl: float | None  #: see `Pruned`
    edges: int
    removed: int
    fingerprint: str
    fidelity: dict[str, Any] | None  #: of the circuit itself, on the calibration images
    calibration: dict[str, Any] | None


class PruneReport(TypedDict):
    """report.json."""

    baseline: Side
    pruned: Side
    kl: float
    agreement: float
    speedup: float  #: the baseline's time by the pruned model's, at `batch`
    batch: int
    speedup_by_batch: dict[str, float]
    runtime: str
    images: ImageCounts
    circuit: CircuitFacts
    compensation: dict[str, Any]
    verify: dict[str, Any]
    deployment: dict[str, Any]
    precision: dict[str, Any] | None
    notes: list[str]
    settings: dict[str, Any]
    environment: dict[str, Any]


def make_report(
    pruned: Pruned,
    measured: Measured,
    calibration: Images,
    settings: Mapping[str, Any],
    environment: Mapping[str, Any],
    batch: int | None = None,
) -> PruneReport:
    """batch: that the speed-up is for, the largest by default."""
    batch = batch or max(measured.ratios)
    speedups = {str(size): ratio.paired for size, ratio in measured.ratios.items()}
    return {
        "baseline": _side("baseline", pruned.verification.before, measured),
        "pruned": _side("pruned", pruned.verification.measured, measured),
        "kl": measured.scores["pruned"].kl,
        "agreement": measured.scores["pruned"].agreement,
        "speedup": speedups[str(batch)],
        "batch": batch,
        "speedup_by_batch": speedups,
        "runtime": measured.provider,
        "images": {
            "calibration": len(calibration),
            "evaluation": measured.scores["pruned"].images,
            "skipped": calibration.skipped + measured.scores["pruned"].skipped,
        },
        "circuit": _circuit(pruned, settings.get("circuit")),
        "compensation": {
            **pruned.compensation.to_json(),
            "sentence": None if pruned.compensation.kl is None else pruned.compensation.sentence,
        },
        "verify": {**pruned.verification.to_json(), "onnx": measured.onnx_error},
        "deployment": dict(measured.deployment),
        "precision": precision_record(measured.precision, measured.scores, measured.timings),
        "notes": list(pruned.notes),
        "settings": dict(settings),
        "environment": dict(environment),
    }


def _circuit(pruned: Pruned, source: str | None) -> CircuitFacts:
    circuit = pruned.circuit
    return {
        "source": source,
        "method": circuit.settings["method"],
        "granularity": circuit.settings["granularity"],
        "kl": circuit.kl,
        "artifact_kl": pruned.artifact_kl,
        "edges": len(circuit.decisions),
        "removed": len(circuit.removed),
        "fingerprint": circuit.fingerprint(),
        "fidelity": circuit.details.get("fidelity"),
        "calibration": circuit.details.get("calibration"),
    }


def _side(name: str, cost: Cost, measured: Measured) -> Side:
    scores = measured.scores[name]
    timings = {str(batch): by_model[name] for batch, by_model in measured.timings.items()}
    return {
        "loss": scores.loss,
        "accuracy": scores.accuracy,
        "params": cost.parameters,
        "flops": cost.flops,
        "heads": cost.heads,
        "mlp_neurons": cost.neurons,
        "sublayers": cost.sublayers,
        "latency_ms": {batch: timing.median_ms for batch, timing in timings.items()},
        "latency_spread_ms": {batch: [timing.p10_ms, timing.p90_ms] for batch, timing in timings.items()},
        "evaluation_seconds": scores.seconds,
    }
