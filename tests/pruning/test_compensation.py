import copy

import pytest
import torch

from passes import least_squares
from passes.plan import DeletionPlan
from passes.stream import read_sites
from tests.support.checks import assert_equal, canonical, plan_of, traced
from tests.support.families import images
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.ablation import make_reference
from vitfx.discovery.run import whole_mlps
from vitfx.graph.stages import contribution
from vitfx.graph.verify import rewrite, verify
from vitfx.pruning import compensation
from vitfx.pruning.compensation import Compensator, compensate, divergence, with_means

PIXELS, UNSEEN = images(80).split(64)


def plan_without_constants(graph_module, units):
    return plan_of(graph_module, units, "none")


@pytest.mark.parametrize(
    "family", ["torchvision", "timm-layerscale-average-registers", "hf-dinov2", "hand-written", "timm-parallel"]
)
def test_survivors_make_up_for_the_dead(family):
    graph_module = traced(family).graph_module
    names = {
        kind: [one.name for one in read_sites(graph_module) if one.module.kind == kind] for kind in ("head", "neuron")
    }
    units = {names["head"][0]: [0], names["neuron"][0]: range(0, 40, 2), names["neuron"][1]: range(10)}
    found = compensate(graph_module, plan_without_constants(graph_module, units), PIXELS)
    assert found.kind == "ridge"
    assert found.images + found.held_out == len(PIXELS)
    assert found.kl < found.kl_mean
    assert found.plan.refits
    artifact = rewrite(graph_module, found.plan).graph_module
    assert verify(graph_module, artifact, found.plan, UNSEEN).passed
    mean = with_means(graph_module, DeletionPlan(found.plan.deletions), PIXELS)
    assert divergence(graph_module, found.plan, UNSEEN) < divergence(graph_module, mean, UNSEEN)


@pytest.mark.parametrize("name", ["a1", "m1"])
def test_a_twin_takes_over(name):
    """Two heads or neurons that do the same: without one of them, the other can do all that both did."""
    graph_module = traced("vitfx").graph_module
    module = graph_module.get_submodule(name)
    linears = (module.q, module.k, module.v) if module.kind == "head" else (module.fc1,)
    with torch.no_grad():
        for linear in linears:
            size = linear.out_features // module.units
            linear.weight[:size] = linear.weight[size : 2 * size]
            linear.bias[:size] = linear.bias[size : 2 * size]
    found = compensate(graph_module, plan_without_constants(graph_module, {name: [0]}), PIXELS)
    assert found.refits[0].name == name
    assert found.refits[0].after < 1e-4 * found.refits[0].before
    assert found.kl < 1e-3 * found.kl_mean


@pytest.mark.parametrize(
    ("family", "gone"),
    [
        *(("vitfx", one) for one in ("a1", "m1", "a0 m0", "a2", "m2", "a1 m1 a2", "a2 m2")),
        ("hand-written", "a2"),
        ("hand-written", "a0 a1 a2"),
        *(("timm-parallel-fused", gone) for gone in ("a1", "m1", "a0 m0", "a2", "a1 m1 a2")),
    ],
)
def test_whole_sublayers_are_made_up_for_by_those_around_them(family, gone):
    """Also where the artifact mixes tokens for the last time before the original does, or never."""
    gone = gone.split()
    graph_module = traced(family).graph_module
    sites = {one.name: one.module.units for one in read_sites(graph_module)}
    plan = plan_without_constants(graph_module, {name: range(sites[name]) for name in gone})
    found = Compensator(graph_module, PIXELS)(plan)
    assert {one.name for one in found.refits}.isdisjoint(gone)
    assert verify(graph_module, rewrite(graph_module, found.plan).graph_module, found.plan, UNSEEN).passed
    mean = with_means(graph_module, plan, PIXELS)
    assert divergence(graph_module, found.plan, PIXELS) < divergence(graph_module, mean, PIXELS)


def test_the_survivor_before_a_deleted_sublayer_and_those_behind_are_refitted():
    graph_module = traced("vitfx").graph_module
    found = compensate(graph_module, plan_without_constants(graph_module, {"m1": range(48)}), PIXELS)
    assert [one.name for one in found.refits] == ["a1", "a2", "m2"]


def test_a_kept_original_gives_the_same_again_and_again():
    graph_module = traced("vitfx").graph_module
    plans = [plan_without_constants(graph_module, units) for units in ({"a0": [1], "m1": range(20)}, {"m0": [3]})]
    keeping = Compensator(graph_module, PIXELS, keep=True)
    for plan in (*plans, plans[0]):
        expected, got = Compensator(graph_module, PIXELS)(plan), keeping(plan)
        assert got.refits == expected.refits
        assert got.plan.to_json() == expected.plan.to_json()


