"""torch.compile's part of step 3: the whole model and what the largest plans leave, each with a limit on its time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.gpu.context import Context, Figures
from benchmarks.gpu.timing import Run, time_limit
from benchmarks.gpu.variants import PRECISIONS, Cell, Variant, inputs_for, record_times

COMPILE = "torch.compile"


def run(context: Context, name: str, variants: Sequence[Variant], rows: list[Figures]) -> None:
    largest = max(variant.share for variant in variants)
    chosen = [variant for variant in variants if variant.share in (0, largest)]
    cells = [Cell(name, precision, batch, COMPILE) for precision in PRECISIONS for batch in context.sizes.batches[:2]]
    for cell in cells[: context.sizes.compiled]:
        context.attempt(rows, cell.facts(), partial(_time, context, cell, chosen))


def _time(context: Context, cell: Cell, variants: Sequence[Variant], row: Figures) -> None:
    """What can't be compiled in time is listed in the row; without the whole model there is nothing to compare with."""
    # Compiled code is kept for a class of module, and only for a few shapes.
    torch.compiler.reset()
    inputs = inputs_for(context, context.subject(cell.model), cell)
    runs: dict[str, Run] = {}
    row |= {"compile_seconds": {}, "not_compiled": {}}
    for variant in variants:
        limit = min(context.sizes.compile_seconds, context.left())
        if limit <= 0:
            row["not_compiled"][variant.name] = "no time was left for it"
            continue
        began = time.perf_counter()
        # fullgraph: what falls back to eager code in part is not compiled.
        call = torch.compile(
            variant.on(context.device, cell.precision), fullgraph=True, dynamic=False, backend=context.sizes.compiler
        )
        try:
            with time_limit(limit, f"compiling {variant.name}"), torch.no_grad():
                call(inputs[0])
        except Exception as error:
            if not runs:
                raise
            row["not_compiled"][variant.name] = f"{type(error).__name__}: {error}"[:300]
            continue
        row["compile_seconds"][variant.name] = time.perf_counter() - began
        runs[variant.name] = call
    record_times(context, row, runs, inputs, {variant.name: variant.flops for variant in variants})
