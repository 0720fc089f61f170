"""vitfx.pruning.healing: what training leaves is kept where it is nearer, and a limit is kept with it or without."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.support.prune_runs import model
from vitfx.deploy.deployment import NAMES, default_deployment
from vitfx.deploy.precisions import FP32, INT8
from vitfx.images.image_set import Images
from vitfx.pruning.goal import DROP, FLOPS, KL, SPEEDUP, Goal, Target
from vitfx.pruning.goal_search import keeps
from vitfx.pruning.healing import SLACK, Training, aims
from vitfx.pruning.iterative_pruner import HeldOutLoss
from vitfx.pruning.prune_for_goal import compile_for_goal
from vitfx.pruning.target_bench import GoalRequest
from vitfx.support.progress import Silent

CPU = torch.device("cpu")


def images(count=48):
    pixels = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Images(pixels, torch.arange(count) % 10, tuple(map(str, range(count))))


def compiled(goal, heal):
    asked = GoalRequest(goal, Target("cpu", 2), default_deployment(NAMES, CPU, portable=False))
    return compile_for_goal(model(), images(), asked, device=CPU, watcher=Silent(), heal=heal)


def scaled(factor):
    """In place of training: the last weights times a factor. It remembers what it was asked."""

    def heal(artifact, original, held_out, measure):
        heal.asked.append(SimpleNamespace(artifact=artifact, original=original, held_out=held_out))
        trained = copy.deepcopy(artifact)
        last = [module for module in trained.modules() if isinstance(module, nn.Linear)][-1]
        with torch.no_grad():
            last.weight.mul_(factor)
            last.bias.mul_(factor)
        return Training(trained, "a test trained it")

    heal.asked = []
    return heal


@pytest.mark.parametrize("kind", [KL, DROP])
def test_a_limit_is_first_overdrawn(kind):
    assert aims(Goal(kind, 0.5), FP32, None) == aims(Goal(kind, 0.5), INT8, scaled(1)) == (Goal(kind, 0.5),)
    assert aims(Goal(kind, 0.5), FP32, scaled(1)) == (Goal(kind, 0.5 * SLACK), Goal(kind, 0.5))


@pytest.mark.parametrize(("kind", "value"), [(FLOPS, 0.5), (SPEEDUP, 2.0)])
def test_a_price_is_aimed_at_once(kind, value):
    assert aims(Goal(kind, value), FP32, scaled(1)) == (Goal(kind, value),)


def test_what_is_no_nearer_is_not_kept():
    heal = scaled(3.0)
    pruned = compiled(Goal(FLOPS, 0.6), heal)
    (asked,) = heal.asked
    assert pruned.module is asked.artifact
    assert pruned.artifact_kl == pytest.approx(pruned.compensation.kl)
    assert any(note.startswith("a test trained it") and "stay as they were" in note for note in pruned.notes)
    # The last quarter of the images judges.
    assert tuple(asked.held_out) == tuple(map(str, range(36, 48)))


def test_what_is_nearer_is_kept_and_told():
    def heal(artifact, original, held_out, measure):
        """The original's own answers can't be beaten."""
        return Training(copy.deepcopy(original), "a test trained it")

    pruned = compiled(Goal(FLOPS, 0.6), heal)
    assert pruned.artifact_kl == pytest.approx(0, abs=1e-9)
    assert pruned.compensation.kl > 0
    assert pruned.circuit.kl == pruned.artifact_kl
    (note,) = [note for note in pruned.notes if note.startswith("a test trained it")]
    assert "stay as they were" not in note


def test_where_healing_does_not_keep_the_limit_the_search_does():
    heal = scaled(3.0)
    goal = Goal(KL, 0.04)
    pruned = compiled(goal, heal)
    assert len(heal.asked) == 2
    assert pruned.artifact_kl <= goal.value
    first, second = (sum(value.numel() for value in asked.artifact.parameters()) for asked in heal.asked)
    assert first < second


@pytest.mark.parametrize(
    ("drop", "error", "kept"), [(0.4, 0.5, True), (0.6, 0.5, False), (0.9, None, True), (-1.0, 1.9, True)]
)
def test_a_limit_on_top_1_is_kept_by_a_standard_error(drop, error, kept):
    assert keeps(HeldOutLoss(0.1, drop, error), Goal(DROP, 1.0)) == kept
