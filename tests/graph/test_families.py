"""Every family through the whole compiler: trace, prune a random plan, verify, export, run in ONNX Runtime."""

import random

import onnx
import pytest
import torch

from passes.stream import read_sites
from tests.support.checks import assert_equal, plan_of, traced
from tests.support.families import FAMILIES, images
from tests.support.slow import REPRESENTATIVE, slow_but
from vitfx.deploy.export import compare_onnx, export_onnx
from vitfx.deploy.runtime import open_session
from vitfx.graph.verify import ablated_logits, rewrite, verify


@pytest.mark.parametrize("name", slow_but(REPRESENTATIVE, FAMILIES))
def test_from_a_model_to_onnx_runtime(name, tmp_path):
    graph_module = traced(name).graph_module
    plan = plan_of(graph_module, _random_units(graph_module, name), "mean")
    artifact = rewrite(graph_module, plan).graph_module.eval()
    assert verify(graph_module, artifact, plan, images(6)).passed
    path = tmp_path / "pruned.onnx"
    export_onnx(artifact, path, images(2), {})
    assert compare_onnx(path, artifact, images(5)) < 1e-4
    # The oracle and what a user runs, with nothing in between, at a batch that was never traced.
    got = open_session(path, torch.device("cpu")).run(images(7))
    assert_equal(got, ablated_logits(graph_module, plan, images(7)), 1e-4)
    attentions = [node for node in onnx.load(path).graph.node if node.op_type == "Attention"]
    assert len(attentions) == sum(site.module.kind == "head" for site in read_sites(artifact)) == 2


def _random_units(graph_module, name):
    """One attention sublayer and one MLP whole, parts of the others."""
    draw = random.Random(name)
    units = {}
    for index, site in enumerate(read_sites(graph_module)):
        every = range(site.module.units)
        units[site.name] = list(every) if index in (1, 2) else sorted(draw.sample(every, draw.randrange(1, len(every))))
    return units
