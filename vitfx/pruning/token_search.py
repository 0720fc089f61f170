"""Which tokens to merge for a goal: a few schedules, each judged by what the merged model really loses.

A schedule's divergence is evaluated, and its FLOPs are counted, exactly, and of times what the operators of merges
take is measured once; schedules that another beats in both price and divergence are dropped. How much of a goal tokens
pay and how much units is tried as well: for a price by a first cut of the units for each of a few schedules, at the
price that was measured, and for a limit on what is lost by the cheapest schedule that takes half of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from passes.base import PassError
from passes.merge_tokens import MergeBySchedule, token_counts
from passes.plan import DeletionPlan
from passes.token_schedule import TokenCounts, TokenSchedule
from vitfx.graph.divergence import Classes, Divergence
from vitfx.pruning.compensation import answers_to, divergence
from vitfx.pruning.goal import DROP, PARAMETERS, Goal
from vitfx.pruning.iterative_pruner import IterativePruner
from vitfx.pruning.limit import JUDGED, keeps
from vitfx.pruning.merge_prices import MergePrices
from vitfx.support.progress import Watcher

_JUDGED = 64
"""Images on which schedules are compared."""
_EVERY = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""Shares of the tokens that merge in all blocks together, as many in each from one of the first on."""
_FIRST = (0, 1 / 6, 1 / 3)
"""Of the blocks. Tokens that merge late cost less divergence for each FLOP: on a ViT-S at 72 % of the FLOPs .052 where
merges begin in the fourth of twelve blocks and .065 where they begin in the first."""
_PLACES = (0.15, 0.25, 0.35, 0.45)
"""Shares of the tokens that are left, which merge in each of three places."""
_TRIED = (1 / 3, 1 / 2, 2 / 3, 5 / 6)
"""What tokens pay of the price that is to go: the middle two are tried, and what lies beyond the better of them."""
_TRIED_ON = 256
"""Held-out images that say how that went."""
_NATS_A_POINT = 0.04
"""Of KL divergence, where merges alone lose a point of top-1: on a ViT-S .030 lost .7 points and .137 2.9."""


@dataclass(frozen=True)
class Candidate:
    """A schedule, and what the model costs and loses by it before anything is deleted."""

    merging: MergeBySchedule | None  #: None where nothing merges
    cost: float  #: the share of the price that is left
    kl: float  #: nats an image from the original, or another kind of divergence

    @property
    def name(self) -> str:
        return "none" if self.merging is None else str(self.merging.schedule)


