"""The peers by name: each turns a share of the FLOPs, or of the time, into a smaller canonical graph, untrained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

from torch.fx import GraphModule

from benchmarks.peer_package import make_bottleneck, make_heads, make_uniform, package_version
from benchmarks.peer_units import (
    Given,
    Planned,
    make_corp,
    make_magnitude,
    make_random,
    make_taylor,
    make_vbp,
)
from passes.plan import DeletionPlan
from vitfx.deploy.deployment import NAMES, default_deployment
from vitfx.graph.verify import rewrite
from vitfx.pruning.cost_model import flops_price
from vitfx.pruning.goal import FLOPS, SPEEDUP, Goal
from vitfx.pruning.goal_search import reach_goal
from vitfx.pruning.iterative_pruner import IterativePruner
from vitfx.pruning.prune_for_goal import SCORED
from vitfx.pruning.target_bench import GoalRequest, TargetBench
from vitfx.reports.peers import BY_TIME
from vitfx.support.devices import pick_device

Build = Callable[[float], GraphModule]
"""Deletes a share of the FLOPs, or of the time, and gives the smaller graph on the CPU. Raises UserError where it is
out of reach."""


def _planned(make: Callable[[Given], Planned], given: Given) -> Build:
    plan = make(given)

    def build(share: float) -> GraphModule:
        return _made(given, plan(share))

    return build


def _vitfx(given: Given) -> Build:
    """What `python -m vitfx.prune --target-flops` does: see `vitfx.pruning.prune_for_goal`."""
    price = flops_price(given.graph_module, given.pixels.shape[1:], given.tokens)

    def build(share: float) -> GraphModule:
        return _made(given, reach_goal(_pruner(given), Goal(FLOPS, 1 - share), price, given.watcher).state.plan)

    return build


def _vitfx_time(given: Given) -> Build:
    """What `python -m vitfx.prune --target-speedup` does; the share is of the time after the exact rewrites."""
    deployment = default_deployment(NAMES, pick_device(given.target.device), portable=False)
    original = copy.deepcopy(given.graph_module).cpu()
    # The bench needs to know the kind of goal, not its value.
    asked = GoalRequest(Goal(SPEEDUP, 2.0), given.target, deployment, given.seed)
    bench = TargetBench(given.module, original, given.pixels.cpu(), asked, given.watcher)
    price = bench.price()
    plain = bench.plain
    assert plain is not None

    def build(share: float) -> GraphModule:
        goal = Goal(SPEEDUP, plain / (price.whole * (1 - share)))
        result = reach_goal(_pruner(given), goal, price, given.watcher, plain=plain, measure=bench.measure)
        return _made(given, result.state.plan)

    return build


def _pruner(given: Given) -> IterativePruner:
    """A new one for each share, so that no row depends on those made before it."""
    return IterativePruner(
        given.graph_module, given.pixels, given.labels, scored=SCORED, seed=given.seed, watcher=given.watcher
    )


def _made(given: Given, plan: DeletionPlan) -> GraphModule:
    return rewrite(given.graph_module, plan).graph_module.eval().cpu()


PACKAGED: dict[str, Callable[[Given], Build]] = {
    "torch-pruning-uniform": make_uniform,
    "torch-pruning-bottleneck": make_bottleneck,
    "torch-pruning-heads": make_heads,
}
PEERS: dict[str, Callable[[Given], Build]] = {
    "random": partial(_planned, make_random),
    "magnitude": partial(_planned, make_magnitude),
    "taylor": partial(_planned, make_taylor),
    "vbp": partial(_planned, make_vbp),
    "corp": partial(_planned, make_corp),
    **PACKAGED,
    "vitfx": _vitfx,
    BY_TIME: _vitfx_time,
}
"""What prepares each peer, once for all shares. Shares are of the FLOPs, or for `BY_TIME` of the time."""


def version_of(peer: str) -> str | None:
    """The version of the package that does the work, None for vitfx. Raises UserError where it is not installed."""
    return package_version() if peer in PACKAGED else None
