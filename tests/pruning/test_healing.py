"""vitfx.pruning.healing: what training leaves is kept where it is nearer; a limit is kept by a standard error."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.support.goals import CPU, asked, goal_images
from tests.support.prune_runs import model
from vitfx.pruning.goal import DROP, FLOPS, KL, Goal
from vitfx.pruning.healing import Training
from vitfx.pruning.iterative_pruner import HeldOutLoss
from vitfx.pruning.limit import keeps
from vitfx.pruning.prune_for_goal import compile_for_goal
from vitfx.support.progress import Silent


def compiled(goal, heal):
    return compile_for_goal(
        model(), goal_images(), asked(goal.kind, goal.value), device=CPU, watcher=Silent(), heal=heal
    )


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


def test_what_is_no_nearer_is_not_kept():
    heal = scaled(3.0)
    pruned = compiled(Goal(FLOPS, 0.6), heal)
    (call,) = heal.asked
    assert pruned.module is call.artifact
    assert pruned.artifact_kl == pytest.approx(pruned.compensation.kl)
    assert any(note.startswith("a test trained it") and "stay as they were" in note for note in pruned.notes)
    # The last quarter of the images judges.
    assert tuple(call.held_out) == tuple(map(str, range(36, 48)))


def test_what_is_nearer_is_kept_and_told():
    def heal(artifact, original, held_out, measure):
        """The original's own answers can't be beaten."""
        return Training(copy.deepcopy(original), "a test trained it", {"images": 5})

    pruned = compiled(Goal(FLOPS, 0.6), heal)
    assert pruned.artifact_kl == pytest.approx(0, abs=1e-9)
    assert pruned.compensation.kl > 0
    assert pruned.circuit.kl == pruned.artifact_kl
    (note,) = [note for note in pruned.notes if note.startswith("a test trained it")]
    assert "stay as they were" not in note and "the proof is of the model before that" in note
    record = pruned.circuit.details["healing"]
    assert record["kept"] and record["images"] == 5
    assert record["before"]["kl"] == pytest.approx(pruned.compensation.kl)
    assert record["after"]["kl"] == pruned.artifact_kl


def test_what_could_not_be_trained_is_told_without_figures():
    pruned = compiled(Goal(FLOPS, 0.6), lambda artifact, *_: Training(artifact, "survivors were not trained (why)"))
    assert "survivors were not trained (why)" in pruned.notes
    assert "healing" not in pruned.circuit.details


def test_what_is_left_whole_is_not_trained():
    heal = scaled(3.0)
    pruned = compiled(Goal(KL, 1e-12), heal)
    assert not pruned.plan.deletions and not heal.asked


@pytest.mark.parametrize(
    ("drop", "error", "kept"),
    [
        (0.4, 0.4, True),
        (0.4, 0.6, False),
        (0.75, 0.1, False),
        (0.78, None, True),
        (-1.0, 1.9, True),
        (-1.0, 2.1, False),
    ],
)
def test_a_limit_on_top_1_is_kept_by_a_standard_error_and_what_unseen_images_lose_more(drop, error, kept):
    assert keeps(HeldOutLoss(0.1, drop, error), Goal(DROP, 1.0)) == kept
