"""What a goal measures on its target: kept times, and files in float16 and int8."""

from __future__ import annotations

import math
from dataclasses import replace

import onnx
import torch
from torch import nn

from tests.support.goals import CPU, asked
from tests.support.prune_runs import model
from vitfx.deploy import runtimes
from vitfx.deploy.deployment import NAMES, default_deployment, deploy
from vitfx.deploy.export import to_onnx
from vitfx.graph.trace import to_canonical
from vitfx.pruning import target_bench as goal_bench
from vitfx.pruning.goal import KL, SPEEDUP, Goal, Target
from vitfx.pruning.iterative_pruner import IterativePruner
from vitfx.pruning.latency_table import LatencyTable
from vitfx.pruning.target_bench import GoalRequest
from vitfx.support.progress import Silent


def bench(images, one):
    original = to_canonical(model(), images.pixels[:2]).graph_module
    return goal_bench.TargetBench(model(), original, images.pixels, one, Silent())


def test_measured_times_are_kept_and_made_anew_when_asked(images, table):
    for _ in range(2):
        bench(images, asked(SPEEDUP, 1.2)).price()
    assert len(table) == 1
    bench(images, asked(SPEEDUP, 1.2, fresh=True)).price()
    assert len(table) == 2


def test_doubtful_times_are_told_and_not_kept(images, table, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(Silent, "say", lambda self, sentence: told.append(sentence))
    monkeypatch.setattr(LatencyTable, "doubt", lambda self, flops: f"doubtful beside {flops.unit}")
    for _ in range(2):
        bench(images, asked(SPEEDUP, 1.2)).price()
    assert len(table) == 2 and told.count("doubtful beside FLOPs") == 2


def test_a_real_measurement_is_a_ratio(images, table):
    found = bench(images, asked(KL, 1))
    pruner = IterativePruner(found.original, images.pixels, None, scored=8, seed=0, watcher=Silent())
    assert 0 < found.measure(pruner.start).value < math.inf


def test_a_damaged_or_unwritable_cache_costs_time_and_nothing_else(images, table, monkeypatch, tmp_path):
    bench(images, asked(SPEEDUP, 1.2)).price()
    (cached,) = (tmp_path / "cache" / "vitfx").iterdir()
    cached.write_text("{}")
    bench(images, asked(SPEEDUP, 1.2)).price()
    assert len(table) == 2
    assert LatencyTable.read(cached) == table[0]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    bench(images, asked(SPEEDUP, 1.2)).price()
    assert len(table) == 3


def test_a_float16_target_runs_both_files_in_float16(images, table, monkeypatch):
    """On a CPU, which is slow at it, but can."""
    opened = []
    real = runtimes.open_session

    def watched(model, device, **options):
        opened.append(({one.data_type for one in onnx.load_from_string(model).graph.initializer}, options))
        return real(model, device, **options)

    monkeypatch.setattr(runtimes, "open_session", watched)
    half = replace(asked(KL, 1), target=Target("cpu", 2, "fp16"))
    found = bench(images, half)
    pruner = IterativePruner(found.original, images.pixels, None, scored=8, seed=0, watcher=Silent())
    assert found.measure(pruner.start).value > 0
    assert len(opened) == 2
    for types, options in opened:
        assert onnx.TensorProto.FLOAT16 in types and onnx.TensorProto.FLOAT not in types
        assert options == {"layouts": False, "threads": None}


def test_an_int8_target_quantizes_the_pruned_file_and_not_the_plain_one(images, table, monkeypatch):
    opened, real = [], runtimes.open_session

    def watched(model, device, **options):
        opened.append(onnx.load_from_string(model))
        return real(model, device, **options)

    monkeypatch.setattr(runtimes, "open_session", watched)
    target = Target("cpu", 2, "int8")
    one = bench(images, GoalRequest(Goal(SPEEDUP, 1.5), target, default_deployment(NAMES, CPU, portable=False)))
    exported = deploy(one.original, one.asked.deployment, one.examples, {}).model
    one.open_plain()
    one.open(exported)
    stream = torch.randn(2, 5, 16)
    part = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)).eval()
    one.open(to_onnx(part, stream, {}), stream)
    counts = [sum(node.op_type == "QuantizeLinear" for node in model.graph.node) for model in opened]
    assert counts[0] == 0 and counts[1] > 5 and counts[2] == 2, "of a part, the last map is int8 as well"
