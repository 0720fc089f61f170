"""vitfx.training.board: what TensorBoard reads of it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vitfx.support.errors import UserError
from vitfx.training.board import TensorBoard, check_tensorboard
from vitfx.training.state import Epoch

EPOCH = Epoch(1, 2.0, 1.5, 0.25, 1e-3, 100.0, {"mean": [0.5, 0.25], "max": [1.0, 1.0]})


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def test_what_was_logged_is_read(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, 0)
    for step in range(3):
        board.step(step, 3.0 - step, 0.5)
    board.epoch(2, EPOCH, ["embed", "head"])
    board.close()
    events = read(tmp_path)
    assert [(one.step, one.value) for one in events.Scalars("train/loss")] == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert events.Scalars("validation/top-1")[0].value == 0.25
    assert events.Scalars("gradient flow/head")[0].value == 0.25


def test_a_run_that_goes_on_replaces_what_was_logged_beyond(tmp_path: Path) -> None:
    for start, value in ((0, 1.0), (2, 9.0)):
        board = TensorBoard(tmp_path, start)
        for step in range(start, 4):
            board.step(step, value, 0.5)
            if step % 2:
                board.epoch(step, replace(EPOCH, loss=value), [])
        board.close()
    events = read(tmp_path)
    assert [one.value for one in events.Scalars("train/loss")] == [1.0, 1.0, 9.0, 9.0]
    assert [(one.step, one.value) for one in events.Scalars("validation/loss")] == [(1, 1.0), (3, 9.0)]


def test_what_is_flushed_can_be_read(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, 0)
    board.step(0, 3.0, 0.5)
    board.flush()
    assert len(read(tmp_path).Scalars("train/loss")) == 1
    board.close()


def test_without_the_package_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'vitfx\[tensorboard\]'"):
        check_tensorboard()
