"""Which tokens to merge for a goal: a few schedules, each judged by what the merged model really loses.

A schedule's price is counted, and its divergence evaluated, exactly; schedules that another beats in both are dropped.
How much of a goal tokens pay and how much units is tried as well: for a share of the FLOPs by a first cut of the units
for each of a few schedules, and for a limit on what is lost by the cheapest schedule that takes half of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule

from passes.base import PassError
from passes.cost import measure_cost
from passes.merge_tokens import MergeBySchedule, token_counts
from passes.plan import DeletionPlan
from passes.token_schedule import TokenCounts, TokenSchedule
from vitfx.graph.verify import tokens_of
from vitfx.pruning.compensation import divergence
from vitfx.pruning.cost_model import flops_price
from vitfx.pruning.goal import DROP, PARAMETERS, Goal
from vitfx.pruning.iterative_pruner import IterativePruner
from vitfx.pruning.token_merging import with_merges
from vitfx.support.progress import Watcher

_JUDGED = 128
"""Images on which schedules are compared."""
_EVERY = (0.25, 0.375, 0.5, 0.625, 0.75)
"""Shares of the tokens that merge in all blocks together, as many in each."""
_PLACES = (0.15, 0.25, 0.35, 0.45)
"""Shares of the tokens that are left, which merge in each of three places."""
_TRIED = (1 / 3, 1 / 2, 2 / 3)
"""What tokens pay of the FLOPs that are to go."""


@dataclass(frozen=True)
class Candidate:
    """A schedule, and what the model costs and loses by it before anything is deleted."""

    merging: MergeBySchedule | None  #: None where nothing merges
    flops: float  #: the share that is left
    kl: float  #: nats an image from the original, or another kind of divergence

    @property
    def name(self) -> str:
        return "none" if self.merging is None else str(self.merging.schedule)


def schedules(counts: TokenCounts) -> list[TokenSchedule]:
    """Merges of a few tokens in every block, and of many in three places: the latter cost fewer operators."""
    free = counts.tokens - counts.protected
    found = [TokenSchedule.constant(max(1, round(free * share / counts.blocks)), counts) for share in _EVERY]
    places = sorted({max(0, round(counts.blocks * part / 4) - 1) for part in (1, 2, 3)})
    for share in _PLACES:
        left, merges = free, []
        for block in places:
            merged = min(int(left * share), left // 2)
            left -= merged
            merges += [(block, merged)] if merged else []
        found.append(TokenSchedule(tuple(merges)))
    return [schedule for schedule in dict.fromkeys(found) if schedule]


def front(original: GraphModule, pruner: IterativePruner, example: Tensor) -> list[Candidate]:
    """The candidates that none beats both in FLOPs and in divergence, the dearest, in which nothing merges, first."""
    image, device = example.shape[1:], next(pruner.original.parameters()).device
    whole = measure_cost(original, image).flops
    found = [Candidate(None, 1.0, 0.0)]
    for schedule in schedules(token_counts(original, example)):
        merging = MergeBySchedule(schedule, example)
        try:
            flops = measure_cost(with_merges(original, merging), image).flops / whole
        except PassError:
            continue
        judged = pruner.scored[:_JUDGED].to(device)
        found.append(
            Candidate(merging, flops, divergence(pruner.original, DeletionPlan(), judged, pruner.measure, merging))
        )
    found.sort(key=lambda candidate: (-candidate.flops, candidate.kl))
    return [
        candidate
        for index, candidate in enumerate(found)
        if not any(other.kl <= candidate.kl and other.flops < candidate.flops for other in found[index + 1 :])
    ]


def search_schedule(
    original: GraphModule, pruner: IterativePruner, goal: Goal, share: float | None, example: Tensor, watcher: Watcher
) -> MergeBySchedule | None:
    """The schedule for a goal, None where merges do not help.

    share: of the model's FLOPs that are to be left, None for a limit on what is lost. example: two images.
    """
    if goal.kind == PARAMETERS:
        return None
    found = front(original, pruner, example)
    for candidate in found:
        watcher.say(f"tokens {candidate.name}: {candidate.flops:.1%} of the FLOPs, divergence {candidate.kl:.4f}")
    if len(found) == 1:
        watcher.say("no tokens merge: the model has none that can")
    chosen = _within_half(found, pruner, goal) if share is None else _by_trial(found, pruner, share, example, watcher)
    watcher.say(f"tokens merge by {chosen.name}")
    return chosen.merging


def _within_half(found: list[Candidate], pruner: IterativePruner, goal: Goal) -> Candidate:
    """The cheapest that takes no more than half of the limit."""
    for candidate in reversed(found[1:]):
        pruner.merging = candidate.merging
        loss = pruner.held_out_loss(pruner.start())
        lost = loss.drop if goal.kind == DROP else loss.kl
        if lost is not None and lost <= goal.value / 2:
            return candidate
    return found[0]


def _by_trial(
    found: list[Candidate], pruner: IterativePruner, share: float, example: Tensor, watcher: Watcher
) -> Candidate:
    """Of a few candidates the one that loses least with units cut to what is left to pay."""
    wanted = [1 - part * (1 - share) for part in _TRIED]
    tried = [found[0], *(min(found, key=lambda candidate: abs(candidate.flops - flops)) for flops in wanted)]
    whole = measure_cost(pruner.original, example.shape[1:]).flops
    losses = []
    for candidate in dict.fromkeys(tried):
        pruner.merging = candidate.merging
        merged = with_merges(pruner.original, candidate.merging)
        price = flops_price(merged, example.shape[1:], tokens_of(pruner.original, example.to(pruner.scored)))
        most = share * whole
        state = pruner.start()
        if most < price.floor:
            continue
        state = pruner.cut(state, price, most) if most < price.whole else state
        losses.append((pruner.held_out_loss(state).kl, candidate))
        watcher.say(f"tokens {candidate.name}, units cut to {share:.1%} of the FLOPs: divergence {losses[-1][0]:.4f}")
    return min(losses, key=lambda pair: pair[0])[1] if losses else found[0]
