"""The model that a goal ended with, as a circuit of the head graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.fx import GraphModule

from vitfx.circuits.circuit import ATTRIBUTED, EMBED, Circuit, Decision, Edge, Writer
from vitfx.circuits.details import Details
from vitfx.graph.stages import read_stages
from vitfx.pruning.cost_model import Price
from vitfx.pruning.goal_search import GoalResult
from vitfx.pruning.target_bench import GoalRequest


def goal_circuit(
    original: GraphModule,
    result: GoalResult,
    price: Price,
    asked: GoalRequest,
    facts: dict[str, str],
    told: Mapping[str, Any],
    *,
    met: bool,
    healing: Mapping[str, Any] | None = None,
) -> Circuit:
    """Every head, and for each MLP one path kept and one deleted.

    facts: see `vitfx.discovery.run.origins`. told: see `vitfx.graph.canonical.Canonical.told`. healing: see
    `vitfx.pruning.healing.Healed.record`.
    """
    deletions = {deletion.name: deletion for deletion in result.state.plan.deletions}
    decisions = [Decision(Edge(Writer(EMBED)), True, 0.0, None, ATTRIBUTED)]
    for stage in read_stages(original):
        module = stage.sublayer
        if module is None:
            continue
        deletion = deletions.get(stage.name)
        dead = () if deletion is None else deletion.units
        kept = tuple(range(module.units)) if deletion is None else deletion.kept
        each = result.state.costs.get(stage.name, 0.0) / max(1, len(dead))
        groups: list[tuple[tuple[int, ...], bool]] = [(kept, True), (dead, False)]
        if module.kind == "head":
            groups = [((head,), head not in dead) for head in range(module.units)]
        decisions += [
            Decision(
                Edge(Writer(stage.name, index, units)), alive, 0.0 if alive else each * len(units), None, ATTRIBUTED
            )
            for index, (units, alive) in enumerate(group for group in groups if group[0])
        ]
    settings = {"method": "goal", "granularity": "head", "ablation": "mean", **asked.to_json()}
    settings |= told
    speedup = result.speedup
    measured = {
        "speed-up": None if speedup is None else speedup.value,
        "interval": None if speedup is None else [speedup.low, speedup.high],
        "predicted": result.predicted,
        "met": met,
    }
    steps = {"unit": price.unit, "whole": price.whole, "steps": list(result.steps), **measured}
    details: Details = {"price": steps, "held out": result.held_out_loss.to_json()}
    if healing is not None:
        details["healing"] = healing
    return Circuit(tuple(decisions), result.held_out_loss.kl, settings, facts, details)
