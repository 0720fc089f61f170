"""One run of `vitfx.optimize`: rewrites proved, measured alone and together, the fastest form kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from vitfx.deploy.deployment import Deployed, Deployment, deploy_forms
from vitfx.deploy.export import ExportMismatch, compare_onnx, export_plain, write_onnx
from vitfx.deploy.lowering import Normalising, plain_pixels
from vitfx.deploy.onnx_forms import FORMS, Form
from vitfx.graph.canonical import read_module
from vitfx.models.checkpoint import LoadedModel
from vitfx.runs.optimize_bench import SessionBench, fastest, measure_alone
from vitfx.runs.optimize_text import to_markdown
from vitfx.support.files import UNFINISHED, begin_results, remove_results, write_aside
from vitfx.support.machine import environment, load_average
from vitfx.support.progress import Watcher
from vitfx.support.timing import Ratio, Timing
from vitfx.version import VERSION

BASELINE, OPTIMIZED = "baseline.onnx", "optimized.onnx"
RESULTS = (BASELINE, OPTIMIZED, "report.json", "report.md")


@dataclass(frozen=True)
class OptimizeJob:
    """A checked command line."""

    model: LoadedModel
    pixels: Tensor  #: (2 or more, C, H, W), normalised
    images: str  #: where the pixels come from
    rewrites: tuple[str, ...]
    forms: tuple[Form, ...]  #: those to choose from
    plain: bool  #: whether the file takes pixels of 0 to 1
    batches: tuple[int, ...]  #: to be measured
    alone: bool  #: whether each rewrite is measured by itself as well
    device: torch.device
    out: Path

    @property
    def deployment(self) -> Deployment:
        """In the first form."""
        return Deployment(self.rewrites, self.forms[0], self.model.preprocess if self.plain else None)


def run_optimize(job: OptimizeJob, watcher: Watcher) -> dict[str, Any]:
    """Writes baseline.onnx, optimized.onnx and the report, which it returns.

    Raises UserError, VerificationError and ExportMismatch.
    """
    load = load_average()
    front = read_module(job.model.module, job.pixels, watcher)
    canonical = front.graph_module
    watcher.say("rewriting and exporting")
    metadata = _metadata(job)
    deployed = deploy_forms(canonical, job.deployment, job.forms, job.pixels, metadata)
    begin_results(job.out)
    remove_results(job.out, RESULTS)
    baseline = _export_baseline(job, canonical, metadata)
    bench = SessionBench(job.device, job.batches, job.pixels, job.model.preprocess if job.plain else None, watcher)
    forms = bench.against(job.out / BASELINE, {name: candidate.model for name, candidate in deployed.items()})
    chosen = fastest(forms)
    best = deployed[chosen]
    watcher.say(f"form {chosen} is the fastest" if len(forms) > 1 else f"form {chosen}")
    write_onnx(best.model, job.out / OPTIMIZED)
    error = _compare(job, canonical)
    alone = measure_alone(bench, canonical, job.deployment, FORMS[chosen]) if job.alone else {}
    final = bench.pair(job.out / BASELINE, job.out / OPTIMIZED)
    report = {
        **_facts(job, best, chosen, baseline),
        **_times(final),
        "forms": {name: _paired(ratios) for name, ratios in forms.items()},
        "rewrites": _rewrites(best, alone),
        "verify": {"float64": best.lowered.error, "onnx": error},
        "notes": [*front.notes, *best.refusals],
        "environment": {**environment(), "device": str(job.device), "load_average_before": load},
    }
    write_aside(job.out / "report.json", json.dumps(report, indent=1, ensure_ascii=False))
    write_aside(job.out / "report.md", to_markdown(report))
    remove_results(job.out, [UNFINISHED])
    return report


def _metadata(job: OptimizeJob) -> dict[str, str]:
    preprocess = job.deployment.preprocess(job.model.preprocess)
    found = {
        "vitfx": VERSION,
        "model": job.model.source,
        "model_fingerprint": job.model.fingerprint,
        "preprocess": json.dumps(preprocess.to_json()),
    }
    return found if job.model.classes is None else {**found, "classes": json.dumps(job.model.classes)}


def _export_baseline(job: OptimizeJob, canonical: GraphModule, metadata: dict[str, str]) -> str:
    """Writes baseline.onnx; what it is."""
    metadata = {**metadata, "preprocess": json.dumps(job.model.preprocess.to_json())}
    model, said = export_plain(job.model.module, canonical, job.pixels[:2], metadata)
    write_onnx(model, job.out / BASELINE)
    return said


def _compare(job: OptimizeJob, canonical: GraphModule) -> float:
    """optimized.onnx against the graph that nothing was done to. Raises ExportMismatch, the file removed."""
    pixels, module = job.pixels[:8], canonical
    try:
        if job.plain:
            preprocess = job.model.preprocess
            return compare_onnx(job.out / OPTIMIZED, Normalising(module, preprocess), plain_pixels(pixels, preprocess))
        return compare_onnx(job.out / OPTIMIZED, module, pixels)
    except ExportMismatch:
        (job.out / OPTIMIZED).unlink()
        raise


def _facts(job: OptimizeJob, best: Deployed, chosen: str, baseline: str) -> dict[str, Any]:
    return {
        "model": job.model.source,
        "model_fingerprint": job.model.fingerprint,
        "images": {"count": len(job.pixels), "of": job.images},
        "baseline": baseline,
        "form": chosen,
        "portable": FORMS[chosen].portable,
        "settings": {
            **job.deployment.to_json(),
            "form": [form.name for form in job.forms],
            "batches": list(job.batches),
            "nodes": len(best.model.graph.node),
        },
    }


def _times(final: dict[int, tuple[Ratio, dict[str, Timing]]]) -> dict[str, Any]:
    """time_left: optimized divided by baseline, the median over the rounds, by batch."""
    return {
        "time_left": {str(batch): ratio.paired for batch, (ratio, _) in final.items()},
        "latency_ms": {
            str(batch): {name: timing.to_json() for name, timing in timings.items()}
            for batch, (_, timings) in final.items()
        },
    }


def _paired(ratios: dict[int, Ratio]) -> dict[str, float]:
    return {str(batch): ratio.paired for batch, ratio in ratios.items()}


def _rewrites(best: Deployed, alone: dict[str, dict[int, Ratio]]) -> list[dict[str, Any]]:
    """Each with its proof and, where it was measured, its time alone divided by the canonical graph's."""
    rows: list[dict[str, Any]] = [
        {"name": step.name, "changed": step.changed, "error": step.error, "notes": list(step.notes)}
        for step in best.lowered.steps
    ]
    rows += [
        {"name": name, "changed": True, "error": None, "notes": []}
        for name in alone
        if name not in {row["name"] for row in rows}
    ]
    return [{**row, "alone": _paired(alone.get(row["name"], {}))} for row in rows]
