"""Step 3: the time of what deletion leaves, as a share of the whole model's, against its share of the FLOPs.

At each batch and precision the whole model and what every plan leaves of it take turns: as torch runs them, and as CUDA
graphs. torch.compile and ONNX Runtime, which take long to get ready, are given the largest plans alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product

import torch

from benchmarks.gpu import compiled, onnx_runtime
from benchmarks.gpu.context import Context, Figures
from benchmarks.gpu.models import BASE, SMALL
from benchmarks.gpu.timing import Run, capture
from benchmarks.gpu.variants import PRECISIONS, WHOLE, Cell, Variant, inputs_for, make_variants, record_times
from vitfx.support.devices import is_gpu

EAGER, GRAPH = "eager", "cuda graph"
_FEW = 1e-9
_MOST_FAILURES = 3
"""In the table."""
_SHARES = {SMALL: 0.35, BASE: 0.4, "onnx": 0.5}
"""Of the time that is left when a part begins."""


def run(context: Context, figures: Figures) -> None:
    rows = figures["rows"] = []
    variants = {}
    for name in (SMALL, BASE):
        variants[name] = make_variants(context.subject(name), context.sizes.shares, context.seed)
        figures.setdefault("flops_ratio", {})[name] = {variant.name: variant.flops for variant in variants[name]}
        with context.within(_SHARES[name]):
            _plain(context, name, variants[name], rows)
    with context.within(_SHARES["onnx"]):
        onnx_runtime.run(context, context.subject(SMALL), variants[SMALL], rows)
    compiled.run(context, SMALL, variants[SMALL], rows)


def _plain(context: Context, name: str, variants: Sequence[Variant], rows: list[Figures]) -> None:
    for precision in PRECISIONS:
        modules: dict[str, Run] = {}
        if context.left() > 0:
            modules = {variant.name: variant.on(context.device, precision) for variant in variants}
        for batch, runtime in product(context.sizes.batches, (EAGER, GRAPH)):
            cell = Cell(name, precision, batch, runtime)
            if runtime == GRAPH and not is_gpu(context.device):
                rows.append({**cell.facts(), "unavailable": f"a CUDA graph needs a GPU, and this is {context.device}"})
            else:
                context.attempt(rows, cell.facts(), partial(_time, context, cell, variants, dict(modules)))


def _time(context: Context, cell: Cell, variants: Sequence[Variant], runs: dict[str, Run], row: Figures) -> None:
    inputs = inputs_for(context, context.subject(cell.model), cell)
    if cell.runtime == GRAPH:
        with torch.no_grad():
            row["off_eager"] = _captured(runs, inputs[0], inputs[1])
    record_times(context, row, runs, inputs, {variant.name: variant.flops for variant in variants})


def _captured(runs: dict[str, Run], example: torch.Tensor, images: torch.Tensor) -> float:
    """Puts a CUDA graph in each run's place; how far one is from the plain run at most, on other images."""
    pool, off = torch.cuda.graph_pool_handle(), 0.0
    for name, run in runs.items():
        expected = run(images)
        replay = capture(run, example, pool)
        answer = replay(images)
        assert isinstance(expected, torch.Tensor) and isinstance(answer, torch.Tensor)
        off = max(off, float((answer - expected).abs().max() / expected.abs().max().clamp_min(_FEW)))
        runs[name] = replay
    return off


def lines(figures: Figures) -> list[str]:
    """What failed; then, of every runtime, the largest plans at many images and at one, in half precision first."""
    rows = figures.get("rows", [])
    failed = [f"{_where(row)}: {row['error']}" for row in rows if "error" in row]
    chosen: dict[tuple[str, str, bool], Figures] = {}
    for row in rows:
        if "times" in row:
            chosen.setdefault((row["model"], row["runtime"], row["batch"] == 1), row)
    missing = dict.fromkeys(f"{row['runtime']}: {row['unavailable']}" for row in rows if "unavailable" in row)
    share = f"{max(_shares(figures), default=0)}%"
    title = [f"time/FLOPs of what plans of {share} leave, by the whole model's"] if chosen else []
    return failed[:_MOST_FAILURES] + title + [_line(row, share) for row in chosen.values()] + list(missing)


def _shares(figures: Figures) -> Iterator[int]:
    for names in figures.get("flops_ratio", {}).values():
        yield from (int(name.split()[-1].removesuffix("%")) for name in names if name != WHOLE)


def _line(row: Figures, share: str) -> str:
    parts = [
        f"{name.removesuffix(share)}{ratios['time_ratio']:.2f}/{ratios['flops_ratio']:.2f}"
        for name, ratios in row["times"].items()
        if name.endswith(share)
    ]
    return f"{_where(row)} {row['times'][WHOLE]['median_ms']:.2f} ms: {', '.join(parts)}"


def _where(row: Figures) -> str:
    return f"{row['model']} {row['precision']} b{row['batch']} {row['runtime']}"
