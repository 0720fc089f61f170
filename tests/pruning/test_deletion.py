"""The deletion passes, each against the ablated model, by random plans on every family."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.base import PassError, run_passes
from passes.cost import measure_cost, predict_cost
from passes.delete_heads import DeleteHeads
from passes.delete_mlp_paths import DeleteMlpPaths
from passes.dialect import AddConstant, Attention
from passes.fold_constants import FoldConstants
from passes.plan import DeletionPlan, SublayerDeletion
from passes.stream import module_of, read_sites
from tests.support.checks import assert_equal, assert_trainable, canonical, check, plan_of, tokens
from tests.support.families import FAMILIES, images
from tests.support.slow import REPRESENTATIVE, slow_but
from vitfx.graph.verify import ablated_logits, rewrite

PIXELS = images(3, torch.float64)


@pytest.mark.parametrize("constants", ["none", "mean", "position"])
def test_delete_heads(constants):
    graph_module = canonical()
    plan = plan_of(graph_module, {"a0": [1, 3], "a2": [0]}, constants)
    expected = ablated_logits(graph_module, plan, PIXELS)
    # Each deletion adds the node of its constant, and nothing else.
    nodes = 0 if constants == "none" else 2
    small = check(DeleteHeads(plan), graph_module, PIXELS, expected, changes=True, nodes=nodes)
    assert [site.module.units for site in read_sites(small) if site.module.kind == "head"] == [2, 4, 3]


def test_heads_whose_values_are_wider_than_their_keys():
    graph_module = canonical()
    generator = torch.Generator().manual_seed(0)
    wide = Attention(32, 4, 6, 10, 6**-0.5, out_bias=(32,)).double()
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 6)
    graph_module.set_submodule("a1", wide)
    plan = plan_of(graph_module, {"a1": [0, 2]})
    expected = ablated_logits(graph_module, plan, PIXELS)
    small = check(DeleteHeads(plan), graph_module, PIXELS, expected, changes=True, nodes=1)
    assert (small.a1.k.out_features, small.a1.v.out_features, small.a1.out.weight.shape[1]) == (12, 20, 20)


def test_delete_mlp_paths():
    graph_module = canonical()
    plan = plan_of(graph_module, {"m0": range(0, 48, 2), "m1": [5]})
    expected = ablated_logits(graph_module, plan, PIXELS)
    small = check(DeleteMlpPaths(plan), graph_module, PIXELS, expected, changes=True, nodes=2)
    assert [site.module.units for site in read_sites(small) if site.module.kind == "neuron"] == [24, 47, 48]


@pytest.mark.parametrize(("kind", "name", "units"), [(DeleteHeads, "a1", 4), (DeleteMlpPaths, "m1", 48)])
def test_a_whole_sublayer_goes_with_its_norm(kind, name, units):
    graph_module = canonical()
    plan = plan_of(graph_module, {name: range(units)})
    expected = ablated_logits(graph_module, plan, PIXELS)
    # norm, sublayer and add go, the constant comes.
    small = check(kind(plan), graph_module, PIXELS, expected, changes=True, nodes=-2)
    assert not any(key.startswith((f"{name}.", f"{name}_norm")) for key in small.state_dict())


def test_what_is_new_is_where_the_model_is():
    """On a GPU a constant of the plan, which is on the CPU, meets a bias that is not; "meta" stands for any device."""
    graph_module = canonical()
    plan = plan_of(graph_module, {"a0": [1], "m1": range(7)})
    passes = [DeleteHeads(plan), DeleteMlpPaths(plan), FoldConstants()]
    with_constants = run_passes(graph_module.to("meta"), passes[:2]).graph_module
    folded = run_passes(with_constants, passes[2:]).graph_module
    for found in (with_constants, folded):
        assert {one.device.type for one in found.parameters()} == {"meta"}
        assert found(PIXELS.to("meta")).device.type == "meta"


def test_fold_constants_leaves_the_values_and_no_constant():
    graph_module = canonical()
    plan = plan_of(graph_module, {"a0": range(4), "m0": range(48), "a1": [0], "m2": range(48)})
    cut = run_passes(graph_module, [DeleteHeads(plan), DeleteMlpPaths(plan)]).graph_module
    folded = check(FoldConstants(), cut, PIXELS, cut(PIXELS).detach(), changes=True, nodes=-4)
    constants = [node.name for node in folded.graph.nodes if isinstance(module_of(folded, node), AddConstant)]
    assert constants == ["positions"]


def test_a_constant_behind_what_is_not_recognised_stays_a_node():
    """This family's stream begins with an embedding that ends in a concatenation: no bias is there to fold into."""
    graph_module = canonical("timm-registers-after-positions")
    plan = plan_of(graph_module, {"a0": range(4)})
    result = rewrite(graph_module, plan)
    assert_equal(result.graph_module(PIXELS), ablated_logits(graph_module, plan, PIXELS), 1e-9)
    assert [node.name for node in result.graph_module.graph.nodes][:3] == ["pixels", "embed", "a0_constant"]


