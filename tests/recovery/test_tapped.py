"""vitfx.recovery.teacher: streams behind sublayers, by the modules themselves."""

from __future__ import annotations

import torch

from tests.support.recover_runs import student, teacher
from vitfx.graph.stages import read_stages
from vitfx.recovery.teacher import TappedModel, shared_sublayers

PIXELS = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_streams_are_those_of_the_stages() -> None:
    graph_module = student()
    names = shared_sublayers(graph_module, teacher())
    assert names == ("a0", "m0", "a1")
    logits, streams = TappedModel(graph_module, names)(PIXELS)
    assert torch.equal(logits, graph_module(PIXELS))
    stream, wanted = PIXELS, {}
    for stage in read_stages(graph_module):
        stream = stage(stream)
        wanted[stage.name] = stream
    for name, found in zip(names, streams, strict=True):
        torch.testing.assert_close(found, wanted[name])


def test_gradients_go_into_the_graphs_own_parameters() -> None:
    graph_module = student()
    _, (stream,) = TappedModel(graph_module, ("a0",))(PIXELS)
    stream.square().sum().backward()
    assert graph_module.get_submodule("a0").out.weight.grad is not None
    assert graph_module.get_submodule("a1").out.weight.grad is None


def test_nothing_in_common_is_nothing() -> None:
    gone = {"a0": (0, 1), "m0": tuple(range(16)), "a1": (0, 1)}
    assert shared_sublayers(student(gone), student({"m1": tuple(range(16))})) == ()
