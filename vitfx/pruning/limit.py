"""What keeps a limit on accuracy or KL, and how deep the next cut towards it goes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vitfx.pruning.goal import DROP, Goal
from vitfx.pruning.iterative_pruner import HeldOutLoss, State

JUDGED = 1024
"""Held-out images at most that judge the models on the way; all of them judge the last one."""
_FIRST = 0.1
"""Share of the whole price that the first cut takes."""
_UNSEEN = 1.25
"""By how much more top-1 falls on images that the model was not trained on: on a ViT-S 1.15 to 1.4 times as much as on
those that it was, which most users calibrate with."""


@dataclass(frozen=True)
class Cut:
    """A model on the way to a limit."""

    state: State
    price: float  #: that was asked for
    bound: float  #: what is compared with the limit

    def towards(self, bad: Cut, limit: float) -> float:
        """The price at which a line to a model beyond the limit meets it; its own where it is beyond that itself."""
        if self.bound >= limit:
            return self.price
        return self.price + (bad.price - self.price) * (limit - self.bound) / (bad.bound - self.bound)

    def beyond(self, start: Cut, limit: float) -> float:
        """The price at which a parabola from the start through this model meets the limit, or at which twice as much is
        gone."""
        gone, grown, left = start.price - self.price, self.bound - start.bound, limit - start.bound
        if not gone:
            return start.price * (1 - _FIRST) if left > 0 else start.price
        return start.price - gone * (min(2.0, math.sqrt(left / grown)) if grown > 0 else 2.0)


def keeps(loss: HeldOutLoss, goal: Goal) -> bool:
    """Whether a limit is kept, by more than chance says: of many models tried, some lose little by luck alone."""
    return bound(loss, goal) <= goal.value


def bound(loss: HeldOutLoss, goal: Goal, left: float = 1.0) -> float:
    """What is compared with a limit, in its unit. left: the share of the loss that a refit is expected to leave."""
    if goal.kind != DROP:
        return left * loss.kl
    assert loss.drop is not None
    return max(loss.drop, left * _UNSEEN * loss.drop) + (loss.error or 0.0)
