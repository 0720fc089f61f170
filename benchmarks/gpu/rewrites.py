"""Step 6: exact rewrites, proved on the CPU in float64, and the time of the lowered graph by that of the plain one.

Of the ViT-S each rewrite is timed alone as well, with those that it needs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from itertools import product

import torch
from torch.fx import GraphModule

from benchmarks.gpu.context import Context, Figures
from benchmarks.gpu.deletion import EAGER, GRAPH
from benchmarks.gpu.models import BASE, SMALL
from benchmarks.gpu.timing import Run, capture
from benchmarks.gpu.variants import PRECISIONS, Cell, inputs_for, record_times
from passes.cost import measure_cost
from vitfx.deploy.lowering import NEEDS, REWRITES, lower
from vitfx.support.devices import is_gpu

_PROVED_IMAGES = 2


def run(context: Context, figures: Figures) -> None:
    rows, proofs = figures.setdefault("rows", []), figures.setdefault("proofs", {})
    for name in (SMALL, BASE):
        subject = context.subject(name)
        image = subject.pixels.shape[1:]
        graphs, flops = {"plain": subject.graph_module}, measure_cost(subject.graph_module, image).flops
        for label, names in _choices(alone=name == SMALL).items():
            lowered = lower(subject.graph_module, names, subject.pixels[:_PROVED_IMAGES])
            graphs[label] = lowered.graph_module
            proofs[f"{name} {label}"] = {"error": lowered.error, "applied": list(lowered.applied)}
        shares = {label: measure_cost(graph, image).flops / flops for label, graph in graphs.items()}
        for precision, runtime in product(PRECISIONS, (GRAPH,) if is_gpu(context.device) else (EAGER,)):
            for batch in context.sizes.batches[:2]:
                cell = Cell(name, precision, batch, runtime)
                context.attempt(rows, cell.facts(), partial(_time, context, cell, graphs, shares))


def _choices(*, alone: bool) -> dict[str, tuple[str, ...]]:
    choices = {"all": REWRITES, "unpacked": tuple(name for name in REWRITES if name != "pack_qkv")}
    return choices | ({name: (*NEEDS.get(name, ()), name) for name in REWRITES} if alone else {})


def _time(
    context: Context, cell: Cell, graphs: Mapping[str, GraphModule], flops: Mapping[str, float], row: Figures
) -> None:
    inputs = inputs_for(context, context.subject(cell.model), cell)
    runs: dict[str, Run] = {}
    for label, graph in graphs.items():
        run: Run = copy.deepcopy(graph).to(context.device, inputs[0].dtype)
        if cell.runtime == GRAPH:
            with torch.no_grad():
                run = capture(run, inputs[0])
        runs[label] = run
    record_times(context, row, runs, inputs, flops)


def lines(figures: Figures) -> list[str]:
    rows = [row for row in figures.get("rows", []) if "times" in row and row["precision"] == "bf16"]
    summary = [f"{row['model']} {row['precision']} {row['batch']}: {row['error']}"
             for row in figures.get("rows", []) if "error" in row]  # fmt: skip
    for row in rows:
        times = {label: time for label, time in row["times"].items() if label != "plain"}
        ratios = ", ".join(
            f"{label} {time['time_ratio']:.2f}/{time['flops_ratio']:.2f}" for label, time in times.items()
        )
        summary.append(f"{row['model']} {row['precision']} b{row['batch']} {row['runtime']}: time/FLOPs {ratios}")
    return summary
