import copy
import math
from dataclasses import replace

import pytest
import torch

from passes.cost import measure_cost
from passes.plan import DeletionPlan
from passes.stream import read_sites
from tests.support.checks import assert_equal, canonical
from tests.support.families import images
from tests.support.speeds import exactly
from vitfx.graph.divergence import kl_divergence
from vitfx.graph.verify import ablated_logits, rewrite, tokens_of
from vitfx.pruning import goal_search
from vitfx.pruning.compensation import Compensator
from vitfx.pruning.cost_model import flops_price
from vitfx.pruning.goal import DROP, FLOPS, KL, SPEEDUP, Goal, reaches
from vitfx.pruning.goal_search import ROUNDS, GoalSearch, reach_goal
from vitfx.pruning.iterative_pruner import IterativePruner
from vitfx.support.errors import UserError
from vitfx.support.progress import Silent
from vitfx.support.timing import SpeedUp


@pytest.fixture(scope="module")
def model():
    return canonical()


@pytest.fixture(scope="module")
def pixels():
    return images(48).double()


@pytest.fixture
def price(model, pixels):
    return flops_price(model, pixels.shape[1:], tokens_of(model, pixels[:2]))


@pytest.fixture
def pruner(model, pixels):
    labels = model(pixels).argmax(-1)
    return IterativePruner(model, pixels, labels, scored=16, seed=0, watcher=Silent())


def bare(plan):
    return DeletionPlan(tuple(replace(one, constant=None) for one in plan.deletions))


def flops_of(model, state, pixels):
    return measure_cost(rewrite(model, state.plan).graph_module, pixels.shape[1:]).flops


def test_a_price_is_met_in_rounds_and_the_artifact_is_the_ablated_and_refitted_model(model, pixels, price, pruner):
    before = copy.deepcopy(model.state_dict())
    attempt = GoalSearch(pruner, price, Silent())
    state = attempt.to_price(0.6 * price.whole)
    assert len(attempt.steps) == ROUNDS
    assert [step["share"] for step in attempt.steps] == sorted((s["share"] for s in attempt.steps), reverse=True)
    assert 0.5 * price.whole < flops_of(model, state, pixels) <= 0.6 * price.whole
    assert flops_of(model, state, pixels) == price.total(state.kept)
    assert state.plan.refits
    artifact = rewrite(model, state.plan).graph_module
    assert_equal(artifact(pixels), ablated_logits(model, state.plan, pixels), 1e-9)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_loss_is_that_of_the_held_out_images(model, pixels, price, pruner):
    state = GoalSearch(pruner, price, Silent()).to_price(0.7 * price.whole, rounds=1)
    found = pruner.held_out_loss(state)
    last = pixels[-12:]
    assert len(pruner.held_out) == 12
    logits = ablated_logits(model, state.plan, last)
    assert found.kl == pytest.approx(float(kl_divergence(model(last), logits).mean().detach()), rel=1e-9)
    wrong = (logits.argmax(-1) != model(last).argmax(-1)).double()
    assert found.drop == pytest.approx(100 * float(wrong.mean()))
    assert found.error == pytest.approx(math.hypot(100 * float(wrong.std()) / 12**0.5, 50 / 12))


def test_the_same_seed_gives_the_same_plan(model, pixels, price):
    def found():
        pruner = IterativePruner(model, pixels, None, scored=16, seed=3, watcher=Silent())
        return GoalSearch(pruner, price, Silent()).to_price(0.7 * price.whole)

    one, two = found(), found()
    assert one.plan.to_json() == two.plan.to_json()


def test_a_later_round_may_put_back_what_an_earlier_one_deleted(pruner, price):
    attempt = GoalSearch(pruner, price, Silent())
    small = attempt.cut(pruner.start, 0.4 * price.whole)
    larger = attempt.cut(small, 0.8 * price.whole)
    assert sum(larger.kept.values()) > sum(small.kept.values())
    assert price.total(larger.kept) <= 0.8 * price.whole


def test_a_price_out_of_reach_is_refused(pruner, price):
    with pytest.raises(UserError, match=r"without any attention or MLP the model still has \d+% of its FLOPs"):
        GoalSearch(pruner, price, Silent()).to_price(0.5 * price.rest)


def test_a_speed_that_was_mispredicted_is_corrected_until_it_is_measured(pruner, price):
    """The runtime of this test takes a quarter of the time whatever is deleted; the price does not know."""
    plain, fixed = 1.25 * price.whole, 0.25 * price.whole
    asked = []

    def measure(state):
        asked.append(price.total(state.kept))
        return exactly(plain / (fixed + 0.75 * asked[-1]))

    found = reach_goal(pruner, Goal(SPEEDUP, 1.6), price, Silent(), plain=plain, measure=measure)
    assert len(asked) > 1
    assert found.speedup.value == pytest.approx(1.6, rel=0.03)
    assert price.total(found.state.kept) == asked[-1]


