"""A model whole and after each plan, and the rows of times that are taken of them in turns."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from benchmarks.gpu.context import Context, Figures
from benchmarks.gpu.models import Subject
from benchmarks.gpu.plans import KINDS, plan_for
from benchmarks.gpu.timing import Run, rotated_inputs, time_in_turns
from passes.cost import measure_cost
from vitfx.graph.verify import rewrite
from vitfx.support.timing import ratio

WHOLE = "whole"
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""In the order of their worth on a GPU."""


@dataclass(frozen=True)
class Variant:
    """A model after a plan."""

    kind: str  #: of the units that were deleted, or `WHOLE`
    share: float  #: of them
    graph_module: GraphModule  #: on the CPU, in float32
    flops: float  #: as a share of the whole model's

    @property
    def name(self) -> str:
        return self.kind if self.kind == WHOLE else f"{self.kind} {self.share:.0%}"

    def on(self, device: torch.device, precision: str) -> GraphModule:
        """A copy."""
        return copy.deepcopy(self.graph_module).to(device, PRECISIONS[precision])


@dataclass(frozen=True)
class Cell:
    """What a group of times have in common."""

    model: str
    precision: str
    batch: int
    runtime: str

    def facts(self) -> Figures:
        return {"model": self.model, "precision": self.precision, "batch": self.batch, "runtime": self.runtime}


def make_variants(subject: Subject, shares: Sequence[float], seed: int) -> list[Variant]:
    """The whole model, then every kind at every share, the largest share first."""
    whole, image = subject.graph_module, subject.pixels.shape[1:]
    flops = measure_cost(whole, image).flops
    variants = [Variant(WHOLE, 0.0, whole, 1.0)]
    for share in sorted(shares, reverse=True):
        for kind in KINDS:
            left = rewrite(whole, plan_for(whole, kind, share, seed)).graph_module.eval()
            variants.append(Variant(kind, share, left, measure_cost(left, image).flops / flops))
    return variants


def inputs_for(context: Context, subject: Subject, cell: Cell) -> list[Tensor]:
    shape = (cell.batch, *subject.pixels.shape[1:])
    return rotated_inputs(shape, PRECISIONS[cell.precision], context.device, context.seed)


def record_times(
    context: Context, row: Figures, runs: Mapping[str, Run], inputs: Sequence[Tensor], flops: Mapping[str, float]
) -> None:
    """Times the runs in turns and puts into the row, for each, its times and how they stand to the first run's.

    flops: of each, as a share of the first one's.
    """
    sizes = context.sizes
    with torch.no_grad():
        timings = time_in_turns(runs, inputs, context.device, rounds=sizes.rounds, seconds=sizes.cell_seconds)
    first = timings[next(iter(runs))]
    row["inputs"] = len(inputs)
    row["times"] = {
        name: {**timing.to_json(), "flops_ratio": flops[name], "time_ratio": ratio(timing, first).paired}
        for name, timing in timings.items()
    }
