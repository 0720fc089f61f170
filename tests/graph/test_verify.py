import copy
import dataclasses

import pytest
import torch

from passes.cost import Cost, predict_cost
from passes.merge_tokens import MergeBySchedule
from passes.token_schedule import TokenCounts, TokenSchedule
from tests.support.checks import assert_equal, canonical, plan_of, traced
from tests.support.families import images
from vitfx.circuits.circuit import Circuit, Decision, Edge
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.circuits.liveness import make_plan
from vitfx.discovery.basis.ablation import make_reference
from vitfx.graph.verify import Verification, VerificationError, ablated_logits, rewrite, rewritten, verify

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


COST = Cost(parameters=9, flops=99, heads=1, neurons=2, sublayers=2)
PASSED = Verification(1e-5, 0.99e-4, 0.99e-9, 4, COST, COST, COST)


@pytest.mark.parametrize(
    "worse",
    [
        {"relative": 1.01e-4},
        {"relative": float("nan")},
        {"float64": 1.01e-9},
        {"float64": float("nan")},
        *({"measured": dataclasses.replace(COST, **{field.name: 0})} for field in dataclasses.fields(Cost)),
    ],
    ids=str,
)
def test_a_proof_passes_by_all_of_its_figures(worse):
    assert PASSED.passed
    assert not dataclasses.replace(PASSED, **worse).passed


@pytest.mark.parametrize("error", [3e-4, -3e-4, float("nan")])
@pytest.mark.parametrize("image", [0, 3])
def test_an_artifact_whose_logits_are_off_in_one_image_fails(graph_module, plan, image, error):
    """By more than rounding, on whichever side."""
    wrong = rewrite(graph_module, plan).graph_module
    greatest = float(ablated_logits(graph_module, plan, images(4)).abs().max())

    def shift(module, args, logits):
        logits[image : image + 1] += error * greatest
        return logits

    wrong.register_forward_hook(shift)
    with pytest.raises(
        VerificationError, match=r"differ from the ablated model's by (3\.0e-04|nan) .* than 1e-04; they"
    ):
        verify(graph_module, wrong, plan, images(4))


@pytest.mark.parametrize("factor", [1 + 1e-7, 1 - 1e-7])
def test_a_rewrite_that_is_off_by_less_than_rounding_fails_in_float64(graph_module, plan, factor, monkeypatch):
    artifact = rewrite(graph_module, plan).graph_module

    def inexact(*arguments, **options):
        result = rewrite(*arguments, **options)
        with torch.no_grad():
            result.graph_module.a1.out.weight.mul_(factor)
        return result

    monkeypatch.setattr("vitfx.graph.verify.rewrite", inexact)
    with pytest.raises(VerificationError, match="of their greatest, more than 1e-09"):
        verify(graph_module, artifact, plan, images(4))


@pytest.mark.parametrize("figure", [field.name for field in dataclasses.fields(Cost)])
def test_a_cost_that_is_not_as_predicted_fails(graph_module, plan, figure, monkeypatch):
    def off(*arguments):
        predicted = predict_cost(*arguments)
        return dataclasses.replace(predicted, **{figure: getattr(predicted, figure) + 1})

    monkeypatch.setattr("vitfx.graph.verify.predict_cost", off)
    with pytest.raises(VerificationError, match=f"the plan predicts .*{figure}="):
        verify(graph_module, rewrite(graph_module, plan).graph_module, plan, images(4))


def test_a_stream_that_is_only_smaller_is_named(graph_module, plan):
    wrong = rewrite(graph_module, plan).graph_module
    with torch.no_grad():
        wrong.a0.out.bias[..., 5] -= 0.5
    with pytest.raises(VerificationError, match="part at the stream that m0 reads"):
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
