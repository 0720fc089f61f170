import pytest
import torch

from tests.support.gated import (
    GRANULARITIES,
    assert_scores,
    direct_metric,
    embedding,
    make_inputs,
    one_image,
    reference_of,
    run,
)
from vitfx.circuits.circuit import EMBED
from vitfx.discovery.basis.settings import METRICS
from vitfx.discovery.methods.attribution import eap, eap_ig
from vitfx.graph.stages import Stage
from vitfx.support.errors import UserError

STEPS = 3


def by_autograd(graph, calibration, reference, name, steps=STEPS):
    """Gates on constants, ref_w − clean_w of the clean run, that are added to what each reader sees."""
    metric = direct_metric(name, graph, calibration)
    totals = dict.fromkeys((edge.name for edge in graph.edges()), 0.0)
    for index in range(len(calibration.clean)):
        here = one_image(reference, index)
        with torch.no_grad():
            clean = embedding(graph, calibration.clean[index : index + 1])
            _, written = run(graph, clean, lambda edge, value: value)
            change = {one: reference_of(graph, here, one) - value for one, value in written.items()}
        for k in range(1, steps + 1):
            gates = {edge: torch.zeros((), dtype=torch.float64, requires_grad=True) for edge in graph.edges()}
            point = here[EMBED] + k / steps * (clean - here[EMBED])
            logits, _ = run(graph, point, lambda edge, value, g=gates, c=change: value + g[edge] * c[edge.writer])
            found = torch.autograd.grad(metric(index, logits), list(gates.values()))
            for edge, value in zip(gates, found, strict=True):
                totals[edge.name] += float(value) / steps / len(calibration.clean)
    return {name: abs(value) for name, value in totals.items()}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_edge_agrees_with_autograd(granularity, metric):
    graph, calibration, reference = make_inputs(granularity)
    got = eap_ig(graph, calibration, reference, metric=metric, steps=STEPS)
    assert_scores(got, by_autograd(graph, calibration, reference, metric))


@pytest.mark.parametrize("ablation", ["zero", "position-mean", "resample"])
def test_other_ablations_agree(ablation):
    graph, calibration, reference = make_inputs("head", ablation)
    got = eap_ig(graph, calibration, reference, metric="kl", steps=STEPS)
    assert_scores(got, by_autograd(graph, calibration, reference, "kl"))


def test_an_unrecognised_step_between_sublayers_is_run_through():
    graph, calibration, reference = make_inputs("edge", family="hand-written")
    graph.stages[graph.first + 1 : graph.first + 1] = [Stage("twist", torch.nn.Tanh())]
    graph.last += 1
    got = eap_ig(graph, calibration, reference, metric="kl", steps=2)
    assert_scores(got, by_autograd(graph, calibration, reference, "kl", steps=2))


def test_one_step_is_eap():
    graph, calibration, reference = make_inputs("qkv")
    assert eap_ig(graph, calibration, reference, metric="loss", steps=1) == eap(
        graph, calibration, reference, metric="loss"
    )


def test_at_the_clean_run_alone_kl_is_blind():
    """Why the last point is not the only one."""
    graph, calibration, reference = make_inputs("head")
    at_clean = eap_ig(graph, calibration, reference, metric="kl", steps=1)
    along = eap_ig(graph, calibration, reference, metric="kl", steps=5)
    assert max(at_clean.values()) < 1e-12 < 1e-6 < max(along.values())


def test_the_embeddings_edge_integrates_to_the_metrics_change():
    """Completeness (Sundararajan et al. 2017): on the block graph the embedding's path integral is what it ends at."""
    graph, calibration, reference = make_inputs("block", "resample")
    got = eap_ig(graph, calibration, reference, metric="loss", steps=400)["embed→stream"]
    metric = direct_metric("loss", graph, calibration)
    with torch.no_grad():
        ends = graph.run(calibration.corrupted), graph.run(calibration.clean)
    far, near = (sum(float(metric(i, end[i : i + 1])) for i in range(len(end))) / len(end) for end in ends)
    assert got == pytest.approx(abs(far - near), rel=2e-2)


def test_user_mistakes_are_told():
    with pytest.raises(UserError, match="`steps` 0 is too small for EAP-IG: give 1 or more"):
        eap_ig(*make_inputs("block"), metric="kl", steps=0)
    with pytest.raises(UserError, match="metric 'accuracy' is not known"):
        eap_ig(*make_inputs("block"), metric="accuracy")