def test_a_measurement_that_another_program_spoils_is_repeated(pruner, price):
    plain, measured = 1.25 * price.whole, []

    def measure(state):
        measured.append(plain / price.total(state.kept))
        return exactly(0.7 * measured[-1] if len(measured) == 1 else measured[-1])

    found = reach_goal(pruner, Goal(SPEEDUP, 1.6), price, Silent(), plain=plain, measure=measure)
    assert measured[0] == measured[1]
    assert found.speedup.value == pytest.approx(1.6, rel=0.03)
    assert [step["measured"] for step in found.steps if "measured" in step] == measured[1:]


def test_a_speed_that_is_met_is_preferred_to_a_nearer_one_that_is_not(pruner, price):
    speeds = iter([1.44, 1.57, 1.44, 1.57, 1.44])
    found = reach_goal(
        pruner,
        Goal(SPEEDUP, 1.5),
        price,
        Silent(),
        plain=1.25 * price.whole,
        measure=lambda _: exactly(next(speeds)),
    )
    assert found.speedup.value == 1.57 and reaches(found.speedup.value, 1.5)


def test_a_speed_within_the_error_of_its_measurement_is_not_corrected(pruner, price):
    found = reach_goal(
        pruner, Goal(SPEEDUP, 1.5), price, Silent(), plain=1.25 * price.whole, measure=lambda _: SpeedUp(1.3, 1.1, 1.6)
    )
    assert [step["interval"] for step in found.steps if "measured" in step] == [[1.1, 1.6]]


def test_a_correction_goes_no_further_than_the_least_model(pruner, price):
    """This runtime is never faster than the whole model; what is left in the end is what there is."""
    limit = price.speed_limit(plain := 2 * price.whole)
    found = reach_goal(
        pruner, Goal(SPEEDUP, 0.99 * limit), price, Silent(), plain=plain, measure=lambda _: exactly(2.0)
    )
    assert not reaches(found.speedup.value, 0.99 * limit)
    assert found.predicted <= limit
    assert len([step for step in found.steps if "measured" in step]) == 2


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        (Goal(SPEEDUP, 1e3), r"`target_speedup` 1000 is out of reach, .* as fast as its plain export: ask for less"),
        (Goal(FLOPS, 1e-3), r"`target_flops` 0.001 is out of reach, .* left with \d+% of its FLOPs: ask to keep more"),
    ],
)
def test_what_is_out_of_reach_is_told_before_anything_is_cut(pruner, price, goal, said):
    with pytest.raises(UserError, match=said):
        reach_goal(pruner, goal, price, Silent(), plain=price.whole, measure=lambda _: exactly(1.0))
    assert pruner.rounds == 0


def test_widths_are_aligned(model, pixels, price):
    pruner = IterativePruner(model, pixels, None, scored=16, seed=0, watcher=Silent(), align=5)
    found = reach_goal(pruner, Goal(FLOPS, 0.7), price, Silent())
    widths = {name: kept for name, kept in found.state.kept.items() if name.startswith("m")}
    whole = {site.name: site.module.units for site in read_sites(model)}
    assert any(kept < whole[name] for name, kept in widths.items())
    assert all(kept % 5 == 0 or kept == whole[name] for name, kept in widths.items())


def test_of_speeds_that_miss_the_nearest_is_kept_and_told(pruner, price):
    """Whatever is deleted, this runtime gives 1.4, 1.55, 1.3 and so on, for one model always the same."""
    speeds, asked = iter([1.4, 1.55, 1.3, 1.2, 1.45]), {}

    def measure(state):
        total = price.total(state.kept)
        return asked[total] if total in asked else asked.setdefault(total, exactly(next(speeds)))

    found = reach_goal(pruner, Goal(SPEEDUP, 1.7), price, Silent(), plain=1.25 * price.whole, measure=measure)
    assert len(asked) == 5
    assert found.speedup.value == 1.55
    assert not reaches(found.speedup.value, 1.7)
    assert price.total(found.state.kept) == list(asked)[1]


def test_a_speed_that_exact_rewrites_reach_alone_deletes_nothing(pruner, price):
    found = reach_goal(
        pruner, Goal(SPEEDUP, 1.2), price, Silent(), plain=2 * price.whole, measure=lambda _: exactly(2.0)
    )
    assert found.state.plan.deletions == ()
    assert found.speedup.value == 2.0
    assert reaches(found.speedup.value, 1.2)


