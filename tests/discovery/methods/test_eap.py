from functools import partial

import pytest
import torch

from tests.support.gated import GRANULARITIES, assert_scores, direct_metric, make_inputs, per_image
from vitfx.discovery.basis.ablation import make_reference
from vitfx.discovery.basis.settings import ABLATIONS
from vitfx.discovery.methods.attribution import eap, eap_ig, fisher
from vitfx.graph.stages import Stage
from vitfx.support.errors import UserError


def by_autograd(graph, calibration, reference, metric):
    found = per_image(graph, calibration, reference, direct_metric(metric, graph, calibration))
    return {name: abs(float(value.mean())) for name, value in found.items()}


@pytest.mark.parametrize("metric", ["loss", "logit-difference"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_edge_agrees_with_autograd_on_gates(granularity, metric):
    graph, calibration, reference = make_inputs(granularity)
    got = eap(graph, calibration, reference, metric=metric)
    assert list(got) == [edge.name for edge in graph.edges()]
    assert_scores(got, by_autograd(graph, calibration, reference, metric))


@pytest.mark.parametrize(("metric", "sign"), [("loss", -1), ("logit-difference", 1)])
@pytest.mark.parametrize("method", [eap, partial(eap_ig, steps=1)])
def test_signed_scores_are_positive_where_removing_the_edge_makes_the_metric_worse(method, metric, sign):
    """A gate goes down as its edge is removed: the loss then rises against its gradient."""
    graph, calibration, reference = make_inputs("edge")
    gates = per_image(graph, calibration, reference, direct_metric(metric, graph, calibration))
    expected = {name: sign * float(value.mean()) for name, value in gates.items()}
    assert min(expected.values()) < 0 < max(expected.values())
    got = method(graph, calibration, reference, metric=metric, signed=True)
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-9 * max(expected.values()))


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("granularity", ["block", "edge"])
def test_every_ablation_agrees(granularity, ablation):
    graph, calibration, reference = make_inputs(granularity, ablation)
    got = eap(graph, calibration, reference, metric="loss")
    assert_scores(got, by_autograd(graph, calibration, reference, "loss"))


@pytest.mark.parametrize(
    "family", ["hand-written", "torchvision", "timm-rms-swiglu-qk-norm", "hf-dinov3", "timm-parallel"]
)
@pytest.mark.parametrize("granularity", ["head", "edge"])
def test_other_families_agree(granularity, family):
    """Without biases, with pooling behind the last sublayer; with a class token."""
    graph, calibration, reference = make_inputs(granularity, family=family)
    got = eap(graph, calibration, reference, metric="loss")
    assert_scores(got, by_autograd(graph, calibration, reference, "loss"))


def test_an_unrecognised_step_between_sublayers_is_run_through():
    graph, calibration, reference = make_inputs("edge")
    graph.stages[graph.first + 1 : graph.first + 1] = [Stage("twist", torch.nn.Tanh())]
    graph.last += 1
    got = eap(graph, calibration, reference, metric="loss")
    assert_scores(got, by_autograd(graph, calibration, reference, "loss"))


@pytest.mark.parametrize("granularity", ["head", "qkv"])
def test_a_gates_gradient_is_the_oracles_difference_quotient(granularity):
    """The oracle removes an edge whole; a reference a little away from the clean run makes that a small step."""
    graph, calibration, reference = make_inputs(granularity, "resample")
    got = eap(graph, calibration, reference, metric="loss")
    clean = make_reference(graph, calibration.clean, "resample")
    step = 1e-6
    near = {name: clean[name] + step * (reference[name] - clean[name]) for name in clean}
    metric = direct_metric("loss", graph, calibration)
    edges = {edge.name: edge for edge in graph.edges()}
    names = ["a1.h2→stream", "m0.p1→stream"] if granularity == "head" else ["a0.h1→a1.h3.k", "m1.p0→m2", "embed→logits"]
    for name in names:
        with torch.no_grad():
            moved = graph.run(calibration.clean, [edges[name]], near)
            whole = graph.run(calibration.clean)
        slopes = [
            (metric(index, moved[index : index + 1]) - metric(index, whole[index : index + 1])) / step
            for index in range(len(whole))
        ]
        assert got[name] == pytest.approx(abs(float(sum(slopes)) / len(slopes)), rel=1e-4)


def test_kl_is_the_fisher_information():
    graph, calibration, reference = make_inputs("head")
    assert eap(graph, calibration, reference, metric="kl") == fisher(graph, calibration, reference)


def test_without_labels_the_loss_is_of_the_models_own_top_1():
    graph, calibration, reference = make_inputs("head", labels=False)
    got = eap(graph, calibration, reference, metric="loss")
    assert_scores(got, by_autograd(graph, calibration, reference, "loss"))


def test_an_unknown_metric_is_told():
    with pytest.raises(UserError, match="metric 'accuracy' is not known: choose one of kl, loss, logit-difference"):
        eap(*make_inputs("block"), metric="accuracy")
