"""Few queries read the stream without keys and values, where that is less arithmetic."""

import pytest
import torch

from passes.absorb_keys import AbsorbKeys
from passes.base import run_passes
from passes.delete_heads import DeleteHeads
from passes.deployment import AbsorbedAttention, NarrowedAttention
from passes.narrow_to_cls import NarrowToCls
from tests.support.checks import canonical, check, plan_of
from tests.support.families import images

PIXELS = images(3, torch.float64)
CHECKED = {"tolerance": 1e-12, "keeps_canonical": False, "nodes": 0}


def narrowed(name="vitfx"):
    return run_passes(canonical(name), [NarrowToCls(PIXELS)]).graph_module


@pytest.mark.parametrize("name", ["vitfx", "timm-distilled", "hf-vit"])
def test_absorb_keys(name):
    graph_module = narrowed(name)
    made = check(AbsorbKeys(), graph_module, PIXELS, graph_module(PIXELS).detach(), changes=True, **CHECKED)
    assert isinstance(made.a2, AbsorbedAttention)


def test_a_pruned_attention_without_biases():
    graph_module = canonical()
    small = run_passes(graph_module, [DeleteHeads(plan_of(graph_module, {"a2": [0, 2]}, "position"))]).graph_module
    small.a2.v.bias = small.a2.k.bias = None
    small = run_passes(small, [NarrowToCls(PIXELS)]).graph_module
    made = check(AbsorbKeys(), small, PIXELS, small(PIXELS).detach(), changes=True, **CHECKED)
    assert made.a2.value_bias is None
    assert made.a2.units == 2


@pytest.mark.parametrize("count", [6, 17])
def test_many_queries_keep_their_keys(count):
    """Of 8 channels and 17 tokens: 5 take 5·(8 + 17) = 125 products where keys take 8·17 = 136, and 6 take 150."""
    graph_module = narrowed()
    graph_module.a2.count = graph_module.a2_tokens.count = count
    result = check(AbsorbKeys(), graph_module, PIXELS, graph_module(PIXELS).detach(), changes=False, **CHECKED)
    assert isinstance(result.a2, NarrowedAttention)
    assert f"{count} queries of 8 channels: keys are cheaper" in run_passes(graph_module, [AbsorbKeys()]).notes[0]


def test_a_graph_that_was_not_narrowed():
    graph_module = canonical()
    check(AbsorbKeys(), graph_module, PIXELS, graph_module(PIXELS).detach(), changes=False, nodes=0)
