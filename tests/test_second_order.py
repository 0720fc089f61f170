"""Predictions of what a removal costs, against the formula worked out with one gate an edge."""

import pytest
import torch

from tests.gated import embedding, one_image, reference_of, run
from tests.test_acdc import Setting as HeadSetting
from tests.test_reader_engine import Setting as ReaderSetting
from vitfx.circuit import Edge
from vitfx.edge_graph import kl_divergence
from vitfx.forecast import Forecast
from vitfx.head_engine import HeadEngine
from vitfx.metric import fisher_probes
from vitfx.reader_engine import ReaderEngine


def visits(setting, stop):
    """Walks to the visit `stop`, removing every third edge on the way; the engine's visit and what was removed."""
    engine = (HeadEngine if setting.graph.reads_stream else ReaderEngine)(
        setting.graph, setting.calibration, setting.reference
    )
    removed = []
    for index, visit in enumerate(engine.visits()):
        gone = list(visit.writers)[::3] if index < stop else []
        if index == stop:
            return visit, removed
        visit.remove(gone)
        removed += [Edge(one, visit.reader) for one in gone]
    raise AssertionError("no such visit")


@pytest.mark.parametrize(
    ("make", "stop"),
    [
        (lambda: HeadSetting("torchvision", "mean", count=20), 1),
        (lambda: HeadSetting("torchvision", "resample", count=20), 3),
        (lambda: ReaderSetting(), 0),
        (lambda: ReaderSetting(), 4),
        (lambda: ReaderSetting(granularity="edge", ablation="resample"), 7),
    ],
)
def test_forecasts_are_the_formulas(make, stop):
    """∂KL/∂gate and ∂log p/∂gate by autograd through the direct implementation, image by image, at the same circuit."""
    setting = make()
    visit, removed = visits(setting, stop)
    forecast = visit.forecast()
    graph, calibration = setting.graph, setting.calibration
    edges = [Edge(one, visit.reader) for one in visit.writers]
    slopes, fisher = torch.zeros(len(edges), dtype=torch.float64), torch.zeros(2 * (len(edges),), dtype=torch.float64)
    for index in range(len(calibration.clean)):
        reference = one_image(setting.reference, index)
        gates = torch.ones(len(edges), dtype=torch.float64, requires_grad=True)

        def see(edge, value, reference=reference, gates=gates):
            if edge in removed:
                return reference_of(graph, reference, edge.writer).expand_as(value)
            if edge not in edges:
                return value
            gate = gates[edges.index(edge)]
            return gate * value + (1 - gate) * reference_of(graph, reference, edge.writer)

        stream = embedding(graph, calibration.clean[index : index + 1])
        logits, _ = run(graph, stream, see)
        clean = graph.run(calibration.clean[index : index + 1])
        probe = fisher_probes(logits, calibration.draws[index : index + 1], 1)[0]
        (slope,) = torch.autograd.grad(kl_divergence(clean, logits).sum(), gates, retain_graph=True)
        (score,) = torch.autograd.grad((probe * logits).sum(), gates)
        slopes -= slope
        fisher += torch.outer(score, score)
    images = len(calibration.clean)
    assert torch.allclose(forecast.slope, slopes / images, rtol=1e-6, atol=1e-12)
    assert torch.allclose(forecast.fisher, fisher / images, rtol=1e-6, atol=1e-12)


def test_what_is_gone_already_counts():
    """On top of each other removals cost what the quadratic form says of all of them together."""
    generator = torch.Generator().manual_seed(0)
    slope, root = torch.randn(5, generator=generator).double(), torch.randn(5, 7, generator=generator).double()
    forecast = Forecast(slope, root @ root.T)
    one_by_one, gone = 0.0, []
    for at in (3, 0, 4):
        one_by_one += float(forecast.after(gone)[at])
        gone.append(at)
    together = torch.tensor([1.0, 0, 0, 1, 1], dtype=torch.float64)
    whole = forecast.slope @ together + together @ forecast.fisher @ together / 2
    assert one_by_one == pytest.approx(float(whole), rel=1e-12)
    assert torch.equal(forecast.after([]), forecast.alone())
