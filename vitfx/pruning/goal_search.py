"""From a goal to a pruned model that meets it, measured and not only predicted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vitfx.graph.verify import rewrite
from vitfx.pruning.cost_model import Price
from vitfx.pruning.goal import DROP, PARAMETERS, PROMISED, SPEEDUP, Goal, reaches
from vitfx.pruning.iterative_pruner import Pursuit, Standing, State
from vitfx.support.errors import UserError
from vitfx.support.progress import Watcher

ROUNDS = 3
"""Cuts, each scored anew, on the way to a price."""
TOLERANCE = PROMISED / 2
"""How far it may be off before the cut is corrected: the measurement has an error of its own."""
CORRECTIONS = 4
_STRIDE, _FINEST = 0.06, 0.007
"""Of the whole price, how much cheaper the next cut is, and how near to a cut that was too deep the search goes on."""
_MOST_CUTS = 24

Speed = Callable[[State], float]
"""The plain export's time by that of a pruned model, measured in turns."""


@dataclass(frozen=True)
class Attained:
    """What a search ended with, whether or not it is what was asked for."""

    state: State
    standing: Standing
    speedup: float | None  #: measured; None where the goal is no speed-up
    predicted: float | None  #: the same by the price
    steps: tuple[dict[str, Any], ...]
    """Every model on the way, JSON-ready: its total price, how it stood, and, where it was measured, both speed-ups."""


def said(standing: Standing) -> str:
    """In words."""
    lost = f"KL {standing.kl:.4f}"
    if standing.drop is not None:
        error = "" if standing.error is None else f" ± {standing.error:.1f}"
        lost += f", {standing.drop:+.1f}{error} points of top-1 lost"
    return lost


class Attempt:
    """One goal on one pursuit."""

    def __init__(self, pursuit: Pursuit, price: Price, watcher: Watcher) -> None:
        self.pursuit, self.price, self.watcher = pursuit, price, watcher
        self.steps: list[dict[str, Any]] = []

    def to_price(self, most: float, rounds: int = ROUNDS, start: State | None = None) -> State:
        """A model of at most this total price, in so many cuts from `start`, or else from the whole model. Raises
        UserError where no model is that cheap."""
        state = self.pursuit.start() if start is None else start
        first = self.price.total(state.kept)
        if most >= first:
            return state
        for number in range(1, rounds + 1):
            state = self.cut(state, first + (most - first) * number / rounds)
        return state

    def to_speed(
        self, speedup: float, plain: float, measure: Speed, rounds: int = ROUNDS, start: State | None = None
    ) -> tuple[State, float]:
        """Of the models tried that are as fast as was promised, or of all where none is, the one whose speed is nearest
        to `speedup` times a plain export's, which takes `plain` ms, and its measured speed-up. Raises UserError where
        no model is predicted to be as fast."""
        price, most = self.price, plain / speedup
        state = self.to_price(most, rounds, start)
        tried = [(state, self._measured(state, plain, speedup, measure))]
        for _ in range(CORRECTIONS):
            found = tried[-1][1]
            # What was predicted and what was measured differ by a factor that is nearly the same a step further on.
            wanted = min(max(most * found / speedup, price.floor), price.whole)
            if abs(found / speedup - 1) <= TOLERANCE or wanted == most or (most >= price.whole and found > speedup):
                break
            most = wanted
            state = self.cut(state, most)
            tried.append((state, self._measured(state, plain, speedup, measure)))
        return min(tried, key=lambda one: (not reaches(one[1], speedup), abs(math.log(one[1] / speedup))))

    def _measured(self, state: State, plain: float, speedup: float, measure: Speed) -> float:
        found, predicted = measure(state), _predicted(self.price, state, plain)
        self.watcher.say(f"measured {found:.3f}×, predicted {predicted:.3f}×, asked for {speedup:g}×")
        if self.steps:
            self.steps[-1] |= {"predicted": predicted, "measured": found}
        return found

    def to_count(self, most: float, parameters: bool) -> State:
        """A finished model of at most this total price, and, for parameters, of at most so many: refits add biases that
        the price does not count. Where even the least model has more, it is returned."""
        state = self.pursuit.finish(self.to_price(most))
        for _ in range(CORRECTIONS if parameters else 0):
            module, total = rewrite(self.pursuit.original, state.plan).graph_module, self.price.total(state.kept)
            excess = sum(parameter.numel() for parameter in module.parameters()) - most
            if excess <= 0 or total <= self.price.floor:
                break
            state = self.pursuit.finish(self.cut(state, max(total - excess, self.price.floor)))
        return state

    def within(self, goal: Goal) -> State:
        """The cheapest model found that keeps to a limit on accuracy or KL with survivors refitted on all images, which
        may change on which side of the limit a model lies."""
        whole = self.price.whole
        good, bad = [(self.pursuit.start(), whole)], -math.inf
        for _ in range(_MOST_CUTS):
            state, price = good[-1]
            most = max(price - _STRIDE * whole, self.price.floor) if math.isinf(bad) else (price + bad) / 2
            if price - most < _FINEST * whole:
                break
            state, standing = self._cut(state, most)
            if _keeps(standing, goal):
                good.append((state, most))
            else:
                bad = most
        finished = (self.pursuit.finish(state) for state, _ in reversed(good[1:]))
        return next((one for one in finished if _keeps(self.pursuit.standing(one), goal)), good[0][0])

    def cut(self, state: State, most: float) -> State:
        return self._cut(state, most)[0]

    def _cut(self, state: State, most: float) -> tuple[State, Standing]:
        state = self.pursuit.cut(state, self.price, most)
        standing = self.pursuit.standing(state)
        total = self.price.total(state.kept)
        self.steps.append({"price": total, "share": total / self.price.whole, "kl": standing.kl, "drop": standing.drop})
        self.watcher.say(f"{total / self.price.whole:.1%} of the {self.price.unit}: {said(standing)}")
        return state, standing


