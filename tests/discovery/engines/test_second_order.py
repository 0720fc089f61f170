"""Predictions of what a removal costs, against the formula worked out with one gate an edge."""

import random

import pytest
import torch

from tests.discovery.engines.test_reader_engine import Setting as ReaderSetting
from tests.discovery.methods.test_acdc import Setting as HeadSetting
from tests.support.gated import embedding, one_image, reference_of, run
from vitfx.circuits.circuit import LOGITS, Edge
from vitfx.discovery.basis.forecast import Curvature, Forecast, marginals
from vitfx.discovery.basis.metric import fisher_probes
from vitfx.discovery.engines.head_engine import HeadEngine
from vitfx.discovery.engines.reader_engine import ReaderEngine
from vitfx.graph.divergence import kl_divergence


def visit_at(setting, stop):
    """Walks to the sublayer `stop`, removing every third edge on the way; the engine's visit and what was removed."""
    engine = (HeadEngine if setting.graph.reads_stream else ReaderEngine)(
        setting.graph, setting.calibration, setting.reference
    )
    removed = []
    for index, visit in enumerate(engine.wide_visits()):
        if index == stop:
            return visit, removed
        gone = [*visit.edges, *visit.idle][::3]
        visit.remove(gone)
        removed += gone
    raise AssertionError("no such visit")


@pytest.mark.parametrize(
    ("make", "stop"),
    [
        (lambda: HeadSetting("torchvision", "mean", count=20), 1),
        (lambda: HeadSetting("torchvision", "resample", count=20), 3),
        (lambda: ReaderSetting(), 0),
        pytest.param(lambda: ReaderSetting(), 2, marks=pytest.mark.slow),
        (lambda: ReaderSetting(), 4),
        (lambda: ReaderSetting("hand-written"), 3),
        pytest.param(lambda: ReaderSetting("timm-distilled"), 4, marks=pytest.mark.slow),
        pytest.param(lambda: ReaderSetting("timm-rms-swiglu-qk-norm"), 3, marks=pytest.mark.slow),
        (lambda: ReaderSetting(granularity="edge", ablation="resample"), 3),
    ],
)
@pytest.mark.parametrize("ahead", [False, True])
def test_forecasts_are_the_formulas(make, stop, ahead):
    """∂KL/∂gate and ∂(probe · logits)/∂gate by autograd through the direct implementation, image by image, at the same
    circuit. A gate lets in what the removal changes, of an attention or an MLP behind its norm, else at the stream.
    ahead: some edges of the sublayer are not removed yet, and the forecast is made as if they were."""
    setting = make()
    visit, removed = visit_at(setting, stop)
    edges = visit.edges
    gone = edges[1::4] if ahead else []
    forecast = visit.forecast(gone)
    graph, calibration = setting.graph, setting.calibration
    at_stream = graph.reads_stream or edges[0].reader.sublayer == LOGITS
    slopes, fisher = torch.zeros(len(edges), dtype=torch.float64), torch.zeros(2 * (len(edges),), dtype=torch.float64)
    kl = 0.0
    for index in range(len(calibration.clean)):
        reference = one_image(setting.reference, index)
        gates = torch.zeros(len(edges), dtype=torch.float64, requires_grad=True)

        def see(edge, value, reference=reference, gates=gates):
            change = reference_of(graph, reference, edge.writer) - value
            seen = value + change if edge in removed or edge in gone else value
            return seen + gates[edges.index(edge)] * change if at_stream and edge in edges else seen

        def nudge(reader, norm, read, written, reference=reference, gates=gates):
            total = torch.zeros_like(read)
            for writer in graph.parents(reader) if not at_stream else ():
                edge = Edge(writer, reader)
                if edge in edges:
                    change = (reference_of(graph, reference, writer) - written[writer]).detach()
                    # Of an edge that is gone, what has changed; of another, what would.
                    moved = norm(read) - norm(read - change) if edge in gone else norm(read + change) - norm(read)
                    total = total + gates[edges.index(edge)] * moved.detach()
            return total

        stream = embedding(graph, calibration.clean[index : index + 1])
        logits, _ = run(graph, stream, see, nudge)
        clean = graph.run(calibration.clean[index : index + 1])
        probe = fisher_probes(logits, calibration.draws[index : index + 1], 1)[0]
        divergence = kl_divergence(clean, logits).sum()
        (slope,) = torch.autograd.grad(divergence, gates, retain_graph=True)
        (score,) = torch.autograd.grad((probe * logits).sum(), gates)
        slopes += slope
        fisher += torch.outer(score, score)
        kl += float(divergence.detach())
    images = len(calibration.clean)
    assert torch.allclose(forecast.slope, slopes / images, rtol=1e-6, atol=1e-12)
    assert torch.allclose(forecast.fisher, fisher / images, rtol=1e-6, atol=1e-12)
    assert forecast.kl == pytest.approx(kl / images, rel=1e-9)
    assert sorted(forecast.order) == list(range(images))


