"""vitfx.recovery.teacher: streams behind sublayers, by the modules themselves."""

from __future__ import annotations

import torch

from passes.base import run_passes
from passes.merge_tokens import MergeBySchedule
from passes.token_schedule import TokenSchedule
from tests.support.checks import canonical
from tests.support.families import images
from tests.support.recover_runs import student, teacher
from vitfx.graph.stages import read_stages
from vitfx.recovery.teacher import TappedModel, protected_tokens, shared_sublayers

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


def test_behind_merges_the_tokens_that_never_merge_are_compared():
    whole = canonical().float()
    merged = run_passes(whole, [MergeBySchedule(TokenSchedule(((0, 3),)), images(2))]).graph_module
    first = protected_tokens(merged)
    assert first == dict.fromkeys(("m0", "a1", "m1", "a2", "m2"), 1)
    names = shared_sublayers(merged, whole)
    assert names == ("a0", *first)
    ours, theirs = (TappedModel(each, names, first)(images(2))[1] for each in (merged, whole))
    assert [stream.shape[1] for stream in ours] == [stream.shape[1] for stream in theirs] == [17, 1, 1, 1, 1, 1]
    averaged = canonical("hand-written").float()
    all_merge = run_passes(averaged, [MergeBySchedule(TokenSchedule(((0, 3),)), images(2))]).graph_module
    assert shared_sublayers(all_merge, averaged) == ("a0",)
