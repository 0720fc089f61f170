import itertools

import pytest
import torch

from tests.support.checks import calibration_on, canonical
from tests.support.families import images
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.ablation import make_reference
from vitfx.discovery.basis.metric import drawn_from
from vitfx.discovery.methods.unit_importance import fisher_scores, group_paths
from vitfx.graph.stages import replaced

WHOLE = {f"m{i}": [range(48)] for i in range(3)}


@pytest.fixture(scope="module")
def graph():
    return EdgeGraph(canonical(), WHOLE)


def test_the_gradient_of_a_gate_is_the_difference_quotient(graph):
    """½ (∂ log p(y|x)/∂gate)² by finite differences, one image and head at a time, y drawn by the same generator."""
    pixels, corrupted = images(6, torch.float64).split(3)
    reference = make_reference(graph, corrupted, "mean")
    calibration = calibration_on(pixels, corrupted)
    scores = fisher_scores(graph.stages, calibration, reference)
    with torch.no_grad():
        logits = graph.run(pixels)
        log_p, drawn = logits.log_softmax(-1), drawn_from(logits, calibration.draws)[:, None]
        step = 1e-5
        for head in range(4):
            moved = _with_gate(graph, pixels, "a1", head, 1 - step, reference["a1"]).log_softmax(-1)
            slope = ((log_p - moved) / step).gather(1, drawn)
            assert float(scores["a1"][head]) == pytest.approx(float(slope.square().mean() / 2), rel=1e-3)


def _with_gate(graph, pixels, name, head, gate, reference):
    stream = pixels
    for stage in graph.stages:
        if stage.name != name:
            stream = stage(stream)
            continue
        inner = stage.inner(stream)
        inner = gate * inner + (1 - gate) * replaced(stage, inner, [head], reference)
        stream = stream + stage.sublayer.out(inner)
    return stream


def test_scores_do_not_depend_on_the_batch(graph, monkeypatch):
    pixels, corrupted = images(40, torch.float64).split(20)
    reference = make_reference(graph, corrupted, "resample")
    calibration = calibration_on(pixels, corrupted)
    scores = fisher_scores(graph.stages, calibration, reference)
    monkeypatch.setattr("vitfx.discovery.methods.unit_importance.BATCH", 20)
    again = fisher_scores(graph.stages, calibration, reference)
    assert all(torch.allclose(scores[name], again[name], rtol=1e-9) for name in scores)


def test_paths_hold_every_neuron_once_and_like_importance_together(graph):
    scores = {name: torch.randn(48).square() for name in WHOLE}
    groups = group_paths(graph.stages, scores, 5)
    for name, paths in groups.items():
        assert sorted(unit for path in paths for unit in path) == list(range(48))
        assert {len(path) for path in paths} == {9, 10}
        limits = [(float(scores[name][path].min()), float(scores[name][path].max())) for path in paths]
        assert all(left[1] <= right[0] for left, right in itertools.pairwise(limits))


def test_more_paths_than_neurons_are_single_neurons(graph):
    groups = group_paths(graph.stages, {name: torch.arange(48.0) for name in WHOLE}, 100)
    assert groups["m0"] == [[unit] for unit in range(48)]
