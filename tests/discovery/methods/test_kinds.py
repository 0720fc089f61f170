"""Every kind of answer through discovery: decisions against a naive Algorithm 1 that runs the whole model for every
edge and measures by torch's own losses."""

from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import pytest
import torch

from tests.support.checks import calibration_on
from tests.support.families import images
from tests.support.kinds import KIND, make, written_out
from tests.support.slow import slow_but
from vitfx.circuits.circuit import EXACT
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.ablation import make_reference
from vitfx.discovery.basis.journal import NoJournal
from vitfx.discovery.basis.metric import check_metric
from vitfx.discovery.basis.protocol import Limits
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.engines.head_engine import HeadEngine
from vitfx.discovery.engines.reader_engine import ReaderEngine
from vitfx.discovery.methods.acdc import acdc, by_attribution
from vitfx.discovery.methods.attribution import fisher, score_edges
from vitfx.discovery.methods.eap_acdc import eap_acdc
from vitfx.discovery.run import whole_mlps
from vitfx.graph.divergence import make_divergence
from vitfx.graph.trace import to_canonical
from vitfx.support.errors import UserError

COUNT = 20
QUICK = ("one logit", "labels", "unit embedding", "pixels")
NAMES = slow_but(QUICK, [name for name in KIND if name != "classes"])


@cache
def setting_of(name, granularity):
    pixels = images(2 * COUNT, torch.float64)
    model = to_canonical(make(name).double(), pixels[:2]).graph_module
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
        answers = model(pixels[:COUNT])
    calibration = replace(
        calibration_on(pixels[:COUNT], pixels[COUNT:]), divergence=make_divergence(KIND[name], answers)
    )
    graph = EdgeGraph(model, whole_mlps(model), granularity)
    reference = make_reference(EdgeGraph(model, whole_mlps(model)), calibration.corrupted, "mean")
    scores = fisher(graph, calibration, reference)
    return SimpleNamespace(
        name=name, graph=graph, calibration=calibration, reference=reference, answers=answers, scores=scores
    )


def cost(setting, removed):
    with torch.no_grad():
        other = setting.graph.run(setting.calibration.clean, removed, setting.reference)
    return float(written_out(setting.name, setting.answers, other).mean())


def engine_of(setting):
    engine = HeadEngine if setting.graph.reads_stream else ReaderEngine
    return engine(setting.graph, setting.calibration, setting.reference)


def middle(setting):
    """A τ that some edges are below and some above."""
    costs = sorted(cost(setting, [edge]) for edge in setting.graph.edges()[::3])
    return costs[len(costs) // 2]


@pytest.mark.parametrize("name", NAMES)
def test_acdc_decides_as_the_naive_loop(name):
    setting = setting_of(name, "head")
    tau = middle(setting)
    decisions = acdc(engine_of(setting), partial(by_attribution, setting.scores), Limits(tau), NoJournal())
    removed, divergence = [], 0.0
    for decision in decisions:
        new = cost(setting, [*removed, decision.edge])
        assert decision.kept == (not new - divergence < tau)
        if decision.basis == EXACT:
            assert decision.kl == pytest.approx(new, rel=1e-9, abs=1e-12)
        if not decision.kept:
            removed.append(decision.edge)
            divergence = new
    assert 0 < len(removed) < len(decisions)


@pytest.mark.parametrize("name", slow_but(("labels",), ["labels", "tokens", "pixels"]))
def test_edges_of_the_qkv_graph_cost_what_the_whole_model_says(name):
    """The reader engine and the forecasts behind eap-acdc."""
    setting = setting_of(name, "qkv")
    decisions = eap_acdc(engine_of(setting), Limits(middle(setting)), NoJournal(), 0)
    removed = [decision.edge for decision in decisions if not decision.kept]
    assert 0 < len(removed) < len(decisions)
    last = next(decision for decision in reversed(decisions) if not decision.kept and decision.kl is not None)
    before = decisions[: decisions.index(last) + 1]
    gone = [decision.edge for decision in before if not decision.kept]
    assert last.kl == pytest.approx(cost(setting, gone), rel=1e-8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["eap", "relp", "eap-ig", "eap-ig-activations", "ensemble", "taylor"])
def test_attributions_score_every_edge(name, method):
    """The divergence's quadratic form, which is EAP's, is what removing an edge costs, to second order."""
    setting = setting_of(name, "head")
    settings = Settings(method=method, task=KIND[name])
    scores = score_edges(setting.graph, setting.calibration, setting.reference, settings, lambda *_: None)
    edges = setting.graph.edges()
    assert all(score > 0 for score in scores.values())
    if method == "eap":
        ratios = torch.tensor([scores[edge.name] / cost(setting, [edge]) for edge in edges])
        # Of classes one is drawn for each image, which scatters more than signs do, and there are few images.
        assert (0.5 if name == "probabilities" else 0.7) < float(ratios.median()) < 1.4


@pytest.mark.parametrize("metric", ["loss", "logit-difference"])
def test_metrics_of_classes_are_refused_for_others(metric):
    with pytest.raises(UserError, match=f"metric {metric} is not defined for a model whose answers are embedding"):
        check_metric(metric, "embedding")
