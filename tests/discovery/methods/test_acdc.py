"""ACDC against a naive re-implementation of Algorithm 1: one whole forward pass for every edge, nothing shared."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from passes.stream import read_sites
from tests.support.checks import calibration_on, canonical
from tests.support.families import images
from vitfx.circuits.circuit import EMBED, EXACT, Edge, Reader, Writer
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.ablation import make_reference
from vitfx.discovery.basis.journal import NoJournal
from vitfx.discovery.basis.protocol import Limits
from vitfx.discovery.basis.settings import ABLATIONS
from vitfx.discovery.engines.head_engine import HeadEngine
from vitfx.discovery.methods.acdc import acdc, by_attribution, reverse
from vitfx.discovery.methods.attribution import fisher
from vitfx.discovery.methods.unit_importance import fisher_scores, group_paths

PATHS = 3


class Setting:
    """A small model with its images, as discovery sees it."""

    def __init__(self, name, ablation, granularity="head", count=40):
        # More images than a batch has, so that batching is part of what is compared.
        pixels = images(2 * count, torch.float64)
        self.clean, self.corrupted = pixels[:count], pixels[count:]
        self.calibration = calibration_on(self.clean, self.corrupted)
        graph_module = canonical(name)
        with torch.no_grad():
            # Sharper than random weights are, so that edges differ in what they matter.
            for parameter in graph_module.parameters():
                parameter.mul_(1.5)
        coarse = EdgeGraph(graph_module, _whole(graph_module))
        self.reference = make_reference(coarse, self.corrupted, ablation)
        scores = fisher_scores(coarse.stages, self.calibration, self.reference)
        self.graph = EdgeGraph(graph_module, group_paths(coarse.stages, scores, PATHS), granularity)
        self.scores = fisher(self.graph, self.calibration, self.reference)
        self.order = {edge.writer.name: self.scores[edge.name] for edge in self.graph.edges()}

    def run(self, tau, max_kl=math.inf, journal=None):
        engine = HeadEngine(self.graph, self.calibration, self.reference)
        return acdc(engine, partial(by_attribution, self.scores), Limits(tau, max_kl), journal or NoJournal())


def _whole(graph_module):
    """Each MLP as one path."""
    sites = read_sites(graph_module)
    return {site.name: [range(site.module.units)] for site in sites if site.module.kind == "neuron"}


def naive(setting, tau, max_kl=math.inf):
    """Algorithm 1, Conmy et al. 2023, on EdgeGraph.run: H starts as G; output first; one edge at a time."""
    with torch.no_grad():
        log_g = F.log_softmax(setting.graph.run(setting.clean), -1)
        removed, kl, trace = [], 0.0, []
        for sublayer in reversed(dict.fromkeys(writer.sublayer for writer in setting.graph.writers)):
            writers = [one for one in setting.graph.writers if one.sublayer == sublayer]
            if sublayer != EMBED:
                writers.sort(key=lambda one: setting.order[one.name])
            for writer in writers:
                logits = setting.graph.run(setting.clean, [Edge(one) for one in [*removed, writer]], setting.reference)
                log_h = F.log_softmax(logits, -1)
                new = float(F.kl_div(log_h, log_g, log_target=True, reduction="batchmean"))
                gone = new - kl < tau and new <= max_kl
                trace.append((writer.name, not gone, new - kl, new))
                if gone:
                    removed.append(writer)
                    kl = new
    return trace


@pytest.fixture(scope="module", params=ABLATIONS)
def setting(request):
    return Setting("torchvision", request.param)


@pytest.mark.parametrize("tau", [0.0, 5e-3, 1e-2, 3e-2])
def test_decisions_are_the_naive_loops(setting, tau):
    _assert_naive(setting, tau)


@pytest.mark.parametrize(("granularity", "tau"), [("block", 2e-2), ("head", 5e-3)])
def test_norms_inside_sublayers(granularity, tau):
    """Their statistics stay those of all heads and paths."""
    got = _assert_naive(Setting("timm-norms-inside", "mean", granularity), tau)
    assert 0 < sum(not decision.kept for decision in got) < len(got)


def _assert_naive(setting, tau):
    expected = naive(setting, tau)
    got = setting.run(tau)
    assert [(one.edge.writer.name, one.kept) for one in got] == [(name, kept) for name, kept, _, _ in expected]
    for decision, (_, _, score, kl) in zip(got, expected, strict=True):
        if decision.basis == EXACT:
            assert decision.score == pytest.approx(score, abs=1e-12)
            assert decision.kl == pytest.approx(kl, abs=1e-12)
        else:
            assert decision.kept
            assert tau <= decision.score <= score + 1e-12
    return got


@pytest.mark.parametrize(("granularity", "tau"), [("block", 2e-2), ("head", 5e-3)])
def test_attention_and_mlp_side_by_side(granularity, tau):
    got = _assert_naive(Setting("timm-parallel", "mean", granularity), tau)
    assert 0 < sum(not decision.kept for decision in got) < len(got)


def test_thresholds_between_give_circuits_between():
    """The taus above are no all-or-nothing: some edges go and some stay."""
    setting = Setting("torchvision", "mean")
    removed = [sum(not one.kept for one in setting.run(tau)) for tau in (5e-3, 1e-2, 3e-2)]
    assert 0 < removed[0] < removed[1] < removed[2] < len(setting.graph.writers)


def test_sublayers_that_are_not_recognised_are_run_through():
    setting = Setting("hand-written", "mean")
    assert [one.kept for one in setting.run(1e-2)] == [kept for _, kept, _, _ in naive(setting, 1e-2)]


@pytest.mark.parametrize("ablation", ["mean", "resample"])
def test_attention_pooling_is_decided_with_the_rest(ablation):
    setting = Setting("timm-map", ablation, count=8)
    expected = naive(setting, 2e-3)
    assert [one.kept for one in setting.run(2e-3)] == [kept for _, kept, _, _ in expected]
    pool = [kept for name, kept, _, _ in expected if name.startswith(("a3", "m3"))]
    assert True in pool
    assert False in [kept for _, kept, _, _ in expected]


def test_whole_sublayers_are_the_block_graph():
    setting = Setting("torchvision", "mean", "block")
    got = setting.run(2e-2)
    assert [one.edge.writer.name for one in got] == ["m2", "a2", "m1", "a1", "m0", "a0", "embed"]
    assert [one.kept for one in got] == [kept for _, kept, _, _ in naive(setting, 2e-2)]
    assert 0 < sum(one.kept for one in got) < 7


def test_max_kl_bounds_the_whole_circuit():
    setting = Setting("torchvision", "mean")
    limit = 3e-2
    decisions = setting.run(1.0, limit)
    assert max(one.kl for one in decisions if not one.kept) <= limit
    assert [one.kept for one in decisions] == [kept for _, kept, _, _ in naive(setting, 1.0, limit)]
    assert any(one.kept and one.kl > limit for one in decisions)


def test_readers_come_output_first_and_the_least_important_of_each_first():
    setting = Setting("torchvision", "mean")
    names = [one.edge.writer.name for one in setting.run(0.0)]
    sublayers = list(dict.fromkeys(name.split(".")[0] for name in names))
    assert sublayers == ["m2", "a2", "m1", "a1", "m0", "a0", "embed"]
    assert [name for name in names if name.startswith("m1")] == ["m1.p0", "m1.p1", "m1.p2"]
    heads = [name for name in names if name.startswith("a1")]
    assert heads == sorted(heads, key=lambda name: setting.order[name])


def test_a_journal_spares_the_work_of_what_it_recalls():
    setting = Setting("torchvision", "mean")
    known = {one.edge: one for one in setting.run(1e-2)}

    class Recalls:
        recorded: list = []  # noqa: RUF012

        def recall(self, edges):
            return [known[edge] for edge in edges if edge.writer.sublayer.endswith(("2", "1"))] or None

        def record(self, decisions):
            self.recorded += decisions

    journal = Recalls()
    again = setting.run(1e-2, journal=journal)
    assert again == list(known.values())
    assert {one.edge.writer.sublayer for one in journal.recorded} == {"a0", "m0", "embed"}


class Idle:
    """An engine of one reader that makes no difference."""

    def __init__(self):
        self.idle, self.reader, self.writers = True, Reader("logits"), (Writer(EMBED),)

    def visits(self):
        yield self

    def remove(self, writers, order=None):
        pass


@pytest.mark.parametrize(("tau", "kept"), [(0.0, True), (1e-9, False)])
def test_what_costs_nothing_is_removed_only_where_costs_are_allowed(tau, kept):
    (decision,) = acdc(Idle(), reverse, Limits(tau), NoJournal())
    assert (decision.kept, decision.score, decision.kl) == (kept, 0.0, 0.0)
