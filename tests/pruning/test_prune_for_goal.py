"""Goals in memory, on a small model of the digits."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from passes.plan import DeletionPlan
from tests.support.goals import CPU, asked, without_biases
from tests.support.prune_runs import model
from tests.support.speeds import exactly
from vitfx.circuits.circuit import Circuit
from vitfx.circuits.summary import layer_rows
from vitfx.images.image_set import Images
from vitfx.pruning import goal_delivery
from vitfx.pruning import prune_for_goal as goal_compiler
from vitfx.pruning import target_bench as goal_bench
from vitfx.pruning.compensation import divergence, with_means
from vitfx.pruning.goal import DROP, FLOPS, KL, PARAMETERS, SPEEDUP, Target
from vitfx.pruning.goal_search import GoalResult
from vitfx.pruning.iterative_pruner import HeldOutLoss, IterativePruner, State
from vitfx.pruning.prune_for_goal import compile_for_goal
from vitfx.support.errors import UserError
from vitfx.support.progress import Silent
from vitfx.support.timing import SpeedUp


def compiled(images, one):
    return compile_for_goal(model(), images, one, device=CPU, watcher=Silent())


def test_a_speed_is_reached_and_the_artifact_is_proved(images, table, monkeypatch):
    monkeypatch.setattr(
        goal_bench.TargetBench, "measure", lambda self, state: exactly(3.0 / self.price().total(state.kept))
    )
    found = compiled(images, asked(SPEEDUP, 1.8))
    assert found.verification.passed
    assert found.plan.deletions
    assert found.circuit.details["price"]["speed-up"] == pytest.approx(1.8, rel=0.06)
    assert found.notes[-1].startswith("asked for 1.8× faster: measured 1.")
    assert found.compensation.kl == found.artifact_kl == found.circuit.kl


@pytest.mark.parametrize(("kind", "limit"), [(KL, 0.05), (DROP, 30.0)])
def test_a_limit_leaves_room_for_what_int8_costs(images, table, monkeypatch, kind, limit):
    """Half of it at most; rounding that costs more is stood in for by answers to other images."""
    one = replace(asked(kind, limit), target=Target("cpu", 2, "int8"))
    with torch.no_grad():
        images = replace(images, labels=model().eval()(images.pixels).argmax(1))
    found = compiled(images, one)
    (note,) = (note for note in found.notes if note.startswith("int8 costs the whole model KL 0.0"))
    assert found.artifact_kl > 0
    if kind == KL:
        cost = float(re.search(r"KL ([\d.]+)", note)[1])
        assert 0 < cost < limit / 2 and found.artifact_kl <= limit - cost + 1e-4
    answers = goal_bench.TargetBench.answers
    monkeypatch.setattr(goal_bench.TargetBench, "answers", lambda self, *given: 50 * answers(self, *given).flip(1))
    (note,) = (note for note in compiled(images, one).notes if note.startswith("int8 costs"))
    assert f"so that pruning alone was allowed at most {limit / 2:g}" in note


def test_a_limit_that_merged_tokens_break_by_themselves_is_missed(images, table):
    found = compiled(images, asked(KL, 1e-9, tokens="r=1"))
    assert not found.plan.deletions and found.artifact_kl > 1e-9
    assert found.missed == f"measured KL {found.artifact_kl:.3g} nats"
    assert found.circuit.details["price"]["met"] is False
    assert compiled(images, asked(KL, 10.0, tokens="r=1")).missed is None


def test_what_refits_are_compared_with_has_means_alone(images):
    """Where few images are fitted, the shift of a refit goes into a constant."""
    original, pixels = without_biases(), images.pixels
    pruner = IterativePruner(original, pixels, None, scored=24, seed=0, watcher=Silent())
    plan = DeletionPlan.deleting(original, {"a0": [1], "m1": range(8)})
    shifted = replace(plan, deletions=tuple(replace(each, constant=torch.ones(16)) for each in plan.deletions))
    result = GoalResult(State(shifted, {}, {}), HeldOutLoss(0.1, None, None), None, None, ())
    expected = divergence(original, with_means(original, plan, pixels[:24]), pixels[-12:])
    assert goal_delivery._compensated(pruner, result).kl_mean == pytest.approx(expected, rel=1e-4)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_biases_of_refits_count(images):
    bare = without_biases()
    found = compile_for_goal(bare, images, asked(PARAMETERS, 0.7), device=CPU, watcher=Silent())
    share = parameters(found.module) / parameters(bare)
    assert found.plan.refits and 0.6 < share <= 0.7
    assert found.missed is None
    assert found.notes[-1].startswith(f"asked for 70% of the parameters: measured {100 * share:.6g}%, KL ")


def test_without_deletions_no_refit_is_claimed(images, table, monkeypatch):
    monkeypatch.setattr(goal_bench.TargetBench, "measure", lambda self, state: exactly(1.2))
    found = compiled(images, asked(SPEEDUP, 1.05))
    assert not found.plan.deletions
    assert found.compensation.kind == "none" and found.compensation.kl is None
    assert found.notes[-1] == "nothing had to be deleted for that"


def test_a_noisy_machine_promises_nothing(images, table, monkeypatch):
    monkeypatch.setattr(goal_bench.TargetBench, "measure", lambda self, state: SpeedUp(1.5, 1.3, 1.6))
    found = compiled(images, asked(SPEEDUP, 1.5))
    assert found.notes[-1] == (
        "this machine is too noisy to promise a speed: it measured anything from 1.30× to 1.60×, so measure again "
        "while nothing else runs"
    )
    assert found.circuit.details["price"]["interval"] == [1.3, 1.6]
    within = compiled(images, asked(KL, 1e-12))
    assert not within.plan.deletions
    assert within.notes[-1] == "nothing could be deleted within that"


def test_a_goal_wants_three_images(images, table):
    few = replace(images, pixels=images.pixels[:2], labels=None, names=images.names[:2])
    with pytest.raises(UserError, match="2 images are too few: for a goal give 3 or more"):
        compiled(few, asked(FLOPS, 0.5))
    assert compiled(replace(few, pixels=images.pixels[:3], names=images.names[:3]), asked(FLOPS, 0.9)).plan.deletions


def test_a_circuit_says_what_is_kept_and_what_is_gone(images, table):
    found = compiled(images, asked(KL, 0.02))
    circuit = Circuit.from_json(found.circuit.to_json())
    assert circuit == found.circuit
    gone = {(edge.writer.sublayer, unit) for edge in circuit.removed for unit in edge.writer.units}
    assert gone == {(one.name, unit) for one in found.plan.deletions for unit in one.units}
    assert layer_rows(circuit)[-1].layer == "total"


def test_a_limit_on_accuracy_needs_labels(images, table):
    bare = Images(images.pixels, None, images.names)
    with pytest.raises(UserError, match="`max_drop` needs labelled images"):
        compiled(bare, asked(DROP, 1.0))


def test_survivors_are_fitted_and_judged_on_further_images(images, table, monkeypatch):
    monkeypatch.setattr(goal_compiler, "MOST_IMAGES", 60)
    calls = []

    def more(count):
        calls.append(count)
        return Images(images.pixels[:8], images.labels[:8], images.names[:8])

    found = compile_for_goal(model(), images, asked(FLOPS, 0.9), device=CPU, watcher=Silent(), more=more)
    assert calls == [60 - 48]
    assert (found.compensation.images, found.compensation.held_out) == (40, 16)
    monkeypatch.setattr(goal_compiler, "_MOST_FLOPS", 1.0)
    found = compile_for_goal(model(), images, asked(FLOPS, 0.9), device=CPU, watcher=Silent(), more=more)
    assert len(calls) == 1 and found.compensation.images == 36
