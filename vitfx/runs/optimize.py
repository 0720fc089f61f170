"""One run of `vitfx.optimize`: rewrites proved, measured alone and together, the fastest form kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from vitfx.deploy.deployment import Deployed, Deployment, deploy_forms
from vitfx.deploy.export import OPSET, export_checked, export_plain, onnx_metadata
from vitfx.deploy.lowering import Normalising, plain_pixels
from vitfx.deploy.onnx_forms import FORMS, Form
from vitfx.deploy.precisions import FP32, INT8, ONNX_RUNTIME
from vitfx.deploy.program_file import write_program
from vitfx.graph.answers import Kind
from vitfx.graph.canonical import read_module
from vitfx.models.checkpoint import LoadedModel
from vitfx.reports.records import OPTIMIZE_REPORT, OptimizeReport, RewriteRecord
from vitfx.runs.optimize_bench import OptimizeBench, fastest, measure_alone
from vitfx.runs.optimize_int8 import add_times, quantize_forms, write_bf16_compared, write_int8_compared
from vitfx.runs.optimize_text import to_markdown
from vitfx.support.devices import words_for
from vitfx.support.files import UNFINISHED, begin_results, remove_results, write_aside
from vitfx.support.json_files import write_json
from vitfx.support.machine import environment, load_average
from vitfx.support.progress import Watcher
from vitfx.support.timing import Ratio, ratio

BASELINE, OPTIMIZED, PROGRAM = "baseline.onnx", "optimized.onnx", "optimized.pt2"
INT8_FILE, BF16_FILE = "optimized-int8.onnx", "optimized-bf16.onnx"
RESULTS = (BASELINE, OPTIMIZED, PROGRAM, "report.json", "report.md")


@dataclass(frozen=True)
class OptimizeJob:
    """A checked command line, with the model and the images open."""

    model: LoadedModel
    pixels: Tensor  #: (2 or more, C, H, W), normalised
    images: str  #: where they come from
    rewrites: tuple[str, ...]
    forms: tuple[Form, ...]  #: to choose from
    plain: bool  #: whether the file does the normalisation
    batches: tuple[int, ...]  #: to measure
    alone: bool  #: whether each rewrite is measured by itself as well
    device: torch.device
    out: Path
    opset: int = OPSET  #: of both ONNX files
    precision: str = FP32  #: with "int8" there is a third ONNX file, and the form is the one that it is fastest in
    runtime: str = ONNX_RUNTIME  #: what times are of
    task: Kind | None = None  #: of the answers, where the user or the model's file says

    @property
    def deployment(self) -> Deployment:
        """In the first form."""
        return Deployment(self.rewrites, self.forms[0], self.model.preprocess if self.plain else None, self.opset)

    @property
    def file_pixels(self) -> Tensor:
        """As the optimized files take them."""
        return plain_pixels(self.pixels, self.model.preprocess) if self.plain else self.pixels


def run_optimize(job: OptimizeJob, watcher: Watcher) -> OptimizeReport:
    """Writes baseline.onnx, optimized.onnx, optimized.pt2 and the report, which it returns.

    Raises UserError, VerificationError and ExportMismatch.
    """
    load = load_average()
    watcher.say(f"device: {words_for(job.device)}")
    front = read_module(job.model.module, job.pixels, watcher, merged=True)
    canonical = front.graph_module
    if job.deployment.remark:
        watcher.say(job.deployment.remark)
    watcher.say("rewriting and exporting")
    metadata = onnx_metadata(job.model, {}, job.deployment.preprocess(job.model.preprocess))
    deployed = deploy_forms(canonical, job.deployment, job.forms, job.pixels, metadata)
    begin_results(job.out)
    remove_results(job.out, (*RESULTS, INT8_FILE, BF16_FILE))
    baseline = _export_baseline(job, canonical)
    plain = job.model.preprocess if job.plain else None
    bench = OptimizeBench(job.device, job.batches, job.pixels, plain, watcher, job.runtime)
    int8 = quantize_forms(deployed, job.file_pixels, watcher) if job.precision == INT8 else {}
    forms = bench.against(job.out / BASELINE, {name: each.model for name, each in (int8 or deployed).items()})
    chosen = fastest(forms)
    best = deployed[chosen]
    watcher.say(f"form {chosen} is the fastest" if len(forms) > 1 else f"form {chosen}")
    errors = _export_optimized(job, best, canonical, metadata)
    alone = measure_alone(bench, canonical, job.deployment, FORMS[chosen]) if job.alone else {}
    files, made = {"optimized": job.out / OPTIMIZED}, None
    if job.precision != FP32:
        path = job.out / (INT8_FILE if int8 else BF16_FILE)
        given = (path, job.out / OPTIMIZED, job.file_pixels, front.kind(None, job.task, watcher).name, job.runtime)
        made = write_int8_compared(int8[chosen], *given) if int8 else write_bf16_compared(best.model, *given)
        files[path.stem] = path
    final = bench.final(job.out / BASELINE, files)
    report: OptimizeReport = {
        "model": job.model.source,
        "model_fingerprint": job.model.fingerprint,
        "images": {"count": len(job.pixels), "of": job.images},
        "baseline": baseline,
        "form": chosen,
        "portable": FORMS[chosen].portable,
        "settings": _settings(job, best),
        "time_left": {
            str(batch): ratio(timings["optimized"], timings["baseline"]).paired for batch, timings in final.items()
        },
        "latency_ms": {
            str(batch): {name: timing.to_json() for name, timing in timings.items()} for batch, timings in final.items()
        },
        "forms": {name: _paired(ratios) for name, ratios in forms.items()},
        "rewrites": _rewrites(best, alone),
        "verify": {"float64": best.lowered.error, **errors},
        "precision": None if made is None else add_times(made, final),
        "notes": [*job.model.first_lines, *front.notes, *best.refusals],
        "environment": {**environment(), "device": str(job.device), "load_average_before": load},
    }
    write_json(job.out / "report.json", OPTIMIZE_REPORT, report)
    write_aside(job.out / "report.md", to_markdown(report))
    remove_results(job.out, [UNFINISHED])
    return report


def _export_baseline(job: OptimizeJob, canonical: GraphModule) -> str:
    """Writes baseline.onnx; what it is."""
    model, source = export_plain(job.model.module, canonical, job.pixels[:2], onnx_metadata(job.model, {}), job.opset)
    export_checked(model, job.out / BASELINE, canonical, job.pixels)
    return source


def _export_optimized(
    job: OptimizeJob, best: Deployed, canonical: GraphModule, metadata: Mapping[str, str]
) -> dict[str, float]:
    """Writes optimized.onnx and optimized.pt2; how far each is from the canonical graph."""
    reference: nn.Module = Normalising(canonical, job.model.preprocess) if job.plain else canonical
    pixels = job.file_pixels
    return {
        "onnx": export_checked(best.model, job.out / OPTIMIZED, reference, pixels),
        "pt2": write_program(job.out / PROGRAM, best.lowered.graph_module, pixels, metadata, reference),
    }


def _settings(job: OptimizeJob, best: Deployed) -> dict[str, Any]:
    return {
        **job.deployment.to_json(),
        "preprocess": job.model.preprocess.to_json(),
        "form": [form.name for form in job.forms],
        "batches": list(job.batches),
        "runtime": job.runtime,
        "nodes": len(best.model.graph.node),
    }


def _paired(ratios: dict[int, Ratio]) -> dict[str, float]:
    return {str(batch): ratio.paired for batch, ratio in ratios.items()}


def _rewrites(best: Deployed, alone: dict[str, dict[int, Ratio]]) -> list[RewriteRecord]:
    """Each with its proof and, where it was measured, its time alone."""

    def record(name: str, changed: bool, error: float | None, notes: tuple[str, ...]) -> RewriteRecord:
        times = _paired(alone.get(name, {}))
        return {"name": name, "changed": changed, "error": error, "notes": list(notes), "alone": times}

    steps = best.lowered.steps
    unproved = [name for name in alone if name not in {step.name for step in steps}]
    return [
        *(record(step.name, step.changed, step.error, step.notes) for step in steps),
        *(record(name, True, None, ()) for name in unproved),
    ]