def test_old_refits_are_left_out_and_the_model_stays_as_it_is():
    graph_module = traced("vitfx").graph_module
    before = copy.deepcopy(graph_module.state_dict())
    first = compensate(graph_module, plan_without_constants(graph_module, {"m0": range(9)}), PIXELS).plan
    again = compensate(graph_module, first, PIXELS).plan
    assert {one.name for one in again.refits} == {one.name for one in first.refits}
    assert all(torch.equal(value, before[name]) for name, value in graph_module.state_dict().items())


def test_means_are_those_of_the_mean_ablation():
    graph_module = canonical()
    pixels = images(40, torch.float64)
    plan = plan_without_constants(graph_module, {"a0": [1, 3], "m1": range(48), "m2": [5]})
    reference = make_reference(EdgeGraph(graph_module, whole_mlps(graph_module)), pixels, "mean")
    for one in with_means(graph_module, plan, pixels).deletions:
        module = graph_module.get_submodule(one.name)
        assert_equal(one.constant, contribution(module, one.units, reference[one.name]), 1e-12)


def test_constants_that_are_there_stay():
    graph_module = canonical()
    plan = plan_of(graph_module, {"a0": [1], "m1": [3]}, "position")
    assert with_means(graph_module, plan, PIXELS) is plan
    found = compensate(graph_module, plan, PIXELS.double(), "mean")
    assert (found.kind, found.kl, found.refits) == ("mean", None, ())
    assert found.plan.to_json() == plan.to_json()


def test_none_leaves_nothing_behind():
    graph_module = canonical()
    plan = plan_of(graph_module, {"a0": [1], "m1": [3]}, "mean")
    found = compensate(graph_module, plan, PIXELS, "none")
    assert [one.constant for one in found.plan.deletions] == [None, None]
    assert [one.units for one in found.plan.deletions] == [(1,), (3,)]


def test_the_mean_stays_where_refits_are_no_better(monkeypatch):
    graph_module = traced("vitfx").graph_module
    figures = iter([0.25, 0.25])
    monkeypatch.setattr(compensation, "divergence", lambda *_: next(figures))
    found = compensate(graph_module, plan_without_constants(graph_module, {"m0": range(9)}), PIXELS)
    assert (found.kind, found.kl, found.kl_mean) == ("mean", 0.25, 0.25)
    assert found.plan.refits == ()
    assert found.plan.deletions[0].constant is not None


def test_nothing_deleted_nothing_to_make_up_for():
    found = compensate(traced("vitfx").graph_module, DeletionPlan(), PIXELS)
    assert (found.plan, found.kind, found.refits) == (DeletionPlan(), "mean", ())


def test_two_images_give_the_mean():
    graph_module = traced("vitfx").graph_module
    found = compensate(graph_module, plan_without_constants(graph_module, {"m0": range(30)}), PIXELS[:2])
    assert (found.kind, found.images, found.kl, found.plan.refits) == ("mean", 2, None, ())


@pytest.mark.parametrize("count", [3, 5])
def test_few_images_are_enough_to_run(count):
    graph_module = traced("vitfx").graph_module
    plan = plan_without_constants(graph_module, {"a0": [1], "m0": range(30)})
    found = compensate(graph_module, plan, images(count + 1)[:count])
    assert found.held_out == 1
    assert verify(graph_module, rewrite(graph_module, found.plan).graph_module, found.plan, UNSEEN).passed


def test_a_fit_without_a_map_goes_into_the_constant(monkeypatch):
    graph_module = traced("vitfx").graph_module
    monkeypatch.setattr(least_squares, "SHRINKAGES", ())
    plan = plan_without_constants(graph_module, {"m0": range(30)})
    found = Compensator(graph_module, PIXELS)(plan)
    assert found.plan.refits == ()
    assert [one.name for one in found.refits] == ["m0", "a1", "m1", "a2", "m2"]
    # What is missing behind the first deletion is what its dead put out.
    (mean,) = with_means(graph_module, plan, PIXELS).deletions
    assert_equal(found.plan.deletions[0].constant, mean.constant, 1e-5)


def test_a_constant_that_the_plan_has_stays_in_a_fit_without_a_map(monkeypatch):
    """The fit corrects it: together they are the mean again, and what is behind is fitted to that."""
    graph_module = traced("vitfx").graph_module
    monkeypatch.setattr(least_squares, "SHRINKAGES", ())
    bare = plan_without_constants(graph_module, {"m0": range(30)})
    found = Compensator(graph_module, PIXELS)(plan_of(graph_module, {"m0": range(30)}, "mean"))
    expected = Compensator(graph_module, PIXELS)(bare)
    assert_equal(found.plan.deletions[0].constant, expected.plan.deletions[0].constant, 1e-4)
    for with_constant, without in zip(found.refits[1:], expected.refits[1:], strict=True):
        assert with_constant.before == pytest.approx(without.before, rel=1e-3)
    assert found.refits[0].before > 2 * found.refits[0].after
    assert found.refits[1].before < found.refits[0].before / 2


def test_an_unknown_kind():
    with pytest.raises(ValueError, match="compensation 'median' is not one of none, mean, ridge"):
        compensate(canonical(), DeletionPlan(), PIXELS, "median")
