"""The peers by name, each a way from a share of the FLOPs to a smaller canonical graph, without any training."""

from __future__ import annotations

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
from vitfx.attain import attain
from vitfx.goal import FLOPS, Goal
from vitfx.goal_compile import SCORED
from vitfx.price import flops_price
from vitfx.pursuit import Pursuit
from vitfx.verify import rewrite

Build = Callable[[float], GraphModule]
"""Deletes a share of the FLOPs; gives the smaller graph on the CPU. Raises UserError where the share can't be met."""


def _planned(make: Callable[[Given], Planned], given: Given) -> Build:
    plan = make(given)

    def build(share: float) -> GraphModule:
        return rewrite(given.graph_module, plan(share)).graph_module.eval().cpu()

    return build


def _vitfx(given: Given) -> Build:
    """What `python -m vitfx.prune --target-flops` does: see `vitfx.goal_compile`."""
    price = flops_price(given.graph_module, given.pixels.shape[1:], given.tokens)

    def build(share: float) -> GraphModule:
        # Of its own for each share, so that no row depends on which were made before it.
        pursuit = Pursuit(
            given.graph_module, given.pixels, given.labels, scored=SCORED, seed=given.seed, watcher=given.watcher
        )
        found = attain(pursuit, Goal(FLOPS, 1 - share), price, given.watcher)
        return rewrite(given.graph_module, found.state.plan).graph_module.eval().cpu()

    return build


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
}
"""What makes each ready, once for all shares."""


def version_of(peer: str) -> str | None:
    """Of the package that does the work, None where it is vitfx. Raises UserError where the package is missing."""
    return package_version() if peer in PACKAGED else None
