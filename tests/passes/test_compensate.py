"""Refits carried out on the graph, against the oracle, on every family."""

from dataclasses import replace

import pytest
import torch

from passes.base import PassError, run_passes
from passes.compensate import Compensate
from passes.cost import measure_cost, predict_cost
from passes.delete_heads import DeleteHeads
from passes.delete_mlp_paths import DeleteMlpPaths
from passes.plan import DeletionPlan, Refit
from passes.stream import read_sites
from tests.support.checks import assert_equal, assert_trainable, canonical, check, plan_of, tokens
from tests.support.families import FAMILIES, images
from vitfx.graph.verify import ablated_logits, rewrite, verify

PIXELS = images(3, torch.float64)


def with_refits(graph_module, plan, names, seed=0):
    """The plan with random refits of these sublayers."""
    generator = torch.Generator().manual_seed(seed)
    gone = {one.name: len(one.units) for one in plan.deletions}
    refits = []
    for site in read_sites(graph_module):
        if site.name in names:
            width, kept = site.module.out.weight.shape[0], site.module.units - gone.get(site.name, 0)
            weight = torch.randn(width, kept * site.module.channels, generator=generator, dtype=torch.float64) / 4
            refits.append(Refit(site.name, weight, torch.randn(width, generator=generator, dtype=torch.float64)))
    return replace(plan, refits=tuple(refits))


def test_projections_become_the_plans():
    graph_module = canonical()
    plan = with_refits(graph_module, plan_of(graph_module, {"a0": [1], "m0": range(7)}), ("a0", "m0", "m2"))
    expected = ablated_logits(graph_module, plan, PIXELS)
    cut = run_passes(graph_module, [DeleteHeads(plan), DeleteMlpPaths(plan)]).graph_module
    old = {site.name: site.module.out.weight.shape for site in read_sites(cut)}
    found = run_passes(cut, [Compensate(plan)])
    again = run_passes(found.graph_module, [Compensate(plan)])
    assert (found.changed, again.changed) == (True, False)
    assert old == {site.name: site.module.out.weight.shape for site in read_sites(found.graph_module)}
    for one in (found, again):
        assert_equal(one.graph_module(PIXELS), expected, 1e-12)
    assert_trainable(found.graph_module, PIXELS)
    unchanged = run_passes(cut, [Compensate(replace(plan, refits=()))])
    assert not unchanged.changed


def test_another_plans_refit_takes_the_place_of_the_first():
    graph_module = canonical()
    first, second = (with_refits(graph_module, DeletionPlan(), ("m0",), seed) for seed in (0, 1))
    once = run_passes(graph_module, [Compensate(first)]).graph_module
    twice = run_passes(once, [Compensate(second)])
    assert twice.changed
    assert torch.equal(twice.graph_module.m0.out.weight, second.refits[0].weight)
    shifts = first.refits[0].shift + second.refits[0].shift
    assert_equal(twice.graph_module.m0.out.bias, graph_module.m0.out.bias + shifts, 1e-12)


def test_without_refits_nothing_changes():
    graph_module = canonical()
    check(Compensate(DeletionPlan()), graph_module, PIXELS, graph_module(PIXELS).detach(), changes=False, nodes=0)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("constants", ["none", "mean", "position"])
def test_the_artifact_is_the_oracle_and_costs_what_was_predicted(family, constants):
    graph_module = canonical(family)
    sites = read_sites(graph_module)
    heads = next(site for site in sites if site.module.kind == "head")
    neurons = [site for site in sites if site.module.kind == "neuron"]
    units = {heads.name: [0], neurons[0].name: range(5), neurons[1].name: range(neurons[1].module.units)}
    plan = plan_of(graph_module, units, constants)
    plan = with_refits(graph_module, plan, (heads.name, neurons[0].name, neurons[-1].name))
    artifact = rewrite(graph_module, plan).graph_module
    assert_equal(artifact(PIXELS), ablated_logits(graph_module, plan, PIXELS), 1e-9)
    before = measure_cost(graph_module, PIXELS.shape[1:])
    assert measure_cost(artifact, PIXELS.shape[1:]) == predict_cost(graph_module, plan, before, tokens(graph_module))
    assert verify(graph_module, artifact, plan, PIXELS).passed


def test_the_oracle_works_without_the_pass():
    """It is another way to the same numbers: the weight's change, on top of the whole sublayer with zeroed units."""
    graph_module = canonical()
    plan = with_refits(graph_module, plan_of(graph_module, {"m1": [3]}), ("m1",))
    (refit,) = plan.refits
    other = replace(plan, refits=(replace(refit, shift=1.1 * refit.shift),))
    artifact = rewrite(graph_module, plan).graph_module
    difference = (artifact(PIXELS) - ablated_logits(graph_module, other, PIXELS)).abs().max()
    assert difference > 1e-6


def test_it_comes_behind_the_deletions():
    graph_module = canonical()
    plan = with_refits(graph_module, plan_of(graph_module, {"m1": [3]}), ("m1",))
    with pytest.raises(PassError, match="carry out the plan's deletions first"):
        run_passes(graph_module, [Compensate(plan)])


def test_a_refit_of_what_is_not_there():
    refit = Refit("m9", torch.zeros(32, 48), torch.zeros(32))
    with pytest.raises(PassError, match="m9, which the graph does not have"):
        run_passes(canonical(), [Compensate(DeletionPlan((), (refit,)))])


@pytest.mark.parametrize("family", ["vitfx", "hand-written"])
@pytest.mark.parametrize("units", [{}, {"a0": [1], "m1": range(7)}], ids=["whole", "deleted"])
@pytest.mark.parametrize("constants", ["none", "mean", "position"])
def test_a_refit_may_keep_the_weight_and_shift_the_bias(family, units, constants):
    """Projections of the one family have a bias, those of the other have none."""
    graph_module = canonical(family)
    plan = with_refits(graph_module, plan_of(graph_module, units, constants), ("a0", "m1"))
    cut = run_passes(graph_module, [DeleteHeads(plan), DeleteMlpPaths(plan)]).graph_module
    sites = {site.name: site.module.out for site in read_sites(cut)}
    plan = replace(plan, refits=tuple(replace(one, weight=sites[one.name].weight.detach()) for one in plan.refits))
    expected = ablated_logits(graph_module, plan, PIXELS)
    check(Compensate(plan), cut, PIXELS, expected, changes=True, nodes=0)
    assert verify(graph_module, rewrite(graph_module, plan).graph_module, plan, PIXELS).passed
    without = ablated_logits(graph_module, replace(plan, refits=()), PIXELS)
    assert (expected - without).abs().max() > 1e-3
