"""From a goal to a pruned model that meets it, as measured rather than only predicted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NotRequired, TypedDict

from vitfx.graph.kinds import WORDS
from vitfx.graph.verify import rewritten
from vitfx.pruning.cost_model import Price
from vitfx.pruning.goal import DROP, PARAMETERS, PROMISED, SPEEDUP, Goal, reaches
from vitfx.pruning.iterative_pruner import HeldOutLoss, IterativePruner, State
from vitfx.pruning.limit import JUDGED, Cut, bound, keeps
from vitfx.support.errors import UserError
from vitfx.support.progress import Watcher
from vitfx.support.timing import SpeedUp

ROUNDS = 3
"""Cuts on the way to a price, each scored anew."""
TOLERANCE = PROMISED / 2
"""Relative error in speed that is left uncorrected: the measurement has an error of its own."""
CORRECTIONS = 4
_UNLIKELY = 0.15
"""Relative difference from the speed that is expected beyond which it is measured once more, as one that another
program spoiled leads all later cuts astray."""
_FINEST = 0.015
"""Share of the whole price: how close to a limit the search goes."""
_MOST_CUTS = 24
_LAST_REFIT, _SEVERAL = 0.87, 2
"""What the last refit leaves of a loss where it has several times as many images as those on the way: of a ViT-S's KL
divergence .82 to .86 with five times as many."""

Speed = Callable[[State], SpeedUp]
"""The plain export's time over the pruned model's, measured in turns."""


class SearchStep(TypedDict):
    """A model on the way to a goal, for the circuit's record."""

    price: float  #: total
    share: float  #: of the whole price
    kl: float
    drop: float | None
    predicted: NotRequired[float]  #: speed-up, where one was measured
    measured: NotRequired[float]
    interval: NotRequired[list[float]]  #: of what was measured


@dataclass(frozen=True)
class GoalResult:
    """What a search for a goal ended with, whether or not it is what was asked for."""

    state: State
    held_out_loss: HeldOutLoss
    speedup: SpeedUp | None  #: measured, None where the goal is not a speed-up
    predicted: float | None  #: the speed-up by the price, None likewise
    steps: tuple[SearchStep, ...]  #: every model on the way


class GoalSearch:
    """The search for one goal with one pruner."""

    def __init__(self, pruner: IterativePruner, price: Price, watcher: Watcher) -> None:
        self.pruner, self.price, self.watcher = pruner, price, watcher
        self.steps: list[SearchStep] = []
        self._factor = 1.0  # of the last measured speed-up to the predicted one

    def to_price(self, most: float, rounds: int = ROUNDS, start: State | None = None) -> State:
        """A model of at most this total price, in `rounds` cuts from `start` or, without it, from the whole model.

        Raises UserError where no model is that cheap.
        """
        state = self.pruner.start if start is None else start
        first = self.price.total(state.kept)
        if most >= first:
            return state
        for number in range(1, rounds + 1):
            state = self.cut(state, first + (most - first) * number / rounds)
        return state

    def to_speed(
        self, speedup: float, plain: float, measure: Speed, rounds: int = ROUNDS, start: State | None = None
    ) -> tuple[State, SpeedUp]:
        """The model whose measured speed-up is nearest to the one asked for, and that speed-up.

        Models that are as fast as promised come first. plain: ms of the plain export. Raises UserError where no model
        is predicted to be that fast.
        """
        price, most = self.price, plain / speedup
        state = self.to_price(most, rounds, start)
        tried = [(state, self._measured(state, plain, speedup, measure))]
        for _ in range(CORRECTIONS):
            measured = tried[-1][1].value
            # The factor between prediction and measurement hardly changes from one cut to the next.
            wanted = min(max(most * measured / speedup, price.floor), price.whole)
            on_target = abs(measured / speedup - 1) <= max(TOLERANCE, tried[-1][1].width / 2)
            if on_target or wanted == most or (most >= price.whole and measured > speedup):
                break
            most = wanted
            state = self.cut(state, most)
            tried.append((state, self._measured(state, plain, speedup, measure)))
        return min(tried, key=lambda pair: _shortfall(pair[1].value, speedup))

    def _measured(self, state: State, plain: float, speedup: float, measure: Speed) -> SpeedUp:
        measured, predicted = measure(state), _predicted(self.price, state, plain)
        if self._surprise(measured, predicted) > _UNLIKELY:
            self.watcher.say(f"measured {measured}, which is far from what was expected: measuring once more")
            measured = min(measured, measure(state), key=lambda each: self._surprise(each, predicted))
        self._factor = measured.value / predicted
        self.watcher.say(f"measured {measured}, predicted {predicted:.2f}×, asked for {speedup:g}×")
        if self.steps:
            interval = [measured.low, measured.high]
            self.steps[-1] |= {"predicted": predicted, "measured": measured.value, "interval": interval}
        return measured

    def _surprise(self, measured: SpeedUp, predicted: float) -> float:
        return abs(measured.value / (predicted * self._factor) - 1)

    def to_count(self, most: float, parameters: bool) -> State:
        """A finished model of at most this total price, and, for parameters, of at most so many: refits add biases that
        the price does not count. Where even the least model has more, it is returned."""
        state = self.pruner.finish(self.to_price(most))
        for _ in range(CORRECTIONS if parameters else 0):
            module, total = rewritten(self.pruner.original, state.plan), self.price.total(state.kept)
            excess = sum(parameter.numel() for parameter in module.parameters()) - most
            if excess <= 0 or total <= self.price.floor:
                break
            state = self.pruner.finish(self.cut(state, max(total - excess, self.price.floor)))
        return state

    def within(self, goal: Goal) -> State:
        """The cheapest model found that keeps within a limit on accuracy or KL.

        Losses grow ever faster, about as the square of what is gone, so that a line from the last model that keeps the
        limit to one that does not meets the limit before they do. It is judged after the final refit on all images,
        which may move a model across the limit.
        """
        whole, start = self.price.whole, self.pruner.start
        left = _LAST_REFIT if len(self.pruner.fitted) >= _SEVERAL * len(self.pruner.scored) else 1.0
        good, bad = [Cut(start, whole, bound(self.pruner.held_out_loss(start, JUDGED), goal))], None
        for _ in range(_MOST_CUTS):
            last = good[-1]
            further = last.beyond(good[0], goal.value)
            if bad is not None:
                # Cuts that differ by less than that differ by chance.
                further = max(last.towards(bad, goal.value), bad.price + _FINEST * whole)
            most = further if further - self.price.floor >= _FINEST * whole else self.price.floor
            if last.price - most < _FINEST * whole:
                break
            state, loss = self._cut(last.state, most)
            cut = Cut(state, most, bound(loss, goal, left))
            if cut.bound <= goal.value:
                good.append(cut)
            else:
                bad = cut
        return self._finished(good, goal, left)

    def _finished(self, good: list[Cut], goal: Goal, left: float) -> State:
        """The last of the models with the final refit; where that is beyond the limit, one less deep, and in the end
        the first as it is. left: the share of a loss that the refit is expected to leave."""
        for _ in range(CORRECTIONS):
            if len(good) == 1:
                break
            last = good.pop()
            state = self.pruner.finish(last.state)
            loss = self.pruner.held_out_loss(state)
            if keeps(loss, goal):
                return state
            self.watcher.say(f"after the last refit it is {loss}: too close to the limit, given the margin for chance")
            most = good[-1].towards(replace(last, bound=bound(loss, goal)), goal.value)
            if good[-1].price - most >= _FINEST * self.price.whole:
                state, loss = self._cut(good[-1].state, most)
                good.append(Cut(state, most, bound(loss, goal, left)))
        return good[0].state

    def cut(self, state: State, most: float) -> State:
        return self._cut(state, most)[0]

    def _cut(self, state: State, most: float) -> tuple[State, HeldOutLoss]:
        state = self.pruner.cut(state, self.price, most)
        loss = self.pruner.held_out_loss(state, JUDGED)
        total = self.price.total(state.kept)
        share = total / self.price.whole
        self.steps.append({"price": total, "share": share, "kl": loss.kl, "drop": loss.drop})
        of = self.price.noun if self.pruner.merging is None else f"{self.price.noun} that merged tokens leave"
        self.watcher.say(f"{share:.1%} of the {of}: {loss}")
        return state, loss


