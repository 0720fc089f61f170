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
from vitfx.recovery.teacher import TappedModel, like_merged, shared_sublayers

PIXELS = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_streams_are_those_of_the_stages() -> None:
    graph_module = student()
    names = shared_sublayers(graph_module, teacher())
    assert names == ("a0", "m0", "a1")
    logits, streams, groups = TappedModel(graph_module, names)(PIXELS)
    assert groups == (None, None, None)
    assert torch.equal(logits, graph_module(PIXELS))
    stream, wanted = PIXELS, {}
    for stage in read_stages(graph_module):
        stream = stage(stream)
        wanted[stage.name] = stream
    for name, found in zip(names, streams, strict=True):
        torch.testing.assert_close(found, wanted[name])


def test_gradients_go_into_the_graphs_own_parameters() -> None:
    graph_module = student()
    _, (stream,), _ = TappedModel(graph_module, ("a0",))(PIXELS)
    stream.square().sum().backward()
    assert graph_module.get_submodule("a0").out.weight.grad is not None
    assert graph_module.get_submodule("a1").out.weight.grad is None


def test_nothing_in_common_is_nothing() -> None:
    gone = {"a0": (0, 1), "m0": tuple(range(16)), "a1": (0, 1)}
    assert shared_sublayers(student(gone), student({"m1": tuple(range(16))})) == ()


def test_behind_merges_a_token_is_compared_with_the_average_of_those_that_it_stands_for():
    whole = canonical().float()
    merged = run_passes(whole, [MergeBySchedule(TokenSchedule(((0, 3), (1, 2))), images(2))]).graph_module
    names = shared_sublayers(merged, whole)
    assert names == ("a0", "m0", "a1", "m1", "a2", "m2")
    (_, ours, groups), (_, theirs, none) = (TappedModel(each, names)(images(2)) for each in (merged, whole))
    assert none == (None,) * 6 and groups[0] is None
    assert [stream.shape[1] for stream in ours] == [17, 14, 14, 12, 12, 12]
    compared = like_merged(theirs, ours, groups)
    assert compared[0] is theirs[0]
    for stream, group, averages in zip(theirs[1:], groups[1:], compared[1:], strict=True):
        for image in range(2):
            for token in range(averages.shape[1]):
                mean = stream[image, group[image] == token].mean(0)
                torch.testing.assert_close(averages[image, token], mean)
    sizes = torch.stack([torch.bincount(group, minlength=14) for group in groups[1]])
    assert sizes.shape == (2, 14) and sizes[:, 0].tolist() == [1, 1] and sizes.sum() == 34


def test_restored_tokens_are_compared_one_by_one_and_a_merging_teacher_only_before_its_merge():
    averaged = canonical("hand-written").float()
    merged = run_passes(averaged, [MergeBySchedule(TokenSchedule(((0, 3),)), images(2))]).graph_module
    names = shared_sublayers(merged, averaged)
    _, ours, groups = TappedModel(merged, names)(images(2))
    assert [group is None for group in groups] == [name == "a0" for name in names]
    assert [stream.shape[1] for stream in ours] == [16, *[13] * (len(names) - 1)]
    assert shared_sublayers(averaged, merged) == ("a0",)