def _keeps(standing: Standing, goal: Goal) -> bool:
    if goal.kind != DROP:
        return standing.kl <= goal.value
    assert standing.drop is not None
    return standing.drop <= goal.value


def attain(
    pursuit: Pursuit,
    goal: Goal,
    price: Price,
    watcher: Watcher,
    *,
    plain: float | None = None,
    measure: Speed | None = None,
    whole: float | None = None,
) -> Attained:
    """price: in what the goal is counted in; for a limit on accuracy or KL, what is to be saved within it. plain,
    measure: for a speed-up. whole: what a share is of, the price of the model itself where it is None. A speed that was
    predicted to be within reach and was not measured is no error. Raises UserError where the goal is out of reach, or
    needs labels that are not there."""
    if goal.kind == DROP and pursuit.labels is None:
        raise UserError("--max-drop needs labelled images: give images in class folders, or --max-kl instead")
    check_reach(goal, price, plain=plain, whole=whole)
    attempt = Attempt(pursuit, price, watcher)
    found, predicted = None, None
    if goal.kind == SPEEDUP:
        assert plain is not None and measure is not None
        state, found = attempt.to_speed(goal.value, plain, measure)
        predicted = _predicted(price, state, plain)
        state = pursuit.finish(state)
    elif goal.priced:
        state = attempt.to_count(goal.value * (price.whole if whole is None else whole), goal.kind == PARAMETERS)
    else:
        state = attempt.within(goal)
    return Attained(state, pursuit.standing(state), found, predicted, tuple(attempt.steps))


def check_reach(goal: Goal, price: Price, *, plain: float | None = None, whole: float | None = None) -> None:
    """plain, whole: as in `attain`. Raises UserError, in what the user counts in, where not even a model without any
    attention and MLP is predicted to meet the goal."""
    if not goal.priced:
        return
    if goal.kind == SPEEDUP:
        assert plain is not None
        limit = price.speed_limit(plain)
        possible, said = goal.value <= limit, f"{limit:.2f}× as fast as its plain export"
    else:
        least = price.least / (price.whole if whole is None else whole)
        possible, said = goal.value >= least, f"left with {least:.0%} of its {price.unit}"
    if not possible:
        raise UserError(
            f"--{goal.kind} {goal.value:g} is out of reach, for even without any attention and MLP the model is "
            f"{said}: ask for less"
        )


def _predicted(price: Price, state: State, plain: float) -> float:
    """How many times faster than the plain export. Sums of measured times may fall short of any time at all; what is
    said then is the speed of a model that takes a hundredth of the plain export's time."""
    return plain / max(price.total(state.kept), plain / 100)