def _shortfall(measured: float, asked: float) -> tuple[bool, float]:
    """Sorts what is as fast as promised first, and then the nearest."""
    return not reaches(measured, asked), abs(math.log(measured / asked))


def reach_goal(
    pruner: IterativePruner,
    goal: Goal,
    price: Price,
    watcher: Watcher,
    *,
    plain: float | None = None,
    measure: Speed | None = None,
    whole: float | None = None,
) -> GoalResult:
    """Searches for the goal.

    price: in the goal's own unit; for a limit on accuracy or KL, what to save within it
    plain, measure: for a speed-up
    whole: what a share is counted from; the model's own price where it is None

    A speed that was predicted to be within reach and then measured to fall short is not an error.
    Raises UserError where the goal is out of reach, or needs labels and has none.
    """
    if goal.kind == DROP and pruner.labels is None:
        raise UserError("`max_drop` needs labelled images: give labels, as class folders do, or `max_kl` instead")
    check_reach(goal, price, plain=plain, whole=whole)
    search = GoalSearch(pruner, price, watcher)
    speedup, predicted = None, None
    if goal.kind == SPEEDUP:
        assert plain is not None and measure is not None
        state, speedup = search.to_speed(goal.value, plain, measure)
        predicted = _predicted(price, state, plain)
        state = pruner.finish(state)
    elif goal.priced:
        state = search.to_count(goal.value * (price.whole if whole is None else whole), goal.kind == PARAMETERS)
    else:
        state = search.within(goal)
    return GoalResult(state, pruner.held_out_loss(state), speedup, predicted, tuple(search.steps))


def check_goal(goal: Goal, task: str) -> None:
    """Raises UserError where a goal counts what this kind of answers does not have."""
    if goal.kind == DROP and WORDS[task].metric is None:
        raise UserError(
            f"the model's answers are {task}, neither right nor wrong, so that no {DROP} can be measured: limit their "
            "divergence instead"
        )


def check_reach(goal: Goal, price: Price, *, plain: float | None = None, whole: float | None = None) -> None:
    """Raises UserError where even a model without any attention or MLP is not predicted to meet the goal.

    plain, whole: as in `reach_goal`.
    """
    if not goal.priced:
        return
    if goal.kind == SPEEDUP:
        assert plain is not None
        limit = price.speed_limit(plain)
        possible, best = goal.value <= limit, f"{limit:.2f}× as fast as its plain export: ask for less"
    else:
        least = price.least / (price.whole if whole is None else whole)
        possible, best = goal.value >= least, f"left with {least:.0%} of its {price.noun}: ask to keep more"
    if not possible:
        raise UserError(
            f"{goal.parameter} {goal.value:g} is out of reach, for even without any attention or MLP the model is "
            f"{best}"
        )


def _predicted(price: Price, state: State, plain: float) -> float:
    """How many times faster than the plain export, by the price. Measured times may add up to less than nothing: the
    model is taken to need a hundredth of the plain export's time at least."""
    return plain / max(price.total(state.kept), plain / 100)
