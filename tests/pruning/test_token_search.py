"""`--tokens auto`: schedules by what they cost and lose, and the share of a goal that tokens pay."""

import pytest
import torch

from passes.merge_tokens import schedule_of
from passes.token_schedule import TokenCounts
from tests.support.checks import traced
from tests.support.families import images, make
from vitfx.deploy.deployment import NAMES, default_deployment
from vitfx.images.image_set import Images
from vitfx.pruning.goal import DROP, FLOPS, KL, PARAMETERS, Goal, Target
from vitfx.pruning.iterative_pruner import IterativePruner
from vitfx.pruning.prune_for_goal import compile_for_goal
from vitfx.pruning.target_bench import GoalRequest
from vitfx.pruning.token_search import front, schedules, search_schedule
from vitfx.support.progress import Silent

CPU = torch.device("cpu")
PIXELS = images(32)


@pytest.mark.parametrize(
    "counts", [TokenCounts(12, 65, 1), TokenCounts(3, 17, 1), TokenCounts(24, 577, 5), TokenCounts(1, 3, 1)]
)
def test_schedules_can_be_carried_out_and_differ(counts):
    found = schedules(counts)
    assert found
    assert len(set(found)) == len(found)
    left = [schedule.tokens_left(counts)[-1] for schedule in found]
    assert all(counts.protected < tokens < counts.tokens for tokens in left)


def pruner(name="vitfx"):
    graph_module = traced(name).graph_module
    labels = torch.arange(len(PIXELS)) % 7
    return graph_module, IterativePruner(graph_module, PIXELS, labels, scored=8, seed=0, watcher=Silent())


def test_on_the_front_more_flops_lose_less():
    graph_module, made = pruner()
    found = front(graph_module, made, PIXELS[:2])
    assert (found[0].merging, found[0].flops, found[0].kl) == (None, 1.0, 0.0)
    assert len(found) > 2
    assert [candidate.flops for candidate in found] == sorted((candidate.flops for candidate in found), reverse=True)
    assert [candidate.kl for candidate in found] == sorted(candidate.kl for candidate in found)


def test_a_model_whose_tokens_can_not_merge_goes_without():
    graph_module, made = pruner("timm-beit")
    assert [candidate.merging for candidate in front(graph_module, made, PIXELS[:2])] == [None]


@pytest.mark.parametrize(
    ("goal", "merges"), [(Goal(KL, 10.0), True), (Goal(KL, 1e-9), False), (Goal(DROP, 200.0), True)]
)
def test_tokens_take_at_most_half_of_a_limit(goal, merges):
    graph_module, made = pruner()
    chosen = search_schedule(graph_module, made, goal, None, PIXELS[:2], Silent())
    assert (chosen is not None) == merges
    if chosen is not None:
        cheapest = front(graph_module, made, PIXELS[:2])[-1].merging
        assert cheapest is not None and chosen.schedule == cheapest.schedule


def test_parameters_do_not_fall_with_tokens():
    graph_module, made = pruner()
    assert search_schedule(graph_module, made, Goal(PARAMETERS, 0.5), 0.5, PIXELS[:2], Silent()) is None


def test_a_share_of_the_flops_is_reached_and_proved():
    deployment = default_deployment(NAMES, CPU, portable=False)
    asked = GoalRequest(Goal(FLOPS, 0.6), Target("cpu", 2), deployment, tokens="auto")
    given = Images(PIXELS, None, tuple(map(str, range(len(PIXELS)))))
    pruned = compile_for_goal(make("vitfx"), given, asked, device=CPU, watcher=Silent())
    measured, before = pruned.verification.measured, pruned.verification.before
    assert pruned.missed is None
    assert 0.4 < measured.flops / before.flops <= 0.6
    notes = [note for note in pruned.notes if "tokens merge by the schedule" in note]
    assert len(notes) == bool(schedule_of(pruned.module))
