"""report.json of `vitfx.prune`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from passes.cost import Cost
from vitfx.deploy.precision_file import precision_record
from vitfx.images.image_set import Images
from vitfx.pruning.prune_by_circuit import Pruned
from vitfx.reports.records import CircuitRecord, PrecisionRecord, PruneReport, Side
from vitfx.runs.prune_files import Measured


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
    precision = precision_record(measured.precision, measured.scores, measured.timings)
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
        "verify": {**pruned.verification.to_json(), "onnx": measured.onnx_error, "pt2": measured.program_error},
        "deployment": dict(measured.deployment),
        "precision": cast("PrecisionRecord | None", precision),
        "notes": list(pruned.notes),
        "settings": dict(settings),
        "environment": dict(environment),
    }


def _circuit(pruned: Pruned, source: str | None) -> CircuitRecord:
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
    side: Side = {
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
    if scores.by_choice is not None:
        side["accuracy_by_choice"] = list(scores.by_choice)
    if scores.precision is not None:
        side["mean_average_precision"] = scores.precision
    return side