def test_a_projection_without_bias_gets_one():
    graph_module = canonical("hand-written")
    plan = plan_of(graph_module, {"a1": [0]})
    small = rewrite(graph_module, plan).graph_module
    assert_equal(small(PIXELS), ablated_logits(graph_module, plan, PIXELS), 1e-9)
    assert small.a1.out.bias.shape == (32,)
    assert not any(isinstance(module, AddConstant) for module in small.modules())


@pytest.mark.parametrize("make_pass", [DeleteHeads, DeleteMlpPaths, lambda plan: FoldConstants()])
def test_an_empty_plan_changes_nothing(make_pass):
    graph_module = canonical()
    check(make_pass(DeletionPlan()), graph_module, PIXELS, graph_module(PIXELS).detach(), changes=False, nodes=0)


@pytest.mark.parametrize(
    ("deletion", "reason"),
    [
        (SublayerDeletion("a0", "head", (0,), 6), "with 6 heads, which has 4"),
        (SublayerDeletion("a9", "head", (0,), 4), "which is not there"),
    ],
)
def test_a_plan_for_another_graph_is_refused_by_the_pass(deletion, reason):
    with pytest.raises(PassError, match=f"delete_heads: .*{reason}"):
        run_passes(canonical(), [DeleteHeads(DeletionPlan((deletion,)))])


def _units(graph_module, draw):
    chosen = {}
    for site in read_sites(graph_module):
        if draw(st.booleans()):
            everything = draw(st.integers(0, 3)) == 0
            every = range(site.module.units)
            chosen[site.name] = list(every) if everything else sorted(draw(st.sets(st.sampled_from(every))))
    return chosen


@pytest.mark.parametrize("name", slow_but(REPRESENTATIVE, FAMILIES))
@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_plans_on_every_family(name, data):
    """Deleted equals ablated, parameters and FLOPs fall as predicted, nothing dead is left, it still trains."""
    graph_module = canonical(name)
    constants = data.draw(st.sampled_from(["none", "mean", "position"]))
    plan = plan_of(graph_module, _units(graph_module, data.draw), constants)
    small = rewrite(graph_module, plan).graph_module
    pixels = PIXELS[:2]
    assert_equal(small(pixels), ablated_logits(graph_module, plan, pixels), 1e-9)
    image = pixels.shape[1:]
    predicted = predict_cost(graph_module, plan, measure_cost(graph_module, image), tokens(graph_module))
    assert measure_cost(small, image) == predicted
    assert_nothing_dead(small)
    assert_trainable(small, pixels)
    assert not rewrite(small, DeletionPlan()).changed


def assert_nothing_dead(graph_module):
    """Every module is called, every node is read, no row or column of a weight is zero."""
    called = {str(node.target) for node in graph_module.graph.nodes if node.op == "call_module"}
    assert called == {name for name, _ in graph_module.named_children()}
    assert all(node.users or node.op == "output" for node in graph_module.graph.nodes)
    for name, parameter in graph_module.named_parameters():
        if parameter.dim() == 2 and name.startswith(("a", "m")) and "bias" not in name:
            assert parameter.any(dim=0).all(), name
            assert parameter.any(dim=1).all(), name


def test_pruning_twice_equals_pruning_once():
    graph_module = canonical()
    first = plan_of(graph_module, {"a0": [1], "m1": range(10)}, "position")
    once = rewrite(graph_module, first).graph_module
    second = plan_of(once, {"a0": [0], "m1": range(20), "m0": range(48)}, "mean", seed=1)
    twice = rewrite(once, second).graph_module
    assert_equal(twice(PIXELS), ablated_logits(once, second, PIXELS), 1e-9)
    assert [site.module.units for site in read_sites(twice)] == [2, 4, 18, 4, 48]


def test_weights_outside_the_plan_are_left_as_they_are():
    graph_module = canonical()
    plan = plan_of(graph_module, {"a1": [2]}, "none")
    small = rewrite(graph_module, plan).graph_module
    before = graph_module.state_dict()
    for name, value in small.state_dict().items():
        if not name.startswith("a1."):
            assert torch.equal(value, before[name]), name
    assert torch.equal(small.a1.q.weight, before["a1.q.weight"][[i for i in range(32) if i // 8 != 2]])
    assert torch.equal(small.a1.out.bias, before["a1.out.bias"])


def test_the_oracle_is_not_fooled_by_a_doubled_result():
    graph_module = canonical()
    plan = plan_of(graph_module, {"a1": [2]})
    small = copy.deepcopy(rewrite(graph_module, plan).graph_module)
    with torch.no_grad():
        small.a1.out.weight.mul_(2)
    with pytest.raises(AssertionError, match="off by"):
        assert_equal(small(PIXELS), ablated_logits(graph_module, plan, PIXELS), 1e-9)
