"""Queries that share keys and values are one head: however the model's code repeats them, nothing is stored twice."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from passes.stream import read_sites
from tests.support.checks import assert_equal, plan_of
from tests.support.families import HandWritten, images, randomised
from vitfx.graph.trace import to_canonical
from vitfx.graph.verify import ablated_logits, rewrite

PIXELS = images(3, torch.float64)


def by_sdpa(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def by_interleaving(q, k, v):
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], dim=1) for part in (k, v))
    return (q @ k.mT / 8**0.5).softmax(-1) @ v


def by_expansion(q, k, v):
    """As Hugging Face's repeat_kv does."""
    batch, heads, tokens, size = k.shape
    shape = (batch, heads, q.shape[1] // heads, tokens, size)
    k, v = (part[:, :, None].expand(shape).reshape(batch, -1, tokens, size) for part in (k, v))
    return F.scaled_dot_product_attention(q, k, v)


def by_tiles(q, k, v):
    """Query h reads key h modulo 2: those of one group are no neighbours."""
    times = q.shape[1] // k.shape[1]
    return F.scaled_dot_product_attention(q, k.repeat(1, times, 1, 1), v.repeat(1, times, 1, 1))


class Grouped(HandWritten):
    """Four queries of eight channels, fewer keys and values, a bias for each query."""

    def __init__(self, attend, keys, biased=False):
        super().__init__(depth=2)
        self.attend, self.keys = attend, keys
        self.biases = nn.Parameter(torch.zeros(4, 16, 16)) if biased else None
        for block in self.blocks:
            block["qkv"] = nn.Linear(32, 32 + 16 * keys)

    def attention(self, block, x):
        parts = block["qkv"](x).split([32, 8 * self.keys, 8 * self.keys], dim=-1)
        q, k, v = (part.unflatten(-1, (-1, 8)).transpose(1, 2) for part in parts)
        if self.biases is not None:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self.biases, enable_gqa=True)
        else:
            attended = self.attend(q, k, v)
        return block["proj"](attended.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("keys", [1, 2])
@pytest.mark.parametrize("attend", [by_sdpa, by_interleaving, by_expansion, by_tiles])
def test_identity_and_deletion(attend, keys):
    _check(Grouped(attend, keys), keys)


def test_a_group_takes_its_queries_biases():
    graph_module = _check(Grouped(by_sdpa, 2, biased=True), 2)
    plan = plan_of(graph_module, {"a0": [0]})
    small = rewrite(graph_module, plan).graph_module
    assert small.a0.core.position_bias.shape == (2, 16, 16)
    assert_equal(small(PIXELS), ablated_logits(graph_module, plan, PIXELS), 1e-9)


def _check(model, keys):
    model = randomised(model).double()
    found = to_canonical(model, PIXELS)
    assert found.notes == ()
    attention = read_sites(found.graph_module)[0].module
    assert (attention.units, attention.core.group, attention.channels) == (keys, 4 // keys, 32 // keys)
    assert attention.k.out_features == 8 * keys
    assert_equal(found.graph_module(PIXELS), model(PIXELS).detach(), 1e-10)
    plan = plan_of(found.graph_module, {"a0": [keys - 1], "m1": range(7)})
    small = rewrite(found.graph_module, plan).graph_module
    assert_equal(small(PIXELS), ablated_logits(found.graph_module, plan, PIXELS), 1e-9)
    return found.graph_module


class SharedKeys(Grouped):
    """One key, and a value for each query."""

    def attention(self, block, x):
        q, k, v = (part.unflatten(-1, (-1, 8)).transpose(1, 2) for part in block["qkv"](x).split([32, 8, 32], dim=-1))
        return block["proj"](by_interleaving(q, k, v).transpose(1, 2).flatten(2))


def test_shared_keys_alone_make_no_group():
    model = SharedKeys(None, 1)
    for block in model.blocks:
        block["qkv"] = nn.Linear(32, 72)
    model = randomised(model).double()
    found = to_canonical(model, PIXELS)
    attention = read_sites(found.graph_module)[0].module
    assert (attention.units, attention.core.group) == (4, 1)
    assert_equal(found.graph_module(PIXELS), model(PIXELS).detach(), 1e-10)
