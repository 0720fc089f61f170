"""From a goal to a pruned model that meets it, measured and not only predicted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vitfx.errors import UserError
from vitfx.goal import DROP, PROMISED, SPEEDUP, Goal, reaches
from vitfx.price import Price
from vitfx.progress import Watcher
from vitfx.pursuit import Pursuit, Standing, State

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
    """state: the model. speedup: measured, None where the goal is none. met: whether it is what was asked for. steps:
    every model on the way: its total price and how it stood; JSON-ready."""

    state: State
    standing: Standing
    speedup: float | None
    met: bool
    steps: tuple[dict[str, Any], ...]


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
        """Of the models tried the one whose speed is nearest to `speedup` times a plain export's, which takes `plain`
        ms, and its measured speed-up. Raises UserError where no model is predicted to be as fast."""
        most = plain / speedup
        state = self.to_price(most, rounds, start)
        tried = [(state, measure(state))]
        for _ in range(CORRECTIONS):
            found = tried[-1][1]
            self.watcher.say(f"measured {found:.3f}×, asked for {speedup:g}×")
            if abs(found / speedup - 1) <= TOLERANCE or (most >= self.price.whole and found > speedup):
                break
            # What was predicted and what was measured differ by a factor that is nearly the same a step further on.
            most = min(most * found / speedup, self.price.whole)
            state = self.cut(state, most)
            tried.append((state, measure(state)))
        return min(tried, key=lambda one: abs(math.log(one[1] / speedup)))

    def within(self, goal: Goal) -> State:
        """The cheapest model found that keeps to a limit on accuracy or KL with survivors refitted on all images, which
        may change on which side of the limit a model lies."""
        whole = self.price.whole
        # A hair more than nothing prunable at all, for sums of floats.
        least = self.price.least + 1e-9 * whole
        good, bad = [(self.pursuit.start(), whole)], -math.inf
        for _ in range(_MOST_CUTS):
            state, price = good[-1]
            most = max(price - _STRIDE * whole, least) if math.isinf(bad) else (price + bad) / 2
            if price - most < _FINEST * whole:
                break
            state = self.cut(state, most)
            if self._keeps(state, goal):
                good.append((state, most))
            else:
                bad = most
        finished = (self.pursuit.finish(state) for state, _ in reversed(good[1:]))
        return next((state for state in finished if self._keeps(state, goal)), good[0][0])

    def cut(self, state: State, most: float) -> State:
        state = self.pursuit.cut(state, self.price, most)
        standing = self.pursuit.standing(state)
        total = self.price.total(state.kept)
        self.steps.append({"price": total, "share": total / self.price.whole, "kl": standing.kl, "drop": standing.drop})
        self.watcher.say(f"{total / self.price.whole:.1%} of the {self.price.unit}: {said(standing)}")
        return state

    def _keeps(self, state: State, goal: Goal) -> bool:
        standing = self.pursuit.standing(state)
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
    predicted to be within reach and was not measured is no error: see `Attained.met`. Raises UserError where the goal
    is out of reach, or needs labels that are not there."""
    if goal.kind == DROP and pursuit.labels is None:
        raise UserError("--max-drop needs labelled images: give images in class folders, or --max-kl instead")
    attempt = Attempt(pursuit, price, watcher)
    found, met = None, True
    if goal.kind == SPEEDUP:
        assert plain is not None and measure is not None
        state, found = attempt.to_speed(goal.value, plain, measure)
        state, met = pursuit.finish(state), reaches(found, goal.value)
    elif goal.priced:
        state = pursuit.finish(attempt.to_price(goal.value * (price.whole if whole is None else whole)))
    else:
        state = attempt.within(goal)
    return Attained(state, pursuit.standing(state), found, met, tuple(attempt.steps))
