"""A limit holds for the int8 file: more of it in float32, or a sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from tests.support.prune_runs import model
from vitfx.deploy.deployment import NAMES, default_deployment, deploy
from vitfx.deploy.export import write_onnx
from vitfx.deploy.precision_file import write_precision
from vitfx.deploy.runtime import open_session
from vitfx.graph.trace import to_canonical
from vitfx.pruning import int8_limit
from vitfx.pruning.goal import KL, Goal, Target
from vitfx.pruning.int8_limit import Int8Limit
from vitfx.pruning.iterative_pruner import IterativePruner
from vitfx.pruning.target_bench import GoalRequest, TargetBench
from vitfx.support.progress import Silent

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench() -> TargetBench:
    pixels = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    original = to_canonical(model(), pixels[:2]).graph_module
    request = GoalRequest(Goal(KL, 1.0), Target("cpu", 2, "int8"), default_deployment(NAMES, CPU, portable=False))
    return TargetBench(model(), original, pixels, request, Silent())


@pytest.fixture(scope="module")
def pruner(bench: TargetBench) -> IterativePruner:
    pixels = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return IterativePruner(bench.original, pixels, None, scored=16, seed=0, watcher=Silent())


def losses(bench: TargetBench, pruner: IterativePruner) -> list[float]:
    """Of the whole model, with ever more of it in float32."""
    limit = Int8Limit(bench, pruner)
    return [verdict.loss.kl for verdict in limit._attempts(bench.original)]


def test_ever_more_in_float32_until_the_limit_holds(
    bench: TargetBench, pruner: IterativePruner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_limit, "_SHARES", (0.0, 0.2, 0.9))
    none, some, most = losses(bench, pruner)
    assert 0 < most < some < none
    held = len(pruner.held_out)
    for value, kept, spares in ((2 * none, True, 0), ((some + most) / 2, True, 2), (most / 2, False, 2)):
        goal = Goal(KL, value)
        monkeypatch.setattr(bench, "asked", replace(bench.asked, goal=goal))
        limit = Int8Limit(bench, pruner)
        assert limit(bench.original) is kept
        verdict = limit.verdict
        assert verdict is not None and verdict.kept is kept and verdict.rounding.spared is not None
        assert (len(verdict.rounding.spared) > 0) == (spares > 0)
        note = verdict.note(goal, held)
        assert note.startswith(f"its int8 file, with {verdict.quantized} linear maps rounded and ")
        assert f"{verdict.loss} on {held} held-out images" in note
        assert ("no model found keeps that in int8" in note) is not kept


def test_the_file_that_is_written_is_the_one_that_was_judged(
    bench: TargetBench, pruner: IterativePruner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(int8_limit, "_SHARES", (0.4,))
    limit = Int8Limit(bench, pruner)
    assert limit(bench.original)
    verdict = limit.verdict
    assert verdict is not None and verdict.rounding.spared
    exact = bench.in_int8(bench.original, limit.calibration)
    write_onnx(exported(bench), tmp_path / "pruned.onnx")
    made = write_precision(tmp_path, "int8", verdict.rounding)
    assert set(made["kept"]) == {*exact.kept, *verdict.rounding.spared}
    delivered = open_session(tmp_path / "pruned-int8.onnx", CPU).run(pruner.held_out)
    assert pruner.loss_of(delivered).kl == pytest.approx(verdict.loss.kl, rel=1e-6)


def exported(bench: TargetBench) -> onnx.ModelProto:
    return deploy(bench.original, bench.asked.deployment, bench.examples, {}).model
