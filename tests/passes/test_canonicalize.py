import pytest
import torch

from passes.base import PassError, run_passes
from passes.canonicalize import Canonicalize
from passes.dialect import Attention
from passes.match_mlp import match_mlp
from passes.mlp import Mlp
from passes.stream import is_canonical, read_sites
from tests.support.checks import assert_equal, assert_trainable, canonical, traced
from tests.support.families import FAMILIES, HandWritten, images, make
from vitfx.graph.trace import aten_graph, to_canonical

ROUNDED = {
    "timm-layerscale-average-registers",
    "hf-dinov2",
    "hf-dinov2-registers",
    "careless",
    "timm-beit",
    "timm-side-by-side",
    "timm-parallel-fused",
    "hf-dinov3",
}
"""Tracing folds factors or norms into their weights or resamples their positions: in float32 this rounds."""


@pytest.mark.parametrize("name", FAMILIES)
def test_identity_of_every_family(name):
    model = make(name)
    found = traced(name)
    assert found.notes == ()
    is_canonical(found.graph_module)
    sites = read_sites(found.graph_module)
    assert [site.name for site in sites] == ["a0", "m0", "a1", "m1", "a2", "m2"]
    with torch.no_grad():
        # Another batch than the one traced, so that nothing of the example is baked in.
        assert_equal(found.graph_module(images(5)), model(images(5)), 1e-5)
        assert_equal(found.graph_module(images(1)), model(images(1)), 1e-5)


@pytest.mark.parametrize("name", [name for name in FAMILIES if "eager" not in name])
def test_identity_in_float64(name):
    """Hugging Face's eager attention is left out: its softmax is float32 whatever the model is."""
    model = make(name).double()
    graph_module = traced(name, torch.float64).graph_module if name in ROUNDED else canonical(name)
    with torch.no_grad():
        assert_equal(graph_module(images(3, torch.float64)), model(images(3, torch.float64)), 1e-10)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_canonical_graph_trains_and_reads_like_the_figure(name):
    graph_module = traced(name).graph_module
    assert_trainable(graph_module, images(2))
    layer = [str(node.target) for node in graph_module.graph.nodes if node.name.startswith(("a1", "m1"))]
    assert [target.split()[0] for target in layer] == ["a1_norm", "a1", "<built-in", "m1_norm", "m1", "<built-in"]


def test_the_model_is_not_touched_and_shares_no_memory():
    model = make("torchvision").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph_module = to_canonical(model, images(2)).graph_module
    with torch.no_grad():
        for parameter in graph_module.parameters():
            parameter.zero_()
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_settings_are_recognised():
    sites = read_sites(canonical("timm-layerscale-average-registers"))
    attention, mlp = sites[0].module, sites[1].module
    assert isinstance(attention, Attention)
    assert (attention.units, attention.head_dim, attention.channels) == (4, 8, 8)
    assert attention.scale == pytest.approx(8**-0.5)
    assert isinstance(mlp, Mlp)
    assert (mlp.units, mlp.activation) == (128, "gelu")


def test_a_value_that_differs_is_not_believed(monkeypatch):
    """A match is run against the recorded values: with another activation in its table, every MLP keeps its own."""
    monkeypatch.setitem(__import__("passes.mlp").mlp.ACTIVATIONS, "gelu", torch.tanh)
    found = to_canonical(make("timm"), images(2))
    modules = [site.module for site in read_sites(found.graph_module)]
    assert [module.activation_name for module in modules[1::2]] == ["gelu", "gelu_1", "gelu_2"]
    with torch.no_grad():
        assert_equal(found.graph_module(images(3)), make("timm")(images(3)), 1e-5)


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float32, 1.001), (torch.float64, 1 + 1e-7), (torch.float32, 0)])
def test_a_match_that_is_off_is_not_believed(dtype, factor, monkeypatch):
    """Whatever a match says it is, it must give the recorded values, to rounding."""

    def wrong(*arguments):
        module = match_mlp(*arguments)
        with torch.no_grad():
            module.out.weight.mul_(factor)
        return module

    monkeypatch.setattr("passes.canonicalize.match_mlp", wrong)
    found = to_canonical(make("timm").to(dtype), images(2, dtype))
    assert [site.name for site in read_sites(found.graph_module)] == ["a0", "a1", "a2"]
    assert all("is not prunable: the matched Mlp is off by" in note for note in found.notes)
    with torch.no_grad():
        assert_equal(found.graph_module(images(3, dtype)), make("timm").to(dtype)(images(3, dtype)), 1e-5)


def test_one_image_and_two_answers_are_refused():
    with pytest.raises(PassError, match="a batch of 1: give two, to tell the axes apart"):
        Canonicalize(images(1))

    class Twice(HandWritten):
        def forward(self, x):
            return super().forward(x), x

    with pytest.raises(PassError, match="the model returns 2 tensors"):
        run_passes(aten_graph(Twice().eval(), images(2)), [Canonicalize(images(2))])


def test_canonical_graphs_are_taken_as_they_are():
    graph_module = traced("timm").graph_module
    again = to_canonical(graph_module, images(2)).graph_module
    assert again is not graph_module
    assert again.code == graph_module.code
    assert torch.equal(again(images(2)), graph_module(images(2)))