def test_a_limit_is_kept_to_and_nearly_used_up(pruner, price):
    limit = pruner.held_out_loss(GoalSearch(pruner, price, Silent()).to_price(0.7 * price.whole)).kl
    loose = reach_goal(pruner, Goal(KL, limit), price, Silent())
    assert 0 < loose.held_out_loss.kl <= limit
    assert loose.held_out_loss.kl == pruner.held_out_loss(loose.state).kl
    assert price.total(loose.state.kept) < 0.73 * price.whole
    tight = reach_goal(pruner, Goal(KL, limit / 10), price, Silent())
    assert tight.held_out_loss.kl <= limit / 10
    assert price.total(tight.state.kept) > price.total(loose.state.kept)


def test_a_limit_is_kept_to_behind_the_last_refit_too(pruner, price, monkeypatch):
    """Here the last refit makes every model but the two shallowest worse than any limit."""
    limit = pruner.held_out_loss(GoalSearch(pruner, price, Silent()).to_price(0.7 * price.whole)).kl
    whole, held_out_loss = sum(pruner.start.kept.values()), pruner.held_out_loss
    finished = []

    def finish(state):
        finished.append(replace(state, costs={"finished": 1.0}))
        return finished[-1]

    def stands(state, most=None):
        found = held_out_loss(state)
        deep = sum(state.kept.values()) < 0.9 * whole
        return replace(found, kl=10 * limit) if "finished" in state.costs and deep else found

    monkeypatch.setattr(pruner, "finish", finish)
    monkeypatch.setattr(pruner, "held_out_loss", stands)
    found = reach_goal(pruner, Goal(KL, limit), price, Silent())
    assert len(finished) > 1
    assert found.held_out_loss.kl <= limit
    assert sum(found.state.kept.values()) >= 0.9 * whole


@pytest.mark.parametrize("part", [1, 0.3, 0.1])
def test_cuts_towards_a_limit_do_not_crowd_together(pruner, price, monkeypatch, part):
    limit = part * pruner.held_out_loss(GoalSearch(pruner, price, Silent()).to_price(0.7 * price.whole)).kl
    cut, asked = pruner.cut, [price.whole]
    monkeypatch.setattr(pruner, "cut", lambda state, each, most: asked.append(most) or cut(state, each, most))
    monkeypatch.setattr(pruner, "finish", lambda state: state)
    reach_goal(pruner, Goal(KL, limit), price, Silent())
    assert len(asked) > 1
    gaps = torch.tensor(sorted(asked)).diff()
    assert float(gaps.min()) >= (1 - 1e-5) * goal_search._FINEST * price.whole


def test_a_limit_that_nothing_breaks_leaves_no_sublayer(pruner, price):
    found = reach_goal(pruner, Goal(KL, 1e6), price, Silent())
    assert set(found.state.kept.values()) == {0}


def test_in_the_end_survivors_are_refitted_on_all_images(model, pixels, price, pruner):
    state = GoalSearch(pruner, price, Silent()).to_price(0.5 * price.whole, rounds=1)
    found = pruner.finish(state)
    assert [one.units for one in found.plan.deletions] == [one.units for one in state.plan.deletions]
    expected = Compensator(model, pixels[:-12])(bare(state.plan)).plan
    assert found.plan.to_json() == expected.to_json()
    assert found.plan.to_json() != state.plan.to_json()


def test_a_limit_on_accuracy_needs_labels(model, pixels, price):
    pruner = IterativePruner(model, pixels, None, scored=16, seed=0, watcher=Silent())
    assert pruner.held_out_loss(pruner.start).drop is None
    with pytest.raises(UserError, match="`max_drop` needs labelled images"):
        reach_goal(pruner, Goal(DROP, 1.0), price, Silent())


def test_a_share_of_flops_is_a_goal(pruner, price):
    found = reach_goal(pruner, Goal(FLOPS, 0.9), price, Silent())
    assert price.total(found.state.kept) <= 0.9 * price.whole
    assert found.speedup is None


def test_the_dead_are_named_as_the_model_has_them(model, pruner, price):
    state = GoalSearch(pruner, price, Silent()).to_price(0.5 * price.whole, rounds=1)
    units = {site.name: site.module.units for site in read_sites(model)}
    for deletion in state.plan.deletions:
        assert deletion.total == units[deletion.name]
        assert state.kept[deletion.name] == deletion.total - len(deletion.units)
