"""Gradient flow of a retraining: what it is, when it is taken, and states of versions that had none."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.recover_runs import CPU, data, run, settings, student, teacher
from vitfx.recovery.course import Course, FlowLog
from vitfx.recovery.retrain import Store, recover
from vitfx.support.progress import Silent
from vitfx.training.gradient_flow import GradientFlow


def test_a_row_for_the_step_behind_each_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[list[float]] = []
    measure = GradientFlow.measure

    def spied(self: GradientFlow) -> None:
        first = next(iter(self._layers.values()))
        taken.append([float(torch.cat([one.grad.abs().flatten() for one in first if one.grad is not None]).mean())])
        measure(self)

    monkeypatch.setattr(GradientFlow, "measure", spied)
    found = run(tmp_path, epochs=4, checks=4)
    flow = found.flow
    assert len(found.losses) == 12
    assert [one["images"] for one in flow["steps"]] == [check.images for check in found.checks[:-1]] == [0, 48, 96, 144]
    assert flow["layers"][:3] == ["embed", "positions", "a0_norm"]
    assert flow["layers"][-1] == "head"
    for row, first in zip(flow["steps"], taken, strict=True):
        assert len(row["mean"]) == len(row["max"]) == len(flow["layers"])
        assert all(0 < mean <= most for mean, most in zip(row["mean"], row["max"], strict=True))
        assert row["mean"][:1] == pytest.approx(first, rel=1e-5)
    assert json.loads(json.dumps(found.to_json()))["gradient_flow"] == flow


def test_adapters_have_the_names_of_their_layers(tmp_path: Path) -> None:
    layers = run(tmp_path, epochs=1, only="lora").flow["layers"]
    assert layers[:4] == ["a0.q", "a0.k", "a0.v", "a0.out"]
    assert len(set(layers)) == len(layers)


def test_infinite_gradients_wait_for_the_next_step() -> None:
    layer = nn.Linear(2, 1, bias=False)
    log = FlowLog(layer)
    for seen, gradient in ((0, math.inf), (16, 0.5), (32, 0.25)):
        layer.weight.grad = torch.full((1, 2), gradient)
        log.follow(0, seen)
    log.follow(48, 48)
    assert log.rows == [{"images": seen, "mean": [mean], "max": [mean]} for seen, mean in ((16, 0.5), (48, 0.25))]
    assert FlowLog(nn.Sequential(layer)).to_json() == {"layers": ["0"], "steps": []}


def test_a_state_of_an_earlier_version_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, store = data(tmp_path, labelled=False), Store(tmp_path / "state", seconds=1e9)
    unbroken = run(tmp_path, images=images, epochs=2)
    step, state = Course._step, Course.state_dict

    def pressed(self: Course, batch: Any) -> None:
        step(self, batch)
        if len(self.losses) == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Course, "_step", pressed)
        patched.setattr(Course, "state_dict", lambda self: {k: v for k, v in state(self).items() if k != "flow"})
        with pytest.raises(KeyboardInterrupt):
            recover(student(), teacher(), images, settings(), device=CPU, watcher=Silent(), store=store)
    found = recover(student(), teacher(), images, settings(), device=CPU, watcher=Silent(), store=store)
    assert found.losses == unbroken.losses
    assert found.flow["steps"] == [one for one in unbroken.flow["steps"] if one["images"] >= 32]
