"""The compiler with a goal in place of τ: what a user asks for, looked for on the target and measured there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import nn
from torch.fx import GraphModule

from passes.plan import DeletionPlan
from vitfx.circuits.circuit import ATTRIBUTED, EMBED, Circuit, Decision, Edge, Writer
from vitfx.circuits.details import Details
from vitfx.discovery.run import origins
from vitfx.graph.canonical import read_module
from vitfx.graph.stages import read_stages
from vitfx.graph.verify import rewrite, verify
from vitfx.images.image_set import Images
from vitfx.pruning.compensation import Compensated, divergence, with_means
from vitfx.pruning.cost_model import Price
from vitfx.pruning.goal import DROP
from vitfx.pruning.goal_search import Attained, attain, said
from vitfx.pruning.iterative_pruner import Pursuit
from vitfx.pruning.prune_by_circuit import Pruned
from vitfx.pruning.target_bench import Asked, Bench
from vitfx.support.errors import UserError
from vitfx.support.progress import Watcher

SCORED = 256
_VERIFIED_IMAGES = 64
_FEWEST = 3
"""One is held out, one fits survivors and one chooses by how much they are shrunk."""


def compile_for_goal(
    module: nn.Module,
    images: Images,
    asked: Asked,
    *,
    device: torch.device,
    watcher: Watcher,
    accept: Callable[[GraphModule], object] | None = None,
) -> Pruned:
    """Traces, prices, prunes in rounds, measures and verifies. The module stays as it is.

    images: a quarter of them is held out from fitting, and says what is lost. device: where scoring and fitting run;
    the artifact is timed on the target. accept: as in `vitfx.pruning.prune_by_circuit.compile_model`. Raises UserError
    where the model can't be used or the goal is out of reach, VerificationError where a proof fails."""
    if asked.goal.kind == DROP and images.labels is None:
        raise UserError("--max-drop needs labelled images: give images in class folders, or --max-kl in its place")
    if len(images.pixels) < _FEWEST:
        raise UserError(f"{len(images.pixels)} images are too few: for a goal give {_FEWEST} or more with --samples")
    front = read_module(module, images.pixels, watcher)
    original = front.graph_module
    if accept is not None:
        accept(original)
    facts = origins(original, images)
    bench = Bench(module, original, images.pixels, asked, watcher)
    price = bench.price()
    pursuit = Pursuit(
        # The bench exports the same model from the CPU in between.
        copy.deepcopy(original).to(device),
        images.pixels.to(device),
        None if images.labels is None else images.labels.to(device),
        scored=SCORED,
        seed=asked.seed,
        watcher=watcher,
        align=asked.target.align,
    )
    found = attain(pursuit, asked.goal, price, watcher, plain=bench.plain, measure=bench.measure, whole=bench.whole)
    plan = found.state.plan
    artifact = rewrite(original, plan).graph_module.eval()
    verification = verify(original, artifact, plan, images.pixels[:_VERIFIED_IMAGES])
    circuit = _circuit(original, found, price, asked, facts)
    held_out = len(pursuit.held_out)
    notes = (*front.notes, _note(asked, found, held_out))
    if not plan.deletions:
        need = "nothing had to be deleted for that" if asked.goal.priced else "nothing could be deleted within that"
        notes += (need,)
    made_up = _made_up(original, pursuit, found)
    missed = None if found.met else f"measured {found.speedup:.2f}×"
    return Pruned(artifact, original, circuit, plan, verification, notes, made_up, found.standing.kl, missed)


def _made_up(original: GraphModule, pursuit: Pursuit, found: Attained) -> Compensated:
    plan, fitted, held_out = found.state.plan, len(pursuit.fitted), len(pursuit.held_out)
    if not plan.deletions:
        return Compensated(plan, "none")
    mean = with_means(original, DeletionPlan(plan.deletions), pursuit.scored.cpu())
    kl_mean = divergence(original, mean, pursuit.held_out.cpu())
    return Compensated(plan, "ridge", images=fitted, held_out=held_out, kl=found.standing.kl, kl_mean=kl_mean)


def _note(asked: Asked, found: Attained, held_out: int) -> str:
    counted = "" if asked.reference is None else ", counted from the original"
    missed = "" if found.met else " and missed"
    fast = "" if found.speedup is None else f"measured {found.speedup:.2f}×, predicted {found.predicted:.2f}×, "
    on = f"on {held_out} images held out from fitting"
    return f"asked for {asked.goal}{counted}{missed}: {fast}{said(found.standing)} {on}"


def _circuit(original: GraphModule, found: Attained, price: Price, asked: Asked, facts: dict[str, str]) -> Circuit:
    """The model as a circuit of the head graph: each head, and of each MLP what is kept and what is gone as a path."""
    gone = {deletion.name: deletion for deletion in found.state.plan.deletions}
    decisions = [Decision(Edge(Writer(EMBED)), True, 0.0, None, ATTRIBUTED)]
    for stage in read_stages(original):
        module = stage.sublayer
        if module is None:
            continue
        deletion = gone.get(stage.name)
        dead = () if deletion is None else deletion.units
        kept = tuple(range(module.units)) if deletion is None else deletion.kept
        each = found.state.costs.get(stage.name, 0.0) / max(1, len(dead))
        groups: list[tuple[tuple[int, ...], bool]] = [(kept, True), (dead, False)]
        if module.kind == "head":
            groups = [((head,), head not in dead) for head in range(module.units)]
        decisions += [
            Decision(
                Edge(Writer(stage.name, index, units)), alive, 0.0 if alive else each * len(units), None, ATTRIBUTED
            )
            for index, (units, alive) in enumerate(one for one in groups if one[0])
        ]
    settings = {"method": "goal", "granularity": "head", "ablation": "mean", **asked.to_json()}
    measured = {"speed-up": found.speedup, "predicted": found.predicted, "met": found.met}
    steps = {"unit": price.unit, "whole": price.whole, "steps": list(found.steps), **measured}
    details: Details = {"price": steps, "held out": asdict(found.standing)}
    return Circuit(tuple(decisions), found.standing.kl, settings, facts, details)
