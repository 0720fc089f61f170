"""The compiler with a goal in place of τ: searches for what the user asked for, and measures it on the target."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.fx import GraphModule

from passes.cost import measure_cost
from passes.merge_tokens import MergeBySchedule
from passes.plan import DeletionPlan
from vitfx.deploy.precision_file import CALIBRATED_IMAGES, Rounding
from vitfx.deploy.precisions import INT8
from vitfx.discovery.run import origins
from vitfx.graph.answers import Kind
from vitfx.graph.canonical import check_answers_differ, read_module
from vitfx.graph.verify import Verification
from vitfx.images.image_set import Images
from vitfx.pruning.compensation import Compensated, divergence, with_means
from vitfx.pruning.cost_model import Price
from vitfx.pruning.goal import DROP, PARAMETERS, PROMISED, Goal
from vitfx.pruning.goal_circuit import goal_circuit
from vitfx.pruning.goal_search import GoalResult, check_goal, reach_goal
from vitfx.pruning.healing import Heal, Healed, healed
from vitfx.pruning.int8_limit import Int8Limit
from vitfx.pruning.iterative_pruner import IterativePruner
from vitfx.pruning.merge_prices import MergePrices
from vitfx.pruning.prune_by_circuit import Pruned, carry_out
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
    prices = MergePrices(bench, bench.price())
    searched = images if more is None else _with_further(images, more, original)
    pruner = _make_pruner(original, images, searched, kind.name, asked, device, watcher)
    if asked.tokens == AUTO and merging is None:
        merging = _searched_schedule(pruner, bench, prices)
    pruner.merging = bench.merging = merging
    price = prices.price(merging)
    aim, room = _aim(bench, pruner)
    ended = _search(bench, pruner, aim, price, images, searched.names, heal)
    result, verification = ended.result, ended.verification
    reached = _reached(asked.goal, result, verification, bench)
    missed = None if reached is None else asked.goal.shortfall(reached)
    circuit = goal_circuit(original, result, price, asked, facts, front.told(kind), met=missed is None)
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
    delivered = (ended.healed.module, original, circuit, result.state.plan, verification, notes, ended.compensated)
    kl, rounding = result.held_out_loss.kl, _rounding(asked, ended, pruner)
    return Pruned(*delivered, artifact_kl=kl, missed=missed, divergence=pruner.measure, rounding=rounding)


def _searched_schedule(pruner: IterativePruner, bench: TargetBench, prices: MergePrices) -> MergeBySchedule | None:
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
    )


@dataclass(frozen=True)
class _Ended:
    """The end of a search."""

    result: GoalResult  #: with the loss of what is delivered
    verification: Verification  #: of the artifact before it was healed
    compensated: Compensated  #: likewise
    healed: Healed  #: what is delivered
    limit: Int8Limit | None = None  #: what judged its int8 file, if anything did

    @property
    def int8_notes(self) -> tuple[str, ...]:
        """For the user."""
        return () if self.limit is None else self.limit.notes


def _search(
    bench: TargetBench,
    pruner: IterativePruner,
    aim: Goal,
    price: Price,
    images: Images,
    names: tuple[str, ...],
    heal: Heal | None,
) -> _Ended:
    """Searches, proves and heals. names: of all images of the pruner."""
    original, held_out = bench.original, names[-len(pruner.held_out) :]
    limit = Int8Limit(bench, pruner) if bench.asked.target.precision == INT8 and not aim.priced else None
    # A pruned model may lose more by rounding than the whole one, by which the aim was set.
    for each in (aim,) if limit is None else (aim, replace(aim, value=aim.value / 2)):
        result = reach_goal(
            pruner, each, price, bench.watcher, plain=bench.plain, measure=bench.measure, whole=bench.whole
        )
        artifact, verification = carry_out(original, result.state.plan, images, bench.merging)
        changed = bool(result.state.plan.deletions) or bench.merging is not None
        delivered = healed(artifact, pruner, original, held_out, result.held_out_loss, heal if changed else None)
        for note in delivered.notes:
            bench.watcher.say(note)
        if limit is None or limit(delivered.module):
            break
    compensated = _compensated(original, pruner, result)
    return _Ended(replace(result, held_out_loss=delivered.loss), verification, compensated, delivered, limit)


def _rounding(asked: GoalRequest, ended: _Ended, pruner: IterativePruner) -> Rounding | None:
    """How the int8 file is made: as it was judged, and where a speed was asked for, as it was timed, unless there is
    speed to spare."""
    if asked.target.precision != INT8:
        return None
    if ended.limit is not None and ended.limit.verdict is not None:
        return ended.limit.verdict.rounding
    speedup = ended.result.speedup
    scarce = speedup is not None and speedup.value < (1 + PROMISED) * asked.goal.value
    return Rounding(pruner.fitted[:CALIBRATED_IMAGES].cpu(), pruner.measure, () if scarce else None)


def _check_images(images: Images, goal: Goal) -> None:
    if goal.kind == DROP and images.labels is None:
        raise UserError("`max_drop` needs labelled images: give labels, as class folders do, or `max_kl` instead")
    if len(images.pixels) < _FEWEST:
        raise UserError(f"{len(images.pixels)} images are too few: for a goal give {_FEWEST} or more")


@torch.no_grad()
def _check_answers(original: GraphModule, images: Images) -> None:
    check_answers_differ(original(images.pixels[:_COMPARED]))


def _aim(bench: TargetBench, pruner: IterativePruner) -> tuple[Goal, tuple[str, ...]]:
    """The goal of the search in float32, and a note where that leaves room for what int8 will cost on top."""
    goal = bench.asked.goal
    if goal.priced or bench.asked.target.precision != INT8:
        return goal, ()
    bench.watcher.say("measuring what int8 costs the whole model")
    int8 = bench.in_int8(bench.original, pruner.fitted[:CALIBRATED_IMAGES].cpu())
    cost = pruner.loss_of(bench.answers(int8.model, pruner.held_out))
    extra = max(0.0, cost.drop or 0.0) if goal.kind == DROP else cost.kl
    # Where int8 takes more than half of it, pruning still has the other half.
    aim = replace(goal, value=max(goal.value - extra, goal.value / 2))
    task = pruner.measure.kind
    note = f"int8 costs the whole model {cost} on the same images, so that pruning alone was allowed {aim.words(task)}"
    bench.watcher.say(note)
    return aim, (note,)


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


def _compensated(original: GraphModule, pruner: IterativePruner, result: GoalResult) -> Compensated:
    plan, fitted, held_out = result.state.plan, len(pruner.fitted), len(pruner.held_out)
    if not plan.deletions:
        return Compensated(plan, "none")
    mean = with_means(original, DeletionPlan(plan.deletions), pruner.scored.cpu())
    kl_mean = divergence(original, mean, pruner.held_out.cpu(), pruner.measure, pruner.merging)
    return Compensated(
        plan,
        "ridge",
        images=fitted,
        held_out=held_out,
        kl=result.held_out_loss.kl,
        kl_mean=kl_mean,
        task=pruner.measure.kind,
    )


def _reached(goal: Goal, result: GoalResult, verification: Verification, bench: TargetBench) -> float | None:
    """The speed-up, or the share of parameters or FLOPs, that was measured; None for a limit on what is lost."""
    if bench.whole is None:
        return None if result.speedup is None else result.speedup.value
    measured = verification.measured
    return (measured.parameters if goal.kind == PARAMETERS else measured.flops) / bench.whole


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
