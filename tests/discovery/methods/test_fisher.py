from dataclasses import replace

import pytest
import torch

from tests.support.gated import GRANULARITIES, assert_scores, make_inputs, per_image
from vitfx.discovery.basis.ablation import make_reference
from vitfx.discovery.methods.attribution import fisher
from vitfx.graph.divergence import kl_divergence

CASES = [
    *((granularity, "mean", "vitfx") for granularity in GRANULARITIES),
    ("edge", "resample", "vitfx"),
    ("qkv", "zero", "hand-written"),
]


def drawn_by_hand(graph, calibration):
    """Inverse CDF by a loop: the first class whose cumulated probability exceeds the draw."""
    with torch.no_grad():
        probabilities = graph.run(calibration.clean).softmax(-1)
    drawn = []
    for row, draw in zip(probabilities.tolist(), calibration.draws.tolist(), strict=True):
        cumulated, chosen = 0.0, len(row) - 1
        for index, p in enumerate(row):
            cumulated += p
            if cumulated > draw:
                chosen = index
                break
        drawn.append(chosen)
    return drawn


@pytest.mark.parametrize(("granularity", "ablation", "family"), CASES)
def test_every_edge_agrees_with_autograd_on_gates(granularity, ablation, family):
    graph, calibration, reference = make_inputs(granularity, ablation, family)
    drawn = drawn_by_hand(graph, calibration)
    gradients = per_image(graph, calibration, reference, lambda index, logits: logits.log_softmax(-1)[0, drawn[index]])
    expected = {name: float(value.square().mean() / 2) for name, value in gradients.items()}
    assert_scores(fisher(graph, calibration, reference), expected)


def test_over_many_draws_it_is_the_quadratic_form_of_kl():
    """A reference a little off the clean run: KL of removing the edge is the Fisher information, y summed out."""
    graph, calibration, reference = make_inputs("head", "resample")
    clean = make_reference(graph, calibration.clean, "resample")
    near = {name: clean[name] + 1e-3 * (reference[name] - clean[name]) for name in clean}
    count = 300
    draws = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    one = slice(0, 1)
    edge = next(edge for edge in graph.edges() if edge.name == "a1.h2→stream")
    many = replace(
        calibration,
        clean=calibration.clean[one].expand(count, -1, -1, -1),
        corrupted=calibration.corrupted[one].expand(count, -1, -1, -1),
        draws=draws,
        total=count,
    )
    near_one = {name: value[one] for name, value in near.items()}
    scores = fisher(graph, many, {name: value.expand(count, -1, -1) for name, value in near_one.items()})
    with torch.no_grad():
        moved = graph.run(calibration.clean[one], [edge], near_one)
        kl = float(kl_divergence(graph.run(calibration.clean[one]), moved))
    assert scores[edge.name] == pytest.approx(kl, rel=3e-2)
