import pytest
import torch
from torch import nn
from torch.fx import Graph, GraphModule

from tests.support import traces
from tests.support.families import HandWritten, images, make, randomised
from tests.support.traces import aten_graph_once
from vitfx.graph.trace import aten_graph


@pytest.fixture
def untraced(monkeypatch):
    """An empty graph for any model: what is looked at is how many there are."""
    monkeypatch.setattr(traces, "aten_graph", lambda module, example: GraphModule(nn.Module(), Graph()))


@pytest.fixture
def kept(monkeypatch):
    """An empty store, which says how many traces were made."""
    store = {}
    monkeypatch.setattr(traces, "_GRAPHS", store)
    return store


def test_other_weights_take_the_same_trace_and_are_their_own(kept):
    """The family has buffers as well."""
    aten_graph_once(make("timm-eva02"), images(2))
    model = make("timm-eva02")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    graph_module, anew = aten_graph_once(model, images(2)), aten_graph(model, images(2))
    assert len(kept) == 1
    assert graph_module.code == anew.code
    assert all(parameter is dict(anew.named_parameters())[name] for name, parameter in graph_module.named_parameters())
    with torch.no_grad():
        assert torch.equal(graph_module(images(3)), anew(images(3)))


def test_other_settings_code_buffers_and_images_are_traced_anew(kept, untraced, monkeypatch):
    model = randomised(HandWritten(depth=1))
    model.register_buffer("factor", torch.ones(()))
    aten_graph_once(model, images(2))
    model.factor.mul_(2)
    aten_graph_once(model, images(2))
    model.heads = 4
    aten_graph_once(model, images(2))
    aten_graph_once(model, images(3))
    before = HandWritten.forward
    monkeypatch.setattr(HandWritten, "forward", lambda self, x: before(self, 2 * x))
    aten_graph_once(model, images(2))
    assert len(kept) == 5


def test_a_class_within_a_test_is_traced_each_time(kept, untraced):
    class Twice(HandWritten):
        def forward(self, x):
            return super().forward(2 * x)

    aten_graph_once(randomised(Twice(depth=1)), images(2))
    assert not kept
