"""Step 3: the time of what deletion leaves, as a share of the whole model's, against its share of the FLOPs.

At each batch and precision the whole model and what every plan leaves of it take turns: as torch runs them, and as CUDA
graphs. torch.compile and ONNX Runtime, which take long to get ready, are given the largest plans alone. What the time
does not allow is listed as left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product

import torch

from benchmarks.gpu import compiled, onnx_runtime
from benchmarks.gpu.context import Context, Figures
from benchmarks.gpu.models import BASE, SMALL
from benchmarks.gpu.onnx_runtime import CPU_LABEL
from benchmarks.gpu.timing import Run, capture
from benchmarks.gpu.variants import PRECISIONS, WHOLE, Cell, Variant, inputs_for, make_variants, record_times
from vitfx.support.devices import is_gpu

EAGER, GRAPH = "eager", "cuda graph"
_FEW = 1e-9
_SHARES = {SMALL: 0.35, BASE: 0.4, "onnx": 0.5}
"""Of the time that is left when a part begins."""


def run(context: Context, figures: Figures) -> None:
    rows, left_out = figures.setdefault("rows", []), figures.setdefault("left_out", [])
    variants = {}
    for name in (SMALL, BASE):
        variants[name] = make_variants(context.subject(name), context.sizes.shares, context.seed)
        figures.setdefault("flops_ratio", {})[name] = {one.name: one.flops for one in variants[name]}
        with context.within(_SHARES[name]):
            _plain(context, name, variants[name], rows, left_out)
    with context.within(_SHARES["onnx"]):
        onnx_runtime.run(context, context.subject(SMALL), variants[SMALL], rows, left_out)
    compiled.run(context, SMALL, variants[SMALL], rows, left_out)


def _plain(
    context: Context, name: str, variants: Sequence[Variant], rows: list[Figures], left_out: list[Figures]
) -> None:
    for precision in PRECISIONS:
        if context.left() <= 0:
            left_out.append({"model": name, "precision": precision, "runtimes": [EAGER, GRAPH]})
            continue
        modules = {one.name: one.on(context.device, precision) for one in variants}
        for batch, runtime in product(context.sizes.batches, (EAGER, GRAPH)):
            cell = Cell(name, precision, batch, runtime)
            if runtime == GRAPH and not is_gpu(context.device):
                rows.append({**cell.facts(), "unavailable": f"a CUDA graph needs a GPU, and this is {context.device}"})
            elif context.left() <= 0:
                left_out.append(cell.facts())
            else:
                context.attempt(rows, cell.facts(), partial(_time, context, cell, variants, dict(modules)))


def _time(context: Context, cell: Cell, variants: Sequence[Variant], runs: dict[str, Run], row: Figures) -> None:
    inputs = inputs_for(context, context.subject(cell.model), cell)
    if cell.runtime == GRAPH:
        with torch.no_grad():
            row["off_eager"] = _captured(runs, inputs[0], inputs[1])
    record_times(context, row, runs, inputs, {one.name: one.flops for one in variants})


def _captured(runs: dict[str, Run], example: torch.Tensor, other: torch.Tensor) -> float:
    """Puts a CUDA graph in each run's place; how far one is from the plain run at most, on other images."""
    pool, off = torch.cuda.graph_pool_handle(), 0.0
    for name, run in runs.items():
        expected = run(other)
        replay = capture(run, example, pool)
        answer = replay(other)
        assert isinstance(expected, torch.Tensor) and isinstance(answer, torch.Tensor)
        off = max(off, float((answer - expected).abs().max() / expected.abs().max().clamp_min(_FEW)))
        runs[name] = replay
    return off


def lines(figures: Figures) -> list[str]:
    """Of every runtime, the largest plans at one batch and at many, in half precision where there is one."""
    rows = figures.get("rows", [])
    timed = [row for row in rows if "times" in row and (row["precision"] != "fp32" or row["runtime"] == CPU_LABEL)]
    chosen: dict[tuple[str, str, bool], Figures] = {}
    for row in timed:
        chosen.setdefault((row["model"], row["runtime"], row["batch"] == 1), row)
    found = [_line(row) for row in chosen.values()]
    found += sorted({f"{row['runtime']}: {row['unavailable']}" for row in rows if "unavailable" in row})
    found += [f"{row['model']} {row['precision']} {row['batch']} {row['runtime']}: {row['error']}" for row in rows
              if "error" in row]  # fmt: skip
    left_out = len(figures.get("left_out", []))
    return found + ([f"{left_out} cells of times were left out for want of time"] if left_out else [])


def _line(row: Figures) -> str:
    times = row["times"]
    largest = max((one.split()[-1] for one in times if one != WHOLE), default="", key=lambda share: int(share[:-1]))
    parts = [
        f"{name.removesuffix(f' {largest}')} {one['time_ratio']:.2f}/{one['flops_ratio']:.2f}"
        for name, one in times.items()
        if name.endswith(largest) and name != WHOLE
    ]
    where = f"{row['model']} {row['precision']} b{row['batch']} {row['runtime']}"
    return f"{where}: {times[WHOLE]['median_ms']:.2f} ms; time/FLOPs at {largest}: {', '.join(parts)}"
