"""LayerNorms lose their parameters to what reads them, and the values stay."""

import pytest
import torch
from torch import nn

from passes.base import run_passes
from passes.delete_heads import DeleteHeads
from passes.fold_norms import FoldNorms
from tests.support.checks import canonical, check, plan_of
from tests.support.families import FAMILIES, images

PIXELS = images(3, torch.float64)
OPAQUE_HEAD = ("timm-layerscale-average-registers", "timm-distilled", "hf-deit", "hf-dinov2", "hf-dinov2-registers")


@pytest.mark.parametrize("name", FAMILIES)
def test_fold_norms(name):
    graph_module = canonical(name)
    expected = graph_module(PIXELS).detach()
    folded = check(FoldNorms(), graph_module, PIXELS, expected, changes=True, nodes=0, tolerance=1e-12)
    left = [key for key, one in folded.named_children() if isinstance(one, nn.LayerNorm) and one.elementwise_affine]
    has_norm = hasattr(folded, "norm")
    assert left == (["norm"] if name in OPAQUE_HEAD and has_norm else [])


def test_a_pruned_graph_with_biases_for_each_token():
    graph_module = canonical()
    plan = plan_of(graph_module, {"a0": [1, 3], "a2": range(4)}, "position")
    small = run_passes(graph_module, [DeleteHeads(plan)]).graph_module
    check(FoldNorms(), small, PIXELS, small(PIXELS).detach(), changes=True, nodes=0, tolerance=1e-12)


def test_a_linear_without_bias_gets_the_shift():
    graph_module = canonical("hand-written")
    assert graph_module.a0.q.bias is None
    folded = run_passes(graph_module, [FoldNorms()]).graph_module
    assert folded.a0.q.bias is not None


def test_a_norm_without_shift_gives_no_bias():
    graph_module = canonical("hand-written")
    graph_module.a0_norm.bias = None
    folded = check(FoldNorms(), graph_module, PIXELS, graph_module(PIXELS).detach(), changes=True, tolerance=1e-12)
    assert folded.a0.q.bias is None
