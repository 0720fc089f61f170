"""ACDC on the edge and the qkv graph against the naive loop: one run of the whole edge graph for every edge."""

import random
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from tests.support.checks import calibration_on, canonical
from tests.support.families import images
from tests.support.slow import REPRESENTATIVE, slow_but
from vitfx.circuits.circuit import EXACT, LOGITS, Edge
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.ablation import make_reference
from vitfx.discovery.basis.journal import NoJournal
from vitfx.discovery.basis.protocol import Limits
from vitfx.discovery.basis.settings import ABLATIONS
from vitfx.discovery.engines.reader_engine import ReaderEngine
from vitfx.discovery.methods.acdc import acdc, by_attribution
from vitfx.support.errors import UserError

COUNT = 20
"""Two batches, the first trials in two pieces."""
FEW = 9
"""Two pieces still."""


class Setting:
    def __init__(self, name="torchvision", granularity="qkv", ablation="mean", count=COUNT):
        pixels = images(2 * count, torch.float64)
        self.calibration = calibration_on(pixels[:count], pixels[count:])
        graph_module = canonical(name)
        with torch.no_grad():
            for parameter in graph_module.parameters():
                parameter.mul_(1.5)
        hidden = [graph_module.get_submodule(f"m{i}").units for i in range(3)]
        paths = {f"m{i}": [range(0, size, 2), range(1, size, 2)] for i, size in enumerate(hidden)}
        self.graph = EdgeGraph(graph_module, paths, granularity)
        self.reference = make_reference(self.graph, self.calibration.corrupted, ablation)
        rng = random.Random(0)
        self.order = partial(by_attribution, {edge.name: rng.random() for edge in self.graph.edges()})

    def run(self, tau):
        engine = ReaderEngine(self.graph, self.calibration, self.reference)
        return acdc(engine, self.order, Limits(tau), NoJournal())

    def naive(self, tau):
        """Algorithm 1 on EdgeGraph.run: H starts as G; the logits first, then sublayers from the output, a head's
        queries, keys and values in turn; one edge at a time."""
        with torch.no_grad():
            log_g = F.log_softmax(self.graph.run(self.calibration.clean), -1)
            removed, kl, trace = [], 0.0, []
            for sublayer in [LOGITS, "m2", "a2", "m1", "a1", "m0", "a0"]:
                for reader in [one for one in self.graph.readers if one.sublayer == sublayer]:
                    visit = _Parents(reader, self.graph.parents(reader))
                    for writer in self.order(visit):
                        trial = [*removed, Edge(writer, reader)]
                        logits = self.graph.run(self.calibration.clean, trial, self.reference)
                        log_h = F.log_softmax(logits, -1)
                        new = float(F.kl_div(log_h, log_g, log_target=True, reduction="batchmean"))
                        trace.append((trial[-1].name, not new - kl < tau, new - kl, new))
                        if new - kl < tau:
                            removed, kl = trial, new
        return trace


class _Parents:
    def __init__(self, reader, writers):
        self.reader, self.writers = reader, writers


def assert_same(setting, tau):
    expected, got = setting.naive(tau), setting.run(tau)
    assert [(one.edge.name, one.kept) for one in got] == [(name, kept) for name, kept, _, _ in expected]
    for decision, (_, _, score, kl) in zip(got, expected, strict=True):
        if decision.basis == EXACT:
            assert decision.score == pytest.approx(score, abs=1e-11)
            assert decision.kl == pytest.approx(kl, abs=1e-11)
        else:
            assert decision.kept
            assert tau <= decision.score <= score + 1e-11
    return got


@pytest.mark.parametrize("granularity", ["edge", "qkv"])
@pytest.mark.parametrize("ablation", slow_but(("zero", "resample"), ABLATIONS))
def test_decisions_are_the_naive_loops(granularity, ablation):
    assert_same(Setting(granularity=granularity, ablation=ablation), 1e-3)


@pytest.mark.parametrize("tau", slow_but((1e-4, 1.0), [1e-9, 1e-5, 1e-4, 1e-2, 1.0]))
def test_sparse_and_dense_circuits(tau):
    got = assert_same(Setting(count=FEW), tau)
    removed = sum(not one.kept for one in got)
    assert (removed == len(got)) == (tau == 1.0)


@pytest.mark.parametrize(
    "name", slow_but(REPRESENTATIVE, ["timm-layerscale-average-registers", "timm-distilled", "hf-dinov2"])
)
def test_classifiers_that_read_other_tokens(name):
    assert_same(Setting(name, count=FEW), 3e-4)


@pytest.mark.parametrize(
    ("name", "granularity"),
    [
        pytest.param("timm-rms-swiglu-qk-norm", "qkv", marks=pytest.mark.slow),
        ("hf-dinov3", "qkv"),
        ("timm-beit", "edge"),
        pytest.param("timm-grouped-queries", "qkv", marks=pytest.mark.slow),
        ("timm-norm-on-norm", "edge"),
        pytest.param("timm-rotary-mixed", "edge", marks=pytest.mark.slow),
        pytest.param("timm-parallel", "qkv", marks=pytest.mark.slow),
        ("timm-parallel-fused", "edge"),
    ],
)
def test_cores_that_do_more_than_a_product(name, granularity):
    got = assert_same(Setting(name, granularity, count=FEW), 1e-3)
    assert 0 < sum(not decision.kept for decision in got) < len(got)


@pytest.mark.parametrize("granularity", ["edge", "qkv"])
def test_a_norm_inside_an_mlp(granularity):
    """Its statistics stay those of all neurons, whichever paths a reader sees."""
    got = assert_same(Setting("timm-norm-inside-mlp", granularity, count=FEW), 1e-3)
    assert 0 < sum(not decision.kept for decision in got) < len(got)


def test_heads_that_a_norm_couples_are_refused():
    with pytest.raises(UserError, match=r"norm behind the heads of a0 couples them.*choose `granularity` head"):
        Setting("timm-norms-inside", "edge")
