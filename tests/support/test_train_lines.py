"""vitfx.support.progress: lines where no bar is seen, bars where one is."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

import vitfx.support.progress
from vitfx.support.progress import training_watcher


def test_a_log_is_told_the_state_once_nothing_was_said_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now, printed = [0.0], io.StringIO()
    monkeypatch.setattr(vitfx.support.progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with training_watcher(Console(file=printed)) as watcher:
        report = watcher.bar("decoding")
        for now[0], done in ((299, 1), (301, 2), (302, 3), (602, 4)):
            report(done, 4)
        report = watcher.bar("training")
        watcher.detail("loss 2.5")
        report(1, 9)
        watcher.say("an epoch")
        now[0] = 901
        report(2, 9)
    assert printed.getvalue().rstrip().splitlines() == ["decoding: 2 of 4", "training: 1 of 9, loss 2.5", "an epoch"]


def test_a_terminal_has_its_bars_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitfx.support.progress, "_SECONDS", 0.0)
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    with training_watcher(console) as watcher:
        watcher.bar("decoding")(1, 4)
    assert "decoding: 1 of 4" not in console.file.getvalue()
