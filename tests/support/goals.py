"""Goals on a small model of the digits, with made-up times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

from tests.support.prune_runs import SIZES, model
from vitfx.deploy.deployment import NAMES, default_deployment
from vitfx.graph.trace import to_canonical
from vitfx.images.image_set import Images
from vitfx.pruning import target_bench as goal_bench
from vitfx.pruning.goal import Goal, Target
from vitfx.pruning.latency_table import LatencyTable
from vitfx.pruning.target_bench import GoalRequest

CPU = torch.device("cpu")


def goal_images() -> Images:
    """48 pictures of noise, with labels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(48, 1, 8, 8, generator=generator)
    return Images(pixels, torch.arange(48) % 10, tuple(map(str, range(48))))


def times_by_units(monkeypatch: pytest.MonkeyPatch, cache: Path) -> list[LatencyTable]:
    """Times that go with the units, in place of measured ones, and a cache of the test's own; returns a growing list:
    the table once for each measurement."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    points = {
        name: tuple((count, 0.5 * count / units) for count in range(1, units + 1))
        for layer in range(SIZES["depth"])
        for name, units in ((f"a{layer}", SIZES["heads"]), (f"m{layer}", SIZES["mlp"]))
    }
    made = LatencyTable(3.0, 2.5, points)
    calls: list[LatencyTable] = []

    def measured(*_: Any) -> LatencyTable:
        calls.append(made)
        return made

    monkeypatch.setattr(goal_bench, "measure_table", measured)
    return calls


def asked(kind: str, value: float, **options: Any) -> GoalRequest:
    return GoalRequest(Goal(kind, value), Target("cpu", 2), default_deployment(NAMES, CPU, portable=False), **options)


def without_biases() -> GraphModule:
    """A model whose sublayers write without a bias, so that every refit adds one."""
    bare = model()
    for block in bare.blocks:
        block.attention.out[0].bias = block.mlp[3].bias = None
    return to_canonical(bare, torch.zeros(2, 1, 8, 8)).graph_module
