"""vitfx.pruning.limit: how deep the next cut goes."""

import pytest

from passes.plan import DeletionPlan
from vitfx.pruning.iterative_pruner import State
from vitfx.pruning.limit import Cut

WHOLE = State(DeletionPlan(), {}, {})


@pytest.mark.parametrize(
    ("price", "bound", "limit", "most"),
    [
        (90, 0.1, 0.225, 85),  # one and a half times as much for nine quarters of the loss
        (90, 0.0, 0.2, 80),  # where nothing is lost yet, twice as much
        (90, 0.01, 1.0, 80),
        (90, 0.1, 0.1, 90),
        (100, 0.0, 0.1, 90),
        (100, 0.1, 0.1, 100),
    ],
)
def test_losses_are_taken_to_grow_as_the_square_of_what_is_gone(price, bound, limit, most):
    start = Cut(WHOLE, 100, 0.0 if price < 100 else bound)
    assert Cut(WHOLE, price, bound).beyond(start, limit) == pytest.approx(most)
