import pytest
import torch

from passes.cost import measure_cost, unit_flops
from tests.support.checks import canonical
from vitfx.circuits.circuit import ATTRIBUTED, Circuit
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.circuits.liveness import make_plan
from vitfx.discovery.methods.attribution import random_scores
from vitfx.discovery.methods.rank import below, least
from vitfx.graph.verify import rewrite

PATHS = {name: [range(0, 40), range(40, 48)] for name in ("m0", "m1", "m2")}
TOKENS = 17


def flops_of(graph_module):
    return measure_cost(graph_module, torch.Size((3, 32, 32))).flops


def test_below_a_threshold():
    graph = EdgeGraph(canonical(), PATHS)
    scores = random_scores(graph, 0)
    decisions = below(graph, scores, 0.4)
    assert [one.score for one in decisions] == sorted(scores.values())
    assert all(one.kept == (one.score >= 0.4) and one.kl is None for one in decisions)
    assert {one.basis for one in decisions} == {ATTRIBUTED}


def test_what_scores_just_the_threshold_stays():
    graph = EdgeGraph(canonical(), PATHS)
    scores = random_scores(graph, 0)
    tau = sorted(scores.values())[4]
    assert sum(not decision.kept for decision in below(graph, scores, tau)) == 4


def test_a_share_of_the_flops_goes_by_what_an_edge_scores_for_its_own():
    """Of equal scores, the large path goes before the small one, and a head, which reads all tokens' keys, between."""
    graph = EdgeGraph(canonical(), PATHS)
    decisions = least(graph, dict.fromkeys((edge.name for edge in graph.edges()), 1.0), 0.9, TOKENS, 1)
    modules = {stage.name: stage.sublayer for stage in graph.stages}
    writers = [decision.edge.writer for decision in decisions[:-1]]
    costs = [len(writer.units) * unit_flops(modules[writer.sublayer], TOKENS) for writer in writers]
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs)) == 3


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35])
def test_a_share_of_the_flops(share):
    graph_module = canonical()
    graph = EdgeGraph(graph_module, PATHS)
    scores, flops = random_scores(graph, 1), flops_of(graph_module)
    decisions = least(graph, scores, share, TOKENS, flops)
    assert decisions[-1].edge.writer.name == "embed"
    assert decisions[-1].kept
    gone = [one.edge.writer for one in decisions if not one.kept]

    def saved(writers):
        modules = {stage.name: stage.sublayer for stage in graph.stages}
        return sum(len(one.units) * unit_flops(modules[one.sublayer], TOKENS) for one in writers) / flops

    assert saved(gone) >= share
    assert saved(gone[:-1]) < share or not gone


def test_the_share_is_what_the_artifact_has_less():
    graph_module = canonical()
    graph = EdgeGraph(graph_module, PATHS)
    decisions = least(graph, random_scores(graph, 1), 0.3, TOKENS, flops_of(graph_module))
    plan = make_plan(Circuit(tuple(decisions), 0.0), graph, None)
    left = flops_of(rewrite(graph_module, plan).graph_module) / flops_of(graph_module)
    assert 0.6 < left <= 0.7


def test_a_share_of_the_edges():
    graph = EdgeGraph(canonical(), PATHS, "qkv")
    decisions = least(graph, random_scores(graph, 2), 0.25, TOKENS, 1)
    gone = [one.score for one in decisions if not one.kept]
    assert len(gone) == round(0.25 * len(decisions))
    assert max(gone) <= min(one.score for one in decisions if one.kept)
