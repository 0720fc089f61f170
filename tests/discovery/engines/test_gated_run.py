"""Runs with gates: with 0 and 1 the oracle's, between them and in their gradients a direct implementation's."""

from __future__ import annotations

import pytest
import torch

from tests.support.gated import GRANULARITIES, embedding, make_inputs, one_image, reference_of, run
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.settings import ABLATIONS
from vitfx.discovery.engines.gated_run import GatedGraph
from vitfx.graph.stages import Stage


def drawn(graph: EdgeGraph, seed: int) -> torch.Tensor:
    return torch.rand(len(graph.edges()), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_the_oracles(graph: EdgeGraph, pixels: torch.Tensor, reference: dict[str, torch.Tensor]) -> None:
    gates = (drawn(graph, 1) < 0.7).double()
    gates[0], gates[-1] = 1, 0
    removed = [edge for edge, gate in zip(graph.edges(), gates.tolist(), strict=True) if not gate]
    logits = GatedGraph(graph, reference).run(pixels, gates, slice(None)).logits
    expected = graph.run(pixels, removed, reference)
    assert (logits - expected).abs().max() < 1e-9
    assert (expected - graph.run(pixels)).abs().max() > 1e-3


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gates_of_0_and_1_are_the_oracles_edges(granularity: str, ablation: str) -> None:
    graph, calibration, reference = make_inputs(granularity, ablation)
    assert_the_oracles(graph, calibration.clean, reference)


@pytest.mark.parametrize(
    "family", ["hand-written", "torchvision", "timm-rms-swiglu-qk-norm", "hf-dinov3", "timm-parallel"]
)
@pytest.mark.parametrize("granularity", ["head", "qkv"])
def test_other_families(granularity: str, family: str) -> None:
    graph, calibration, reference = make_inputs(granularity, family=family)
    assert_the_oracles(graph, calibration.clean, reference)


def test_an_unrecognised_step_is_run_through() -> None:
    graph, calibration, reference = make_inputs("head")
    graph.stages[graph.first + 1 : graph.first + 1] = [Stage("twist", torch.nn.Tanh())]
    graph.last += 1
    assert_the_oracles(graph, calibration.clean, reference)


@pytest.mark.parametrize("ablation", ["mean", "resample"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gates_between_and_their_gradients(granularity: str, ablation: str) -> None:
    """Of some images chosen by their places."""
    graph, calibration, reference = make_inputs(granularity, ablation)
    places, gates = torch.tensor([3, 1]), drawn(graph, 2)
    got = GatedGraph(graph, reference).run(calibration.clean[places], gates, places)
    cotangent = torch.randn(got.logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    total = torch.zeros_like(gates)
    for row, place in enumerate(places.tolist()):
        by_edge = {edge: gate.clone().requires_grad_() for edge, gate in zip(graph.edges(), gates, strict=True)}
        own = one_image(reference, place)

        def see(edge, value, by_edge=by_edge, own=own):
            return by_edge[edge] * value + (1 - by_edge[edge]) * reference_of(graph, own, edge.writer)

        logits, _ = run(graph, embedding(graph, calibration.clean[place : place + 1]), see)
        assert (logits - got.logits[row]).abs().max() < 1e-9
        total += torch.stack(torch.autograd.grad(logits, list(by_edge.values()), cotangent[row : row + 1]))
    gradient = got.back(cotangent)
    assert total.abs().max() > 0.01
    assert (gradient - total).abs().max() < 1e-9
