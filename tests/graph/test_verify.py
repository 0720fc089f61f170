import copy

import pytest
import torch

from passes.merge_tokens import MergeBySchedule
from passes.token_schedule import TokenCounts, TokenSchedule
from tests.support.checks import assert_equal, canonical, plan_of, traced
from tests.support.families import images
from vitfx.circuits.circuit import Circuit, Decision, Edge
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.circuits.liveness import make_plan
from vitfx.discovery.basis.ablation import make_reference
from vitfx.graph.verify import VerificationError, ablated_logits, rewrite, rewritten, verify

PATHS = {name: [range(0, 48, 2), range(1, 48, 2)] for name in ("m0", "m1", "m2")}


@pytest.fixture(scope="module")
def graph_module():
    return traced("vitfx").graph_module


@pytest.fixture(scope="module")
def plan(graph_module):
    return plan_of(graph_module, {"a0": [1, 3], "m1": range(48), "m2": range(5)}, "position")


def test_a_right_artifact_passes_with_its_figures(graph_module, plan):
    found = verify(graph_module, rewrite(graph_module, plan).graph_module, plan, images(9))
    assert found.passed
    assert found.images == 9
    assert 0 < found.float64 < 1e-12 < found.relative < 1e-5
    assert found.predicted == found.measured
    assert found.before.heads - found.measured.heads == 2
    assert found.to_json()["passed"] is True


@pytest.mark.parametrize("tokens", ["", "0:2,2:3"])
def test_what_is_only_looked_at_shares_the_weights_that_the_plan_leaves(graph_module, tokens):
    plan = plan_of(graph_module, {"a0": [1, 3], "m1": range(48), "m2": range(5)}, "mean")
    merging = MergeBySchedule(TokenSchedule.parse(tokens, TokenCounts(3, 17, 1)), images(2)) if tokens else None
    before = {name: value.clone() for name, value in graph_module.state_dict().items()}
    pruned, copied = rewritten(graph_module, plan, merging), rewrite(graph_module, plan, merging).graph_module
    assert torch.equal(pruned(images(3)), copied(images(3)))
    own = {id(tensor) for tensor in graph_module.parameters()}
    shared = {name for name, tensor in pruned.named_parameters() if id(tensor) in own}
    assert {"a1.q.weight", "m0.out.weight", "a2.out.bias"} <= shared
    assert not {"a0.q.weight", "a0.out.bias", "m2.out.weight"} & shared
    assert not own & {id(tensor) for tensor in copied.parameters()}
    assert all(torch.equal(value, before[name]) for name, value in graph_module.state_dict().items())


@pytest.mark.parametrize(
    ("name", "where"),
    [("a0.out.bias", "m0"), ("a1.v.weight", "a2"), ("a2.q.weight", "m2"), ("head", "classifier head")],
)
def test_a_wrong_artifact_fails_and_the_place_is_named(graph_module, plan, name, where):
    wrong = rewrite(graph_module, plan).graph_module
    parameters = dict(wrong.named_parameters())
    broken = next(value for key, value in parameters.items() if key.startswith(name))
    with torch.no_grad():
        broken.mul_(1.5).add_(0.01)
    with pytest.raises(VerificationError, match=f"part at .*{where}"):
        verify(graph_module, wrong, plan, images(4))


def test_an_artifact_that_is_not_smaller_fails(graph_module, plan):
    with pytest.raises(VerificationError, match="the plan predicts"):
        verify(graph_module, copy.deepcopy(graph_module), plan, images(4))


@pytest.mark.parametrize("ablation", ["zero", "mean", "position-mean"])
def test_three_ways_to_ablate_agree(ablation):
    """The edge graph (replaces inner channels), the plan's oracle (adds constants) and the artifact (has less)."""
    graph_module = canonical()
    graph = EdgeGraph(graph_module, PATHS)
    pixels, corrupted = images(12, torch.float64).split(6)
    reference = make_reference(graph, corrupted, ablation)
    removed = [one for one in graph.writers if one.name in ("a0.h1", "a1.h0", "m0.p1", "m2.p0", "m2.p1")]
    plan = make_plan(_circuit(graph.writers, removed), graph, None if ablation == "zero" else reference)
    with torch.no_grad():
        expected = graph.run(pixels, [Edge(one) for one in removed], reference)
    assert_equal(ablated_logits(graph_module, plan, pixels), expected, 1e-10)
    assert_equal(rewrite(graph_module, plan).graph_module(pixels), expected, 1e-10)


def test_an_empty_circuit_removal_gives_an_empty_plan():
    graph = EdgeGraph(canonical(), PATHS)
    assert make_plan(_circuit(graph.writers, []), graph, None).deletions == ()


def _circuit(writers, removed):
    return Circuit(tuple(Decision(Edge(one), one not in removed, 0.0, 0.0) for one in writers), 0.0, {"tau": 9})
