"""Step 5: the ONNX file in each of its forms, after all exact rewrites, by the time of what the exporter writes."""

from __future__ import annotations

from functools import partial
from itertools import product

import torch

from benchmarks.gpu.context import Context, Figures
from benchmarks.gpu.models import SMALL
from benchmarks.gpu.onnx_runtime import CPU, CUDA, LABELS, bind, missing_provider
from benchmarks.gpu.timing import Run
from benchmarks.gpu.variants import Cell, inputs_for, record_times
from vitfx.support.devices import is_gpu

_PLAIN = "plain"
"""As the exporter writes it, without rewrites."""


def run(context: Context, figures: Figures) -> None:
    rows = figures["rows"] = []
    gpu = is_gpu(context.device)
    provider = CUDA if gpu else CPU
    facts = Cell(SMALL, "fp16", context.sizes.batches[0], LABELS[provider]).facts()
    if missing := missing_provider(provider):
        rows.append({**facts, "unavailable": missing})
        return
    models: dict[str, bytes] = {}
    if not context.attempt(rows, {"what": "export"}, partial(_export, context, models)):
        return
    for precision, batch in product(("fp16", "fp32") if gpu else ("fp32",), context.sizes.batches[:2]):
        cell = Cell(SMALL, precision, batch, LABELS[provider])
        context.attempt(rows, cell.facts(), partial(_time, context, cell, provider, models))


def _export(context: Context, models: dict[str, bytes], row: Figures) -> None:
    """Every form's file in both precisions, under "form precision"."""
    from vitfx.deploy.deployment import default_deployment, deploy_forms, read_rewrites
    from vitfx.deploy.onnx_forms import FORMS
    from vitfx.deploy.quantize import to_float16

    subject, cpu = context.subject(SMALL), torch.device("cpu")
    for names, forms in ((), [FORMS["exported"]]), (read_rewrites("all"), list(FORMS.values())):
        deployment = default_deployment(names, cpu, portable=True)
        deployed = deploy_forms(subject.graph_module, deployment, forms, subject.pixels[:2], {})
        for name, form in deployed.items():
            label = name if names else _PLAIN
            models[f"{label} fp32"] = form.model.SerializeToString()
            models[f"{label} fp16"] = to_float16(form.model).SerializeToString()
            row.setdefault("refusals", {})[label] = list(form.refusals)


def _time(context: Context, cell: Cell, provider: str, models: dict[str, bytes], row: Figures) -> None:
    inputs = [pixels.float() for pixels in inputs_for(context, context.subject(cell.model), cell)]
    runs: dict[str, Run] = {}
    row["refused"], row["needs_the_cpu"], row["off_plain"] = {}, {}, {}
    expected: torch.Tensor | None = None
    for key, model in models.items():
        name, precision = key.split()
        if precision != cell.precision:
            continue
        try:
            bound, needs = bind(model, provider, inputs[0], context.device, half=precision == "fp16")
            logits = bound(inputs[0])
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own.
            if name == _PLAIN:
                raise
            row["refused"][name] = " ".join(str(error).split())[:300]
            continue
        assert isinstance(logits, torch.Tensor)
        expected = logits.clone() if expected is None else expected
        row["off_plain"][name] = float((logits - expected).abs().max() / expected.abs().max())
        runs[name] = bound
        if needs:
            row["needs_the_cpu"][name] = needs
    record_times(context, row, runs, inputs, dict.fromkeys(runs, 1.0))


def lines(figures: Figures) -> list[str]:
    summary = []
    for row in figures.get("rows", []):
        where = " ".join(str(row[key]) for key in ("precision", "batch", "runtime", "what") if key in row)
        if result := row.get("error") or row.get("unavailable"):
            summary.append(f"{where}: {result}")
        elif "times" in row:
            ratios = [f"{name} {time['time_ratio']:.2f}" for name, time in row["times"].items() if name != _PLAIN]
            summary.append(f"{where} {row['times'][_PLAIN]['median_ms']:.2f} ms: {', '.join(ratios)}")
    return summary
