"""The compiler with a goal in place of τ: searches for what the user asked for, and measures it on the target."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.fx import GraphModule

from passes.cost import measure_cost
from passes.merge_tokens import MergeBySchedule
from passes.plan import DeletionPlan
from vitfx.circuits.circuit import Circuit
from vitfx.discovery.run import origins
from vitfx.graph.answers import Kind
from vitfx.graph.canonical import check_answers_differ, read_module
from vitfx.graph.verify import Verification
from vitfx.images.image_set import Images
from vitfx.pruning.goal import DROP, PARAMETERS, PROMISED, Goal
from vitfx.pruning.goal_circuit import goal_circuit
from vitfx.pruning.goal_delivery import Ended, search_and_heal
from vitfx.pruning.goal_search import GoalResult, check_goal, check_reach
from vitfx.pruning.healing import Heal
from vitfx.pruning.int8_limit import aim_in_float32, rounding_of
from vitfx.pruning.iterative_pruner import IterativePruner
from vitfx.pruning.merge_prices import MergePrices
from vitfx.pruning.prune_by_circuit import Pruned
from vitfx.pruning.target_bench import GoalRequest, TargetBench
from vitfx.pruning.token_merging import AUTO, choose_merging, merging_note
from vitfx.pruning.token_search import search_schedule
from vitfx.support.errors import UserError
from vitfx.support.progress import Watcher

SCORED = 256
MOST_IMAGES = 2048
"""Where there are so many: of what goes beyond the search's own, half serves the final refit, where a few hundred
images cost a tenth of the KL divergence, and half judges, which 768 do to two thirds of a point of top-1."""
_MOST_FLOPS = 0.8e13
"""Of the original, in one run over these images: large models get by with fewer."""
_FEWEST = 3
"""One image is held out, one fits the survivors, and one chooses the shrinkage."""
_COMPARED = 32
"""Images whose answers must not all be alike."""


def compile_for_goal(
    module: nn.Module,
    images: Images,
    asked: GoalRequest,
    *,
    device: torch.device,
    watcher: Watcher,
    accept: Callable[[GraphModule], object] | None = None,
    task: Kind | None = None,
    more: Callable[[int], Images] | None = None,
    heal: Heal | None = None,
) -> Pruned:
    """Traces, prices, prunes in rounds, measures and verifies. The module stays as it is.

    images: a quarter of them is held out from fitting, to measure what is lost
    device: where scoring and fitting run; the artifact is timed on the target
    accept, task: as in `vitfx.pruning.prune_by_circuit.compile_model`
    more: gives up to so many further images, for the final refit and for judging what is lost
    heal: trains what is left towards the original, once the proof is done

    Raises UserError where the model can't be used or the goal is out of reach, VerificationError where a proof fails.
    """
    _check_images(images, asked.goal)
    front = read_module(module, images.pixels, watcher)
    original = front.graph_module
    _check_answers(original, images)
    if accept is not None:
        accept(original)
    kind = front.kind(images.labels, task, watcher)
    check_goal(asked.goal, kind.name)
    merging = choose_merging(front, None if asked.tokens == AUTO else asked.tokens, images.pixels)
    facts = origins(original, images)
    bench = TargetBench(module, original, images.pixels, asked, watcher)
    prices = _prices(bench)
    searched = images if more is None else _with_further(images, more, original)
    pruner = _make_pruner(original, images, searched, kind.name, asked, device, watcher)
    merging = merging or _searched_schedule(pruner, bench, prices)
    pruner.merging = bench.merging = merging
    price = prices.price(merging)
    aim, room = aim_in_float32(bench, pruner)
    ended = search_and_heal(bench, pruner, aim, price, images, searched.names, heal)
    result = ended.result
    reached = _reached(asked.goal, result, ended.verification, bench)
    missed = _missed(asked.goal, reached, ended)
    circuit = goal_circuit(
        original, result, price, asked, facts, front.told(kind), met=missed is None, healing=ended.healed.record
    )
    notes = (
        *front.notes,
        *kind.note,
        *merging_note(original, merging),
        _note(asked, result, len(pruner.held_out), reached, missed),
        *ended.healed.notes,
        *room,
        *ended.int8_notes,
        *_noise(result),
        *_nothing_deleted(result.state.plan, asked.goal),
    )
    return _pruned(original, circuit, notes, missed, ended, pruner, asked)


def _pruned(
    original: GraphModule,
    circuit: Circuit,
    notes: tuple[str, ...],
    missed: str | None,
    ended: Ended,
    pruner: IterativePruner,
    asked: GoalRequest,
) -> Pruned:
    result = ended.result
    return Pruned(
        ended.healed.module,
        original,
        circuit,
        result.state.plan,
        ended.verification,
        notes,
        ended.compensated,
        artifact_kl=result.held_out_loss.kl,
        missed=missed,
        divergence=pruner.measure,
        rounding=rounding_of(asked, ended.limit, result, pruner),
    )


def _prices(bench: TargetBench) -> MergePrices:
    """Raises UserError where the goal is out of reach: before tokens are searched for, which takes minutes."""
    prices = MergePrices(bench, bench.price())
    check_reach(bench.asked.goal, prices.unmerged, plain=bench.plain, whole=bench.whole)
    return prices


def _searched_schedule(pruner: IterativePruner, bench: TargetBench, prices: MergePrices) -> MergeBySchedule | None:
    """None where no search was asked for, or none helps."""
    if bench.asked.tokens != AUTO:
        return None
    share, example = bench.share_to_keep(prices.unmerged), bench.examples[:2]
    return search_schedule(pruner, prices, bench.asked.goal, share, example, bench.watcher)


def _make_pruner(
    original: GraphModule,
    images: Images,
    searched: Images,
    task: str,
    asked: GoalRequest,
    device: torch.device,
    watcher: Watcher,
) -> IterativePruner:
    """searched: the images, and further ones behind them, of which half judge as well."""
    return IterativePruner(
        # Meanwhile the bench exports the same model from the CPU.
        copy.deepcopy(original).to(device),
        searched.pixels.to(device),
        None if searched.labels is None else searched.labels.to(device),
        scored=SCORED,
        held_out=max(1, len(images) // 4) + (len(searched) - len(images)) // 2,
        seed=asked.seed,
        watcher=watcher,
        align=asked.target.align,
        task=task,
        memory=asked.memory,
    )


def _check_images(images: Images, goal: Goal) -> None:
    if goal.kind == DROP and images.labels is None:
        raise UserError("`max_drop` needs labelled images: give labels, as class folders do, or `max_kl` instead")
    if len(images.pixels) < _FEWEST:
        raise UserError(f"{len(images.pixels)} images are too few: for a goal give {_FEWEST} or more")


@torch.no_grad()
def _check_answers(original: GraphModule, images: Images) -> None:
    check_answers_differ(original(images.pixels[:_COMPARED]))


def _with_further(images: Images, more: Callable[[int], Images], original: GraphModule) -> Images:
    """The images and, behind them, those that the final refit and the verdict lack."""
    wanted = min(MOST_IMAGES, int(_MOST_FLOPS / measure_cost(original, images.pixels.shape[1:]).flops))
    if wanted <= len(images.pixels):
        return images
    if not len(further := more(wanted - len(images.pixels))):
        return images
    known = [labels for labels in (images.labels, further.labels) if labels is not None]
    labels = torch.cat(known) if len(known) == 2 else None
    return Images(torch.cat([images.pixels, further.pixels]), labels, (*images.names, *further.names))


def _reached(goal: Goal, result: GoalResult, verification: Verification, bench: TargetBench) -> float | None:
    """The speed-up, or the share of parameters or FLOPs, that was measured; None for a limit on what is lost."""
    if bench.whole is None:
        return None if result.speedup is None else result.speedup.value
    measured = verification.measured
    return (measured.parameters if goal.kind == PARAMETERS else measured.flops) / bench.whole


def _missed(goal: Goal, reached: float | None, ended: Ended) -> str | None:
    """What was measured instead, in words. Merged tokens, or int8, may lose more than a limit by themselves."""
    if goal.priced:
        return None if reached is None else goal.shortfall(reached)
    verdict = None if ended.limit is None else ended.limit.verdict
    loss = ended.result.held_out_loss if verdict is None else verdict.loss
    measured = loss.drop if goal.kind == DROP else loss.kl
    assert measured is not None
    return goal.shortfall(measured, loss.task)


def _note(asked: GoalRequest, result: GoalResult, held_out: int, reached: float | None, missed: str | None) -> str:
    counted = "" if asked.reference is None else ", counted from the original"
    verdict = "" if missed is None else " and missed"
    measured = ""
    if result.speedup is not None:
        measured = f"measured {result.speedup}, predicted {result.predicted:.2f}×, "
    elif reached is not None:
        measured = f"measured {100 * reached:.6g}%, "
    on = f"on {held_out} images held out from fitting"
    goal = asked.goal.words(result.held_out_loss.task)
    return f"asked for {goal}{counted}{verdict}: {measured}{result.held_out_loss} {on}"


def _nothing_deleted(plan: DeletionPlan, goal: Goal) -> tuple[str, ...]:
    return (
        ()
        if plan.deletions
        else (f"nothing {'had to be deleted for' if goal.priced else 'could be deleted within'} that",)
    )


def _noise(result: GoalResult) -> tuple[str, ...]:
    if result.speedup is None or result.speedup.width <= 2 * PROMISED:
        return ()
    return (
        f"this machine is too noisy to promise a speed: it measured anything from {result.speedup.low:.2f}× to "
        f"{result.speedup.high:.2f}×, so measure again while nothing else runs",
    )