def schedules(counts: TokenCounts) -> list[TokenSchedule]:
    """Merges of a few tokens in every block, and of many in three places: the latter cost fewer operators."""
    free, found = counts.tokens - counts.protected, []
    for first in sorted({int(part * counts.blocks) for part in _FIRST}):
        each = [max(1, round(free * share / (counts.blocks - first))) for share in _EVERY]
        found += [TokenSchedule.constant(merged, counts, first) for merged in each]
    places = sorted({max(0, round(counts.blocks * part / 4) - 1) for part in (1, 2, 3)})
    for share in _PLACES:
        left, merges = free, []
        for block in places:
            merged = min(int(left * share), left // 2)
            left -= merged
            merges += [(block, merged)] if merged else []
        found.append(TokenSchedule(tuple(merges)))
    return [schedule for schedule in dict.fromkeys(found) if schedule]


def front(pruner: IterativePruner, prices: MergePrices, example: Tensor, most: float = math.inf) -> list[Candidate]:
    """The candidates that none beats both in price and in divergence, the dearest, in which nothing merges, first.

    most: divergence. Where a schedule has more, none that merges more tokens in the same blocks is tried."""
    judged = pruner.scored[:_JUDGED]
    expected = list(answers_to(pruner.original, judged))
    candidates = [Candidate(None, 1.0, 0.0)]
    possible, report = schedules(token_counts(pruner.original, example)), pruner.watcher.bar("merging tokens")
    too_many: set[tuple[int, ...]] = set()
    for number, schedule in enumerate(possible):
        report(number, len(possible))
        blocks = tuple(block for block, _ in schedule.merges)
        if blocks in too_many:
            continue
        merging = MergeBySchedule(schedule, example)
        try:
            kl = divergence(pruner.original, DeletionPlan(), judged, pruner.measure, merging, expected)
        except PassError:
            continue
        if kl > most:
            too_many.add(blocks)
        else:
            candidates.append(Candidate(merging, prices.estimate(merging), kl))
    report(len(possible), len(possible))
    candidates.sort(key=lambda candidate: (-candidate.cost, candidate.kl))
    return [
        candidate
        for index, candidate in enumerate(candidates)
        if not any(other.kl <= candidate.kl and other.cost < candidate.cost for other in candidates[index + 1 :])
    ]


def search_schedule(
    pruner: IterativePruner, prices: MergePrices, goal: Goal, share: float | None, example: Tensor, watcher: Watcher
) -> MergeBySchedule | None:
    """The schedule for a goal, None where merges do not help.

    share: of the model's price that is to be left, None for a limit on what is lost. example: two images.
    """
    if goal.kind == PARAMETERS:
        return None
    half = replace(goal, value=goal.value / 2) if share is None else goal
    candidates = front(pruner, prices, example, _nats(half, pruner.measure) if share is None else math.inf)
    for candidate in candidates[1:]:
        watcher.say(
            f"tokens {candidate.name}: about {candidate.cost:.1%} of the {prices.unmerged.noun}, divergence "
            f"{candidate.kl:.4f}"
        )
    if len(candidates) == 1:
        watcher.say("no tokens merge: no schedule helps" + (" within half of the limit" if share is None else ""))
        return None
    if share is None:
        chosen = _within(candidates, pruner, goal if isinstance(pruner.measure, Classes) else half)
    else:
        chosen = _by_trial(candidates, pruner, prices, share, watcher)
    if chosen.merging is None:
        watcher.say("no tokens merge: deleting units alone loses less")
    else:
        watcher.say(f"tokens merge by {chosen.name}")
    return chosen.merging


def _nats(limit: Goal, measure: Divergence) -> float:
    """Of divergence at most; infinite where points of top-1 are limited, and no divergence stands for them."""
    if limit.kind != DROP:
        return limit.value
    return limit.value * _NATS_A_POINT if isinstance(measure, Classes) else math.inf


def _within(candidates: list[Candidate], pruner: IterativePruner, limit: Goal) -> Candidate:
    """The cheapest that alone keeps the limit, on as many images as the search behind it begins with."""
    for candidate in reversed(candidates[1:]):
        pruner.merging = candidate.merging
        if keeps(pruner.held_out_loss(pruner.start, JUDGED), limit):
            return candidate
    return candidates[0]


def _by_trial(
    candidates: list[Candidate], pruner: IterativePruner, prices: MergePrices, share: float, watcher: Watcher
) -> Candidate:
    """Of a few candidates the one that loses least with units cut to what is left to pay."""
    trial = partial(_tried, pruner=pruner, prices=prices, share=share, watcher=watcher)
    less, some, more, most = (
        min(candidates, key=lambda candidate: abs(candidate.cost - (1 - part * (1 - share)))) for part in _TRIED
    )
    losses = {candidate: trial(candidate) for candidate in dict.fromkeys((candidates[0], some, more))}
    beyond = most if losses[more] < losses[some] else less
    if beyond not in losses:
        losses[beyond] = trial(beyond)
    return min(losses, key=losses.__getitem__)


def _tried(candidate: Candidate, pruner: IterativePruner, prices: MergePrices, share: float, watcher: Watcher) -> float:
    """What is lost with units cut to this share of the price; infinite where no cut is that deep."""
    pruner.merging, price = candidate.merging, prices.price(candidate.merging)
    most = share * prices.unmerged.whole
    if most < price.floor:
        return math.inf
    state = pruner.start
    state = pruner.cut(state, price, most) if most < price.whole else state
    loss = pruner.held_out_loss(state, _TRIED_ON).kl
    watcher.say(f"tokens {candidate.name}, units cut to {share:.1%} of the {price.noun}: divergence {loss:.4f}")
    return loss
