"""Step 9: the memory that each model takes at its peak; what each step took stands in its own record."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.gpu.context import Context, Figures
from benchmarks.gpu.models import BASE, SMALL
from benchmarks.gpu.variants import Cell, Variant, inputs_for, make_variants
from vitfx.support.devices import is_gpu, synchronize


def run(context: Context, figures: Figures) -> None:
    rows = figures["rows"] = []
    if not is_gpu(context.device):
        figures["note"] = f"torch counts no allocations on {context.device}: weights and inputs alone are counted"
    largest = max(context.sizes.shares)
    for name in (SMALL, BASE):
        for variant in make_variants(context.subject(name), [largest], context.seed):
            for precision in ("bf16", "fp32"):
                cell = Cell(name, precision, max(context.sizes.batches), "eager")
                facts = {**cell.facts(), "variant": variant.name}
                context.attempt(rows, facts, partial(_measure, context, cell, variant))


def _measure(context: Context, cell: Cell, variant: Variant, row: Figures) -> None:
    module = variant.on(context.device, cell.precision)
    pixels = inputs_for(context, context.subject(cell.model), cell)[0]
    synchronize(context.device)
    row["weights_mib"] = sum(weight.nbytes for weight in module.parameters()) / 2**20
    row["input_mib"] = pixels.nbytes / 2**20
    if is_gpu(context.device):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(context.device)
        context.peak_mib = max(context.peak_mib, torch.cuda.max_memory_allocated(context.device) / 2**20)
        torch.cuda.reset_peak_memory_stats(context.device)
    with torch.no_grad():
        module(pixels)
    synchronize(context.device)
    if is_gpu(context.device):
        row["activations_mib"] = (torch.cuda.max_memory_allocated(context.device) - before) / 2**20


def lines(figures: Figures) -> list[str]:
    rows = figures.get("rows", [])
    summary = [f"{row['model']} {row['variant']} {row['precision']}: {row['error']}" for row in rows if "error" in row]
    for model in dict.fromkeys(row["model"] for row in rows):
        measured = [
            row for row in rows if row["model"] == model and row["precision"] == "bf16" and "weights_mib" in row
        ]
        parts = [f"{row['variant']} {row['weights_mib']:.3g}{_activations(row)}" for row in measured]
        summary.append(f"{model} bf16, MiB of weights and activations: {', '.join(parts)}")
    return summary + ([figures["note"]] if "note" in figures else [])


def _activations(row: Figures) -> str:
    return f"+{row['activations_mib']:.3g}" if "activations_mib" in row else ""
