import pytest
import torch

from passes.base import run_passes
from passes.delete_heads import DeleteHeads
from passes.fold_biases import FoldBiases
from tests.support.checks import canonical, check, plan_of
from tests.support.families import images

PIXELS = images(3, torch.float64)


@pytest.mark.parametrize("name", ["vitfx", "hf-dinov2", "hand-written", "careless"])
def test_fold_biases(name):
    graph_module = canonical(name)
    biased = graph_module.a0.v.bias is not None
    expected = graph_module(PIXELS).detach()
    folded = check(FoldBiases(), graph_module, PIXELS, expected, changes=biased, nodes=0, tolerance=1e-12)
    assert folded.a0.k.bias is None
    assert folded.a0.v.bias is None
    assert (folded.a0.q.bias is None) == (graph_module.a0.q.bias is None)


@pytest.mark.parametrize("constants", ["mean", "position"])
def test_a_pruned_projection_with_any_kind_of_bias(constants):
    graph_module = canonical()
    small = run_passes(graph_module, [DeleteHeads(plan_of(graph_module, {"a0": [1, 3]}, constants))]).graph_module
    check(FoldBiases(), small, PIXELS, small(PIXELS).detach(), changes=True, nodes=0, tolerance=1e-12)


def test_a_projection_without_bias_gets_one():
    graph_module = canonical("torchvision")
    graph_module.a0.out.bias = None
    folded = check(FoldBiases(), graph_module, PIXELS, graph_module(PIXELS).detach(), changes=True, tolerance=1e-12)
    assert folded.a0.out.bias.shape == (32,)