@pytest.mark.parametrize(
    ("name", "granularity"),
    [("torchvision", "edge"), ("torchvision", "qkv"), ("hand-written", "qkv"), ("timm-parallel", "edge")],
)
def test_a_sublayers_readers_together_are_the_whole_graph(name, granularity):
    """Trials of single edges and of edges into several readers, before and after removals, against the edge graph."""
    setting = ReaderSetting(name, granularity)
    engine = ReaderEngine(setting.graph, setting.calibration, setting.reference)
    rng, removed = random.Random(0), []

    def direct(more):
        with torch.no_grad():
            clean = setting.graph.run(setting.calibration.clean)
            logits = setting.graph.run(setting.calibration.clean, [*removed, *more], setting.reference)
            return float(kl_divergence(clean, logits).mean())

    for visit in engine.wide_visits():
        visit.remove(visit.idle)
        removed += visit.idle
        for count in (1, 5, 2):
            there = [one for one in visit.edges if one not in removed]
            some = rng.sample(there, min(count, len(there)))
            assert visit.kl_without(some, lambda kl: True).kl == pytest.approx(direct(some), abs=1e-12)
            visit.remove(some)
            removed += some
            rest = [one for one in visit.edges if one not in removed][:2]
            if not rest:
                break
            assert visit.kl_without(rest, lambda kl: True).kl == pytest.approx(direct(rest), abs=1e-12)


def test_costs_at_their_place_are_those_of_a_quadratic():
    """Where every edge changes the others' slopes alike, costs from the slopes on both sides are exact."""
    slope = torch.tensor([0.5, -0.2, 0.1, 0.4], dtype=torch.float64)
    fisher = torch.full((4, 4), 0.3, dtype=torch.float64)
    here = Forecast(slope, fisher)
    group, gone, expected = [2, 0, 3], [], []
    for at in group:
        expected.append(float(here.moved(gone, 1).alone()[at]))
        gone.append(at)
    assert marginals(group, here, here.moved(group, 1)).tolist() == pytest.approx(expected, rel=1e-12)


def test_what_is_gone_already_counts():
    """On top of each other removals cost what the quadratic form says of all of them together."""
    generator = torch.Generator().manual_seed(0)
    slope, root = torch.randn(5, generator=generator).double(), torch.randn(5, 7, generator=generator).double()
    forecast = Forecast(slope, root @ root.T)
    one_by_one, gone = 0.0, []
    for at in (3, 0, 4):
        one_by_one += float(forecast.moved(gone, 1).alone()[at])
        gone.append(at)
    together = torch.tensor([1.0, 0, 0, 1, 1], dtype=torch.float64)
    whole = forecast.slope @ together + together @ forecast.fisher @ together / 2
    assert one_by_one == pytest.approx(float(whole), rel=1e-12)
    back = forecast.moved([1, 2], 1).moved([2], -1).slope
    assert torch.allclose(back, forecast.moved([1], 1).slope, rtol=1e-12)


def test_curvature_is_what_removals_say():
    """Costs that bend c times as much are found; one small removal alone moves c little, and a flat one not at all."""
    curvature = Curvature(0.01)
    assert curvature.times == 1
    for by_slope, by_fisher in ((-0.05, 0.02), (0.01, 0.003), (-0.3, 0.11), (0.0, 0.04), (-0.1, 0.06)):
        curvature.learn(by_slope, by_fisher, by_slope + 4 * by_fisher)
    assert 3.5 < curvature.times < 4
    known = curvature.times
    curvature.learn(0.2, 0.0, 5.0)
    assert curvature.times == known
    curvature.learn(0.0, 1e-5, 1e-3)
    assert curvature.times == pytest.approx(known, rel=1e-3)


def test_curvature_is_never_less_than_fisher_information():
    curvature = Curvature(0.01)
    curvature.learn(0.1, 0.05, -0.2)
    assert curvature.times == 1


def test_costs_bend_as_much_as_is_known():
    """Slope, and c times half the quadratic form, whether together or one on top of the other."""
    generator = torch.Generator().manual_seed(0)
    slope, root = torch.randn(5, generator=generator).double(), torch.randn(5, 7, generator=generator).double()
    forecast, some = Forecast(slope, root @ root.T, curvature=3.0), torch.tensor([1.0, 0, 1, 1, 0]).double()
    by_slope, by_fisher = forecast.together([0, 2, 3])
    assert by_slope == pytest.approx(float(slope @ some))
    assert by_fisher == pytest.approx(float(some @ root @ root.T @ some) / 2)
    one_by_one = [float(forecast.moved(gone, 1).alone()[at]) for gone, at in (([], 0), ([0], 2), ([0, 2], 3))]
    assert sum(one_by_one) == pytest.approx(by_slope + 3 * by_fisher)
