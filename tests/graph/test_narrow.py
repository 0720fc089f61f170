"""Carrying only the tokens that the logits read changes nothing, and is done where it can be."""

import pytest
import torch
from torch import nn

from passes.token_use import tokens_read
from tests.support.checks import assert_equal, canonical, plan_of
from tests.support.families import images
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.ablation import make_reference
from vitfx.graph.narrow import NarrowingStage, WideningStage, narrow
from vitfx.graph.stages import read_stages
from vitfx.graph.verify import rewrite

PIXELS = images(5, torch.float64)


def logits_of(stages):
    stream = PIXELS
    with torch.no_grad():
        for stage in stages:
            stream = stage(stream)
    return stream


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("vitfx", [0]), ("torchvision", [0]), ("timm-distilled", [0, 1]), ("hf-vit", [0]), ("hf-dinov2", None)],
)
def test_the_logits_are_the_whole_models(name, tokens):
    stages = read_stages(canonical(name))
    found = narrow(stages, PIXELS)
    assert_equal(logits_of(found.stages), logits_of(stages), 1e-12)
    if tokens is not None:
        assert found.tokens.tolist() == tokens
        assert isinstance(found.stages[found.start], NarrowingStage)
        assert isinstance(found.stages[found.end], WideningStage)


def test_an_average_over_all_tokens_stays_as_it_is():
    stages = read_stages(canonical("torch-encoder"))
    found = narrow(stages, PIXELS)
    assert found.tokens is None or len(found.tokens) > 0
    assert_equal(logits_of(found.stages), logits_of(stages), 1e-12)


def test_constants_of_each_token_are_cut():
    graph_module = canonical("torchvision")
    plan = plan_of(graph_module, {"a2": [1], "m2": range(5), "m1": range(48)}, "position")
    stages = read_stages(rewrite(graph_module, plan).graph_module)
    assert any(value.dim() == 2 for name, value in stages[-3].module.named_parameters() if name == "out.bias")
    found = narrow(stages, PIXELS)
    assert found.tokens is not None
    assert_equal(logits_of(found.stages), logits_of(stages), 1e-12)


def test_references_of_each_token_are_cut_behind_the_last_attention_only():
    graph_module = canonical("torchvision")
    graph = EdgeGraph(graph_module, {f"m{i}": [range(48)] for i in range(3)})
    found = narrow(graph.stages, PIXELS)
    reference = make_reference(graph, PIXELS, "position-mean")
    cut = found.reference(reference)
    assert cut["m1"].shape == reference["m1"].shape
    assert cut["m2"].shape == (1, 48)
    assert torch.equal(cut["a2"][0], reference["a2"][0])


def test_references_are_cut_to_the_very_tokens_that_are_carried():
    """Here all but the class token and two registers, which come first."""
    graph_module = canonical("timm-layerscale-average-registers")
    hidden = graph_module.m0.units
    graph = EdgeGraph(graph_module, {f"m{i}": [range(hidden)] for i in range(3)})
    found = narrow(graph.stages, PIXELS)
    assert found.tokens.tolist() == list(range(3, 19))
    reference = make_reference(graph, PIXELS, "position-mean")
    assert torch.equal(found.reference(reference)["m2"], reference["m2"][3:])


class _Reads(nn.Module):
    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def forward(self, stream):
        return self.rule(stream)


@pytest.mark.parametrize(
    ("rule", "tokens"),
    [
        (lambda x: x[:, 2] * 3, (2,)),
        (lambda x: x[:, 1:4].mean(1), (1, 2, 3)),
        (lambda x: x.amax(1), tuple(range(6))),
        (lambda x: x.detach()[:, 4] + x[:, 0], tuple(range(6))),
    ],
)
def test_tokens_read(rule, tokens):
    """The last reads a token without a gradient, which the second look finds: then all are taken."""
    assert tokens_read(_Reads(rule), torch.zeros(2, 6, 4)) == tokens
