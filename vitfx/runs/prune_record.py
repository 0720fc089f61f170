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
    """report.json. latency_ms: median by batch; speedup: baseline's time by pruned's at `batch`, or the largest, which
    is then named."""
    batch = batch or max(measured.ratios)
    precision = precision_record(measured.precision, measured.scores, measured.timings)
    ratios = {str(batch): ratio.paired for batch, ratio in measured.ratios.items()}
    return {
        "baseline": _side("baseline", pruned.verification.before, measured),
        "pruned": _side("pruned", pruned.verification.measured, measured),
        "kl": measured.scores["pruned"].kl,
        "agreement": measured.scores["pruned"].agreement,
        "speedup": ratios[str(batch)],
        "batch": batch,
        "speedup_by_batch": ratios,
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
        "precision": cast("PrecisionRecord | None", precision),
        "notes": list(pruned.notes),
        "settings": dict(settings),
        "environment": dict(environment),
    }


def _circuit(pruned: Pruned, source: str | None) -> CircuitRecord:
    """fidelity: of the circuit as it is, on the calibration images. artifact_kl: see `Pruned`. source: the file that it
    came from, None where this run discovered it."""
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
    return {
        "loss": scores.loss,
        "accuracy": scores.accuracy,
        "params": cost.parameters,
        "flops": cost.flops,
        "heads": cost.heads,
        "mlp_neurons": cost.neurons,
        "sublayers": cost.sublayers,
        "latency_ms": {str(batch): found[name].median_ms for batch, found in measured.timings.items()},
        "latency_spread_ms": {
            str(batch): [found[name].p10_ms, found[name].p90_ms] for batch, found in measured.timings.items()
        },
        "evaluation_seconds": scores.seconds,
    }
