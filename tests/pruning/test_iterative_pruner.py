"""What a pruner says of a model on few images; more of it is tested through `vitfx.pruning.goal_search`."""

from __future__ import annotations

import pytest
import torch

from passes.plan import DeletionPlan
from tests.support.checks import canonical
from tests.support.families import images
from vitfx.pruning.compensation import Compensator
from vitfx.pruning.iterative_pruner import IterativePruner, State
from vitfx.support.progress import Silent


@pytest.mark.parametrize(("count", "held_out"), [(7, 1), (8, 2)])
def test_one_image_has_no_standard_error(count: int, held_out: int) -> None:
    model, pixels = canonical(), images(count).double()
    pruner = IterativePruner(model, pixels, model(pixels).argmax(-1), scored=4, seed=0, watcher=Silent())
    assert len(pruner.held_out) == held_out
    found = pruner.held_out_loss(pruner.start())
    assert found.drop == 0 and found.error == (None if held_out == 1 else 0)


@pytest.mark.parametrize("count", [0, 3, 12])
def test_the_final_refit_uses_further_images_and_never_those_held_out(count: int) -> None:
    model, pixels = canonical(), images(16 + count).double()
    calls = []

    def more() -> torch.Tensor:
        calls.append(count)
        return pixels[16:]

    pruner = IterativePruner(model, pixels[:16], None, scored=12, seed=0, watcher=Silent(), more=more)
    assert torch.equal(pruner.held_out, pixels[12:16])
    assert not calls
    plan = DeletionPlan.deleting(model, {"m0": (0, 1, 2), "a1": (0,)})
    finished = [pruner.finish(State(plan, {}, {})) for _ in range(2)]
    assert calls == [count]
    expected = Compensator(model, torch.cat([pixels[:12], pixels[16:]]))(plan).plan if count else plan
    assert finished[0].plan.to_json() == finished[1].plan.to_json() == expected.to_json()
