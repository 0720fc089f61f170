"""Attention pooling: recognised, deleted, exported, kept in files."""

import pytest
import torch

from passes.cost import measure_cost, predict_cost
from passes.pooled_attention import PooledAttention
from passes.stream import is_canonical, read_sites
from tests.support.checks import assert_equal, assert_trainable, canonical, plan_of, tokens, traced
from tests.support.families import POOLED, images, make
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.deploy.export import compare_onnx, export_onnx
from vitfx.deploy.lowering import REWRITES, lower
from vitfx.graph.verify import ablated_logits, rewrite
from vitfx.models.graph_json import decode, encode
from vitfx.pruning.cost_model import flops_price
from vitfx.support.errors import UserError

PIXELS = images(3, torch.float64)
SUBLAYERS = ["a0", "m0", "a1", "m1", "a2", "m2", "a3", "m3"]


@pytest.mark.parametrize("name", POOLED)
def test_identity(name):
    found = traced(name)
    assert found.notes == ()
    is_canonical(found.graph_module)
    assert [site.name for site in read_sites(found.graph_module)] == SUBLAYERS
    assert_equal(found.graph_module(images(5)), make(name)(images(5)), 1e-5)
    assert_trainable(found.graph_module, images(2))
    pool = found.graph_module.a3
    assert isinstance(pool, PooledAttention)
    assert pool.queries == (3 if name == "timm-latents" else 1)


@pytest.mark.parametrize("name", POOLED)
@pytest.mark.parametrize(
    "units",
    [
        {"a3": [1], "m3": range(20), "a1": [0]},
        {"a3": [0], "m3": "all", "m2": "all", "a2": "all"},
        {"a3": "all", "m0": range(3)},
    ],
)
def test_deleted_equals_ablated(name, units):
    graph_module = canonical(name)
    totals = {site.name: range(site.module.units) for site in read_sites(graph_module)}
    plan = plan_of(graph_module, {key: totals[key] if chosen == "all" else chosen for key, chosen in units.items()})
    small = rewrite(graph_module, plan).graph_module
    assert_equal(small(PIXELS), ablated_logits(graph_module, plan, PIXELS), 1e-9)
    image = PIXELS.shape[1:]
    predicted = predict_cost(graph_module, plan, measure_cost(graph_module, image), tokens(graph_module))
    assert measure_cost(small, image) == predicted


def test_flops_behind_a_pool_are_those_of_its_tokens():
    graph_module = canonical("timm-map")
    price = flops_price(graph_module, PIXELS.shape[1:], tokens(graph_module))
    assert float(price.sublayers["m3"][-1]) * 16 == float(price.sublayers["m2"][-1])
    assert price.rest >= 0


@pytest.mark.parametrize("name", ["timm-latents", "hf-siglip"])
def test_files_and_rewrites(name, tmp_path):
    graph_module = traced(name).graph_module.eval()
    plan = plan_of(graph_module, {"a3": [1], "m3": range(5)})
    artifact = rewrite(graph_module, plan).graph_module.eval()
    loaded = decode(encode(artifact))
    loaded.load_state_dict(artifact.state_dict())
    assert torch.equal(loaded.eval()(images(3)), artifact(images(3)))
    lowered = lower(artifact, REWRITES, images(3))
    assert {"fold_patches", "fold_norms", "fold_biases"} <= set(lowered.applied)
    path = tmp_path / "pruned.onnx"
    export_onnx(lowered.graph_module, path, images(2), {})
    assert compare_onnx(path, artifact, images(5)) < 1e-4


def test_the_edge_graph_says_what_it_can_not_take_apart():
    with pytest.raises(UserError, match=r"a3 pools the stream by attention .* choose `granularity` head or block"):
        EdgeGraph(canonical("timm-map"), {f"m{i}": [range(128)] for i in range(4)}, "qkv")
