"""Step 4: a speed-up as a goal, from its search on the device to the speed that is measured in the end.

The target's times are ONNX Runtime's. Where its provider for the device is missing, the row of the target says so, and
a share of the FLOPs is the goal in its place, whose speed torch measures.
"""

from __future__ import annotations

import time
from functools import partial

import torch

from benchmarks.gpu.context import Context, Figures
from benchmarks.gpu.models import SMALL
from benchmarks.gpu.onnx_runtime import CUDA, missing_provider
from benchmarks.gpu.timing import Run, capture
from benchmarks.gpu.variants import Cell, inputs_for, record_times
from vitfx.support.devices import GPU, is_gpu
from vitfx.support.progress import Silent

_SPEEDUP, _FLOPS = 1.3, 0.7


def run(context: Context, figures: Figures) -> None:
    rows = figures["rows"] = []
    gpu = is_gpu(context.device)
    target = f"{GPU}:{context.device.index or 0}:fp16" if gpu else "cpu"
    facts = {"target": f"{target}:batch={context.sizes.goal_batch}", "goal": f"{_SPEEDUP:g}× faster"}
    missing = missing_provider(CUDA) if gpu else "a rehearsal leaves it out, because to time a target takes minutes"
    if missing:
        rows.append({**facts, "unavailable": missing})
    if missing or not context.attempt(rows, facts, partial(_speedup, context)):
        facts = {"target": f"torch on {context.device}", "goal": f"{_FLOPS:.0%} of the FLOPs"}
        context.attempt(rows, facts, partial(_flops, context))


def _speedup(context: Context, row: Figures) -> None:
    from vitfx.deploy.deployment import default_deployment, read_rewrites
    from vitfx.pruning.goal import SPEEDUP, Goal, parse_target
    from vitfx.pruning.prune_for_goal import compile_for_goal
    from vitfx.pruning.target_bench import GoalRequest

    subject, began = context.subject(SMALL), time.perf_counter()
    deployment = default_deployment(read_rewrites("all"), context.device, portable=False)
    # fresh: a table of times from another day says nothing of this one.
    asked = GoalRequest(Goal(SPEEDUP, _SPEEDUP), parse_target(row["target"]), deployment, seed=context.seed, fresh=True)
    pruned = compile_for_goal(subject.module, subject.images, asked, device=context.device, watcher=Silent())
    row |= {"seconds": time.perf_counter() - began, "price": dict(pruned.circuit.details)["price"]}
    row |= {"speedup": row["price"]["speed-up"], "predicted": row["price"]["predicted"], "met": row["price"]["met"]}
    row |= {"missed": pruned.missed, "proof": pruned.verification.to_json(), "held_out_kl": pruned.artifact_kl}


def _flops(context: Context, row: Figures) -> None:
    from vitfx.deploy.deployment import default_deployment
    from vitfx.pruning.goal import FLOPS, Goal, Target
    from vitfx.pruning.prune_for_goal import compile_for_goal
    from vitfx.pruning.target_bench import GoalRequest

    subject, began = context.subject(SMALL), time.perf_counter()
    deployment = default_deployment((), context.device, portable=True)
    target = Target("cpu", context.sizes.goal_batch, align=8)
    asked = GoalRequest(Goal(FLOPS, _FLOPS), target, deployment, seed=context.seed)
    pruned = compile_for_goal(subject.module, subject.images, asked, device=context.device, watcher=Silent())
    row |= {"seconds": time.perf_counter() - began, "proof": pruned.verification.to_json()}
    flops = pruned.verification.measured.flops / pruned.verification.before.flops
    gpu = is_gpu(context.device)
    cell = Cell(SMALL, "fp16" if gpu else "fp32", context.sizes.goal_batch, "cuda graph" if gpu else "eager")
    inputs = inputs_for(context, subject, cell)
    runs: dict[str, Run] = {}
    for name, module in (("whole", pruned.original), ("pruned", pruned.module)):
        runs[name] = module.to(context.device, inputs[0].dtype)
        if gpu:
            with torch.no_grad():
                runs[name] = capture(runs[name], inputs[0])
    row |= {"measured_as": cell.facts(), "held_out_kl": pruned.artifact_kl}
    record_times(context, row, runs, inputs, {"whole": 1.0, "pruned": flops})
    row["speedup"] = 1 / row["times"]["pruned"]["time_ratio"]


def lines(figures: Figures) -> list[str]:
    summary = []
    for row in figures.get("rows", []):
        result = row.get("error") or row.get("unavailable")
        if result is None:
            predicted = f", predicted {row['predicted']:.2f}×" if row.get("predicted") else ""
            result = f"measured {row['speedup']:.2f}×{predicted}, proved, found and measured in {row['seconds']:.0f} s"
        summary.append(f"{row['goal']} on {row['target']}: {result}")
    return summary
