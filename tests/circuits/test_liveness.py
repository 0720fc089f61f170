"""What is dead: no kept way from the image through it to the logits, and its deletion leaves the circuit's logits."""

import pytest
import torch

from passes.base import run_passes
from passes.delete_mlp_paths import DeleteMlpPaths
from tests.support.checks import assert_equal, canonical, plan_of, traced
from tests.support.families import images
from vitfx.circuits.circuit import Circuit, Decision
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.circuits.liveness import dead_writers, make_plan
from vitfx.discovery.basis.ablation import make_reference
from vitfx.graph.verify import rewrite
from vitfx.support.errors import UserError

PATHS = {name: [range(0, 48, 2), range(1, 48, 2)] for name in ("m0", "m1", "m2")}


def circuit_of(graph, removes):
    """The circuit without the edges of which `removes` (writer's name, reader's name) is true."""
    decisions = tuple(
        Decision(edge, not removes(edge.writer.name, edge.reader.name), 0.0, 0.0) for edge in graph.edges()
    )
    return Circuit(decisions, 0.0, {"tau": 9})


def dead(granularity, removes, ablation="mean"):
    graph = EdgeGraph(canonical(), PATHS, granularity)
    reference = None if ablation == "zero" else make_reference(graph, images(4, torch.float64), ablation)
    return [one.name for one in dead_writers(circuit_of(graph, removes), graph, reference)]


@pytest.mark.parametrize("granularity", ["block", "head", "edge", "qkv"])
def test_nothing_removed_nothing_dead(granularity):
    assert dead(granularity, lambda writer, reader: False) == []


@pytest.mark.parametrize("granularity", ["block", "head", "edge", "qkv"])
def test_a_model_that_sees_nothing_is_refused(granularity):
    with pytest.raises(UserError, match=r"τ = 9 nothing of the image.*smaller `tau`"):
        dead(granularity, lambda writer, reader: writer == "embed")


def test_on_the_head_graph_a_removed_edge_is_a_dead_writer():
    assert dead("head", lambda writer, reader: writer in ("a1.h2", "m0.p1")) == ["m0.p1", "a1.h2"]


@pytest.mark.parametrize("granularity", ["edge", "qkv"])
def test_a_writer_nobody_reads_is_dead(granularity):
    assert dead(granularity, lambda writer, reader: writer == "a1.h2") == ["a1.h2"]
    assert dead(granularity, lambda writer, reader: writer == "a1.h2" and reader != "logits") == []


def test_death_goes_backwards_through_the_dead():
    """m1.p0 is read by a2.h0 alone, and a2.h0 by nobody."""
    gone = dead("qkv", lambda w, r: w == "a2.h0" or (w == "m1.p0" and not r.startswith("a2.h0")))
    assert gone == ["m1.p0", "a2.h0"]


def test_death_goes_forwards_from_what_sees_nothing():
    """a0.h1 sees nothing of the image; all that m0 reads is a0.h1: its paths are constants too."""
    gone = dead("edge", lambda w, r: r == "a0.h1" or (r == "m0" and w != "a0.h1"))
    assert gone == ["a0.h1", "m0.p0", "m0.p1"]


def test_a_head_without_values_is_a_constant_where_they_are_the_same_for_every_token():
    def without_values(writer, reader):
        return reader == "a1.h3.v"

    assert dead("qkv", without_values, "zero") == ["a1.h3"]
    # The embedding's mean keeps positions apart: the pattern over them still tells of the image.
    assert dead("qkv", without_values, "mean") == []
    assert dead("qkv", lambda w, r: r in ("a1.h3.q", "a1.h3.k")) == []
    assert dead("qkv", lambda w, r: r.startswith("a1.h3")) == ["a1.h3"]


def test_a_head_that_sees_the_image_by_its_queries_alone_is_dead_where_keys_and_values_are_the_same():
    assert dead("qkv", lambda w, r: r in ("a1.h3.k", "a1.h3.v"), "zero") == ["a1.h3"]


@pytest.mark.parametrize("folded", [True, False], ids=["bias", "constant"])
def test_a_bias_or_constant_that_differs_by_token_keeps_the_pattern_alive(folded):
    """Without an image's part and any reference values still differ from token to token: the pattern counts."""
    graph_module = canonical()
    plan = plan_of(graph_module, {"m0": range(48)}, "position")
    changed = rewrite(graph_module, plan) if folded else run_passes(graph_module, [DeleteMlpPaths(plan)])
    graph = EdgeGraph(changed.graph_module, {name: PATHS[name] for name in ("m1", "m2")}, "qkv")
    circuit = circuit_of(graph, lambda w, r: r == "a1.h3.v")
    assert dead_writers(circuit, graph, None) == ()
    pixels = images(2, torch.float64)
    without = graph.run(pixels, circuit.removed, make_reference(graph, pixels, "zero"))
    assert not torch.allclose(without, changed.graph_module(pixels))


def test_constants_are_added_up_in_float64():
    graph_module = traced("vitfx").graph_module
    graph = EdgeGraph(graph_module, PATHS)
    reference = make_reference(graph, images(4), "mean")
    (deletion,) = make_plan(circuit_of(graph, lambda w, r: w == "m1.p0"), graph, reference).deletions
    weight, units = graph_module.m1.out.weight.double(), list(range(0, 48, 2))
    assert torch.equal(deletion.constant, reference["m1"][units] @ weight[:, units].T)


@pytest.mark.parametrize("family", ["vitfx", "timm-parallel"])
@pytest.mark.parametrize("ablation", ["zero", "mean", "position-mean"])
def test_where_only_dead_writers_lose_edges_the_artifact_is_the_circuit(ablation, family):
    """Writers without any reader: the circuit as it is, run edge by edge, and the model without them."""
    graph_module = canonical(family)
    neurons = graph_module.m0.units
    graph = EdgeGraph(graph_module, {name: [range(0, neurons, 2), range(1, neurons, 2)] for name in PATHS}, "qkv")
    pixels, corrupted = images(12, torch.float64).split(6)
    reference = make_reference(graph, corrupted, ablation)
    circuit = circuit_of(graph, lambda w, r: w in ("a0.h1", "m1.p0", "m2.p0", "m2.p1"))
    plan = make_plan(circuit, graph, None if ablation == "zero" else reference)
    with torch.no_grad():
        expected = graph.run(pixels, circuit.removed, reference)
        assert_equal(rewrite(graph_module, plan).graph_module(pixels), expected, 1e-10)
