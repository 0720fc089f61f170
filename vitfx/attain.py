"""From a goal to a pruned model that meets it, measured and not only predicted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vitfx.errors import UserError
from vitfx.goal import DROP, SPEEDUP, Goal
from vitfx.price import Price
from vitfx.progress import Watcher
from vitfx.pursuit import Pursuit, Standing, State

ROUNDS = 3
"""Cuts, each scored anew, on the way to a price."""
TOLERANCE = 0.015
"""How far the measured speed-up may be from the one asked for before the cut is corrected: half of what is promised,
for the measurement has an error of its own."""
CORRECTIONS = 4
_STRIDE, _FINEST = 0.06, 0.007
"""Of the whole price, how much cheaper the next cut is, and how near to a cut that was too deep the search goes on."""
_MOST_CUTS = 24

Speed = Callable[[State], float]
"""The plain export's time by that of a pruned model, measured in turns."""


@dataclass(frozen=True)
class Attained:
    """state: the model. speedup: measured, None where the goal is none. steps: every model on the way: its total price
    and how it stood; JSON-ready."""

    state: State
    standing: Standing
    speedup: float | None
    steps: tuple[dict[str, Any], ...]


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
        """The model that is `speedup` times as fast as a plain export that takes `plain` ms. Raises UserError."""
        most = plain / speedup
        state = self.to_price(most, rounds, start)
        found = measure(state)
        for _ in range(CORRECTIONS):
            self.watcher.say(f"measured {found:.3f}×, asked for {speedup:g}×")
            if abs(found / speedup - 1) <= TOLERANCE or (most >= self.price.whole and found > speedup):
                break
            # What was predicted and what was measured differ by a factor that is nearly the same a step further on.
            most = min(most * found / speedup, self.price.whole)
            state = self.cut(state, most)
            found = measure(state)
        return state, found

    def within(self, goal: Goal) -> State:
        """The cheapest model found that keeps to a limit on accuracy or KL. Raises UserError where none does."""
        whole = self.price.whole
        # A hair more than nothing prunable at all, for sums of floats.
        least = self.price.least + 1e-9 * whole
        good, bad = (self.pursuit.start(), whole), -math.inf
        for _ in range(_MOST_CUTS):
            most = max(good[1] - _STRIDE * whole, least) if math.isinf(bad) else (good[1] + bad) / 2
            if good[1] - most < _FINEST * whole:
                break
            state = self.cut(good[0], most)
            if self._keeps(state, goal):
                good = (state, most)
            else:
                bad = most
        return good[0]

    def cut(self, state: State, most: float) -> State:
        state = self.pursuit.cut(state, self.price, most)
        standing = self.pursuit.standing(state)
        total = self.price.total(state.kept)
        self.steps.append({"price": total, "share": total / self.price.whole, "kl": standing.kl, "drop": standing.drop})
        lost = "" if standing.drop is None else f", {standing.drop:+.1f} ± {standing.error:.1f} points lost"
        self.watcher.say(f"{total / self.price.whole:.1%} of the {self.price.unit}: KL {standing.kl:.4f}{lost}")
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
    measure: for a speed-up. whole: what a share is of, the price of the model itself where it is None. Raises UserError
    where the goal is out of reach, or needs labels that are not there."""
    if goal.kind == DROP and pursuit.labels is None:
        raise UserError("--max-drop needs labelled images: give images in class folders, or --max-kl instead")
    attempt = Attempt(pursuit, price, watcher)
    found = None
    if goal.kind == SPEEDUP:
        assert plain is not None and measure is not None
        state, found = attempt.to_speed(goal.value, plain, measure)
    elif goal.priced:
        state = attempt.to_price(goal.value * (price.whole if whole is None else whole))
    else:
        state = attempt.within(goal)
    state = pursuit.finish(state)
    return Attained(state, pursuit.standing(state), found, tuple(attempt.steps))
