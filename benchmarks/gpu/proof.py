"""Step 1: models become graphs, heads and neurons are deleted on the device, and the deletion is proved there."""

from __future__ import annotations

import copy
import time
from functools import partial

import torch

from benchmarks.gpu.context import Context, Figures
from benchmarks.gpu.models import BASE, DEMO, SMALL
from benchmarks.gpu.plans import ALIGNED, HEADS, plan_for
from passes.plan import DeletionPlan
from vitfx.graph.verify import VerificationError, rewrite, verify
from vitfx.support.devices import synchronize

_SHARE = 0.3


def run(context: Context, figures: Figures) -> None:
    rows = figures["rows"] = []
    for name in (DEMO, SMALL, BASE):
        context.attempt(rows, {"model": name, "share": _SHARE}, partial(_prove, context, name))


def _prove(context: Context, name: str, row: Figures) -> None:
    subject = context.subject(name)
    row |= {"trace_seconds": subject.trace_seconds, "notes": list(subject.notes)}
    began = time.perf_counter()
    whole = copy.deepcopy(subject.graph_module).to(context.device)
    pixels = subject.pixels.to(context.device)
    with torch.no_grad():
        expected, logits = subject.graph_module(subject.pixels[:8]), whole(pixels[:8]).cpu()
    row["logits_off_the_cpus"] = float((logits - expected).abs().max() / expected.abs().max())
    heads, neurons = (plan_for(whole, kind, _SHARE, context.seed, constants=True) for kind in (HEADS, ALIGNED))
    order = {deletion.name: deletion for deletion in (*heads.deletions, *neurons.deletions)}
    plan = DeletionPlan(tuple(order.values()))
    artifact = rewrite(whole, plan).graph_module.eval()
    row |= verify(whole, artifact, plan, pixels).to_json()
    synchronize(context.device)
    row["device"] = str(next(artifact.parameters()).device)
    row["seconds"] = time.perf_counter() - began
    if subject.notes:
        # All sublayers of these models are known ones: another version of torch traces them otherwise.
        raise VerificationError(f"the graph lacks sublayers that the model has: {subject.notes[0]}")


def lines(figures: Figures) -> list[str]:
    return [
        f"{row['model']}: {row['error']}"
        if "error" in row
        else f"{row['model']}: proved on {row['device']} to {row['float64']:.0e} in float64, {row['relative']:.0e} in "
        f"float32, on {row['images']} images; logits {row['logits_off_the_cpus']:.0e} off the CPU's"
        for row in figures.get("rows", [])
    ]
