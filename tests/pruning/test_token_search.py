"""`--tokens auto`: schedules by what they cost and lose, and the share of a goal that tokens pay."""

import pytest
import torch

from passes.base import PassError
from passes.cost import measure_cost
from passes.merge_tokens import MergeBySchedule, schedule_of
from passes.plan import DeletionPlan
from passes.stream import read_sites
from passes.token_schedule import TokenCounts, TokenSchedule
from tests.support.checks import traced
from tests.support.families import images, make
from vitfx.deploy.deployment import NAMES, default_deployment
from vitfx.images.image_set import Images
from vitfx.pruning import merge_prices
from vitfx.pruning.compensation import divergence
from vitfx.pruning.cost_model import Price
from vitfx.pruning.goal import DROP, FLOPS, KL, PARAMETERS, SPEEDUP, Goal, Target
from vitfx.pruning.iterative_pruner import IterativePruner
from vitfx.pruning.merge_prices import MergePrices
from vitfx.pruning.prune_for_goal import compile_for_goal
from vitfx.pruning.target_bench import GoalRequest, TargetBench
from vitfx.pruning.token_merging import with_merges
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
    """And prices in FLOPs."""
    graph_module = traced(name).graph_module
    labels = torch.arange(len(PIXELS)) % 7
    deployment = default_deployment(NAMES, CPU, portable=False)
    asked = GoalRequest(Goal(FLOPS, 0.5), Target("cpu", 2), deployment)
    bench = TargetBench(graph_module, graph_module, PIXELS, asked, Silent())
    made = IterativePruner(graph_module, PIXELS, labels, scored=8, seed=0, watcher=Silent())
    return made, MergePrices(bench, bench.price())


def test_on_the_front_more_flops_lose_less():
    found = front(*pruner(), PIXELS[:2])
    assert (found[0].merging, found[0].cost, found[0].kl) == (None, 1.0, 0.0)
    assert len(found) > 2
    assert [candidate.cost for candidate in found] == sorted((candidate.cost for candidate in found), reverse=True)
    assert [candidate.kl for candidate in found] == sorted(candidate.kl for candidate in found)


def test_the_comparison_shows_how_far_it_is_and_evaluates_the_original_once(monkeypatch):
    made, prices = pruner()
    calls, reports = [], []
    made.original.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    monkeypatch.setattr(made.watcher, "bar", lambda title: lambda done, total: reports.append((title, done, total)))
    found = front(made, prices, PIXELS[:2])
    count = reports[-1][2]
    assert reports == [("merging tokens", number, count) for number in range(count + 1)]
    assert sum(calls) < 2 * len(made.scored) + 2 * count + 4
    for candidate in found[1:3]:
        assert candidate.kl == divergence(made.original, DeletionPlan(), made.scored, made.measure, candidate.merging)


def test_a_model_whose_tokens_can_not_merge_goes_without():
    assert [candidate.merging for candidate in front(*pruner("timm-beit"), PIXELS[:2])] == [None]


@pytest.mark.parametrize(
    ("goal", "merges"), [(Goal(KL, 10.0), True), (Goal(KL, 1e-9), False), (Goal(DROP, 200.0), True)]
)
def test_tokens_take_at_most_half_of_a_limit(goal, merges):
    made, prices = pruner()
    chosen = search_schedule(made, prices, goal, None, PIXELS[:2], Silent())
    assert (chosen is not None) == merges
    if chosen is not None:
        cheapest = front(made, prices, PIXELS[:2])[-1].merging
        assert cheapest is not None and chosen.schedule == cheapest.schedule


def test_points_are_no_nats():
    """Half of this limit is more than the first schedule loses if it is read as nats, and less if not."""
    made, prices = pruner()
    least = front(made, prices, PIXELS[:2])[1].kl
    assert search_schedule(made, prices, Goal(DROP, 3 * least), None, PIXELS[:2], Silent()) is None


@pytest.mark.parametrize("share", [0.6, 1e-3])
def test_units_pay_what_tokens_leave_of_the_whole_price(share, monkeypatch):
    """Where no cut is that deep, none is tried."""
    made, prices = pruner()
    asked, cut = [], IterativePruner.cut

    def recorded(self, state, price, most):
        asked.append((price.whole, most))
        return cut(self, state, price, most)

    monkeypatch.setattr(IterativePruner, "cut", recorded)
    search_schedule(made, prices, Goal(FLOPS, share), share, PIXELS[:2], Silent())
    assert {most for _, most in asked} == ({share * prices.unmerged.whole} if share > 0.1 else set())
    assert share < 0.1 or len({whole for whole, _ in asked}) > 1


def test_half_of_a_speed_is_not_asked_for():
    """It would be slower than the model is."""
    speed, flops = (
        search_schedule(*pruner(), goal, 0.6, PIXELS[:2], Silent()) for goal in (Goal(SPEEDUP, 1.2), Goal(FLOPS, 0.6))
    )
    assert speed is not None and flops is not None and speed.schedule == flops.schedule


def test_parameters_do_not_fall_with_tokens():
    assert search_schedule(*pruner(), Goal(PARAMETERS, 0.5), 0.5, PIXELS[:2], Silent()) is None


class _Times:
    """A bench on which the operators of a merge take 2 % of the whole model's time."""

    counts = False

    def __init__(self, graph_module):
        self.original, self.examples, self.asked = graph_module, PIXELS[:2], []

    def time_share(self, merging):
        self.asked.append(merging.schedule)
        flops = [
            measure_cost(each, PIXELS.shape[1:]).flops for each in (with_merges(self.original, merging), self.original)
        ]
        return flops[0] / flops[1] + 0.02 * len(merging.schedule.merges)


def test_times_follow_tokens_and_count_the_merges():
    graph_module = traced("vitfx").graph_module
    bench = _Times(graph_module)
    unmerged = Price(
        "ms", 10.0, {site.name: torch.arange(site.module.units + 1.0).double() for site in read_sites(graph_module)}
    )
    prices = MergePrices(bench, unmerged)
    merging = MergeBySchedule(TokenSchedule(((0, 4), (1, 2))), PIXELS[:2])
    price, share = prices.price(merging), bench.time_share(merging)
    assert price.unit == "ms"
    assert price.whole == pytest.approx(share * unmerged.whole)
    # The first block's attention reads all 17 tokens, its MLP 13, and the second block's MLP 11.
    first, *_, last = price.sublayers
    assert torch.equal(price.sublayers[first], unmerged.sublayers[first])
    assert float(price.sublayers[last][-1]) < float(unmerged.sublayers[last][-1])
    other = MergeBySchedule(TokenSchedule(((1, 8),)), PIXELS[:2])
    assert prices.estimate(other) == pytest.approx(bench.time_share(other))
    assert prices.price(None) is unmerged
    asked = len(bench.asked)
    prices.price(merging), prices.estimate(other)
    assert len(bench.asked) == asked


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


def test_where_the_first_blocks_can_not_merge_later_ones_tell_what_a_merge_takes(monkeypatch):
    graph_module = traced("vitfx").graph_module
    bench = _Times(graph_module)
    prices = MergePrices(bench, Price("ms", 10.0, {}))
    merged = merge_prices.with_merges

    def later(original, merging):
        if merging.schedule.merges[0][0] == 0:
            raise PassError("the first block can't")
        return merged(original, merging)

    monkeypatch.setattr(merge_prices, "with_merges", later)
    merging = MergeBySchedule(TokenSchedule(((1, 2),)), PIXELS[:2])
    assert prices.estimate(merging) == pytest.approx(prices._flops_share(merging) + 0.02)
    assert bench.asked[0].merges[0][0] == 1
