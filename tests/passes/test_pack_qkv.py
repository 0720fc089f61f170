import pytest
import torch

from passes.base import run_passes
from passes.delete_heads import DeleteHeads
from passes.deployment import PackedAttention
from passes.dialect import Attention
from passes.pack_qkv import PackQkv
from tests.support.checks import canonical, check, plan_of
from tests.support.families import images

PIXELS = images(3, torch.float64)
CHECKED = {"changes": True, "nodes": 0, "tolerance": 1e-12, "keeps_canonical": False}


@pytest.mark.parametrize("name", ["vitfx", "hf-dinov2", "hand-written", "careless"])
def test_pack_qkv(name):
    graph_module = canonical(name)
    made = check(PackQkv(), graph_module, PIXELS, graph_module(PIXELS).detach(), **CHECKED)
    assert isinstance(made.a0, PackedAttention)
    assert made.a0.qkv.weight.shape == (96, 32)
    assert (made.a0.qkv.bias is None) == (graph_module.a0.q.bias is None)


def test_another_number_of_heads_in_each_layer():
    graph_module = canonical()
    small = run_passes(graph_module, [DeleteHeads(plan_of(graph_module, {"a0": [1], "a2": [0, 1, 2]}))]).graph_module
    made = check(PackQkv(), small, PIXELS, small(PIXELS).detach(), **CHECKED)
    assert [made.get_submodule(name).sizes for name in ("a0", "a1", "a2")] == [(24,) * 3, (32,) * 3, (8,) * 3]


def test_values_of_another_width_and_a_bias_of_the_queries_alone():
    graph_module = canonical()
    other = Attention(32, 2, 8, 4, 0.3, (True, False, False), (32,)).double()
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    graph_module.a1 = other
    made = check(PackQkv(), graph_module, PIXELS, graph_module(PIXELS).detach(), **CHECKED)
    assert made.a1.sizes == (16, 16, 8)
