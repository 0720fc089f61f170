"""What a pruner says of a model on few images; more of it is tested through `vitfx.pruning.goal_search`."""

from __future__ import annotations

import pytest

from tests.support.checks import canonical
from tests.support.families import images
from vitfx.pruning.iterative_pruner import IterativePruner
from vitfx.support.progress import Silent


@pytest.mark.parametrize(("count", "held_out"), [(7, 1), (8, 2)])
def test_one_image_has_no_standard_error(count: int, held_out: int) -> None:
    model, pixels = canonical(), images(count).double()
    pruner = IterativePruner(model, pixels, model(pixels).argmax(-1), scored=4, seed=0, watcher=Silent())
    assert len(pruner.held_out) == held_out
    found = pruner.held_out_loss(pruner.start())
    assert found.drop == 0 and found.error == (None if held_out == 1 else 0)
