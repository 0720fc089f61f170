"""Readings: what each stage reads, computed once, in the caller's hands before the next stage runs."""

from __future__ import annotations

import pytest
import torch

from tests.support.checks import assert_equal, canonical
from tests.support.families import images
from vitfx.graph.stages import KeptBatches, read_stages, run_stages, streams_at

PIXELS = images(5, torch.float64)


def test_readings_are_of_the_models_own_run() -> None:
    graph_module = canonical()
    stages = read_stages(graph_module)
    with torch.no_grad():
        for index, reading in enumerate(streams_at(stages, PIXELS)):
            assert torch.equal(reading.stream, run_stages(stages[:index], PIXELS))
            if reading.stage.sublayer is not None:
                assert torch.equal(reading.inner, reading.stage.inner(reading.stream))
        assert torch.equal(reading.behind, graph_module(PIXELS))


def test_batches_make_no_difference() -> None:
    stages = read_stages(canonical())
    with torch.no_grad():
        pairs = zip(streams_at(stages, PIXELS), streams_at(stages, PIXELS, batch=2), strict=True)
        for whole, parts in pairs:
            assert_equal(parts.stream, whole.stream, 1e-12)
            if whole.stage.sublayer is not None:
                assert_equal(parts.inner, whole.inner, 1e-12)


def test_what_the_caller_sets_is_what_later_stages_read() -> None:
    stages = read_stages(canonical())
    with torch.no_grad():
        readings = streams_at(stages, PIXELS)
        first = next(readings)
        first.behind = torch.zeros_like(first.behind)
        assert torch.equal(next(readings).stream, first.behind)


def test_gradients_by_inner_channels_reach_the_logits() -> None:
    inners = []
    for reading in streams_at(read_stages(canonical()), PIXELS):
        if reading.stage.sublayer is not None:
            inners.append(reading.inner)
    gradients = torch.autograd.grad(reading.behind.sum(), inners)
    assert all(bool(gradient.any()) for gradient in gradients)


@pytest.mark.parametrize("room", [0, 25, 1000])
@pytest.mark.parametrize("pairs", [False, True])
def test_kept_batches_are_computed_again_only_where_they_take_too_much(
    room: int, pairs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitfx.graph.stages._KEPT", room)
    inputs, asked = torch.arange(35.0).reshape(7, 5).split(2), []

    def function(batch: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, str]:
        asked.append(len(batch))
        return (batch + 1, "key") if pairs else batch + 1

    batches = KeptBatches(function, inputs)
    for _ in range(2):
        values = [value[0] if pairs else value for value in batches]
        assert torch.equal(torch.cat(values), torch.arange(35.0).reshape(7, 5) + 1)
    kept = {0: 0, 25: 2, 1000: 4}[room]
    assert len(asked) == 2 * len(inputs) - kept
