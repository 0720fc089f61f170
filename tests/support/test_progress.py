"""Progress as a person sees it, and as a log keeps it."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

import vitfx.support.progress
from vitfx.support.progress import Silent, console_watcher


def test_a_log_keeps_whole_sentences_and_no_bars() -> None:
    printed = io.StringIO()
    with console_watcher(Console(file=printed, width=20)) as watcher:
        watcher.say("a sentence that is longer than the line [red]with brackets[/red] and 1 number")
        report = watcher.bar("counting")
        report(1, 2)
        watcher.detail("half")
        report(2, 2)
    assert printed.getvalue().rstrip("\n") == (
        "a sentence that is longer than the line [red]with brackets[/red] and 1 number"
    )


def test_a_log_has_a_line_a_minute_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now, printed = [0.0], io.StringIO()
    monkeypatch.setattr(vitfx.support.progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with console_watcher(Console(file=printed)) as watcher:
        report = watcher.bar("decoding")
        for now[0], done in ((0, 1000), (59, 1500), (61, 2000), (62, 3000), (122, 4000)):
            report(done, 4000)
        report = watcher.bar("training")
        watcher.detail("loss 2.5")
        report(1, 9)
        watcher.say("an epoch")
        for now[0], done in ((181, 2), (183, 3)):
            report(done, 90)
        report = watcher.bar("merging")
        for now[0], done in ((183, 0), (400, 1), (480, 3)):
            report(done, 22)
    assert printed.getvalue().splitlines() == [
        "decoding: 2,000 of 4,000, 2 min left",
        "training: 1 of 9, loss 2.5",
        "an epoch",
        "training: 3 of 90, loss 2.5, 44 min left",
        "merging: 1 of 22",
        "merging: 3 of 22, 31 min left",
    ]


def test_a_terminal_has_its_bars_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitfx.support.progress, "_SECONDS", 0.0)
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    with console_watcher(console) as watcher:
        watcher.bar("decoding")(1, 4)
    assert "decoding: 1 of 4" not in console.file.getvalue()


def test_a_terminal_shows_what_is_done_and_then_takes_it_away() -> None:
    printed = io.StringIO()
    console = Console(file=printed, width=100, force_terminal=True, color_system=None)
    with console_watcher(console) as watcher:
        report = watcher.bar("counting")
        watcher.detail("m0.p1: 3 removed")
        report(7, 20)
        watcher._progress.refresh()
        shown = printed.getvalue()
        report(20, 20)
        watcher._progress.refresh()
        after = printed.getvalue()[len(shown) :]
    assert "counting" in shown
    assert " 7/20 " in shown
    assert "m0.p1: 3 removed" in shown
    assert "counting" not in after


def test_the_detail_belongs_to_the_bar_that_moved_last_or_a_newer_one() -> None:
    printed = io.StringIO()
    console = Console(file=printed, width=100, force_terminal=True, color_system=None)
    with console_watcher(console) as watcher:
        first = watcher.bar("first")
        first(1, 3)
        watcher.bar("second")(1, 2)
        watcher.detail("soon")
        first(2, 3)
        watcher.detail("late")
        watcher._progress.refresh()
    lines = printed.getvalue().splitlines()
    assert any("second" in line and "soon" in line for line in lines)
    assert any("first" in line and "late" in line for line in lines)
    assert not any("first" in line and "soon" in line for line in lines)


def test_silence(capsys) -> None:
    watcher = Silent()
    watcher.say("nothing")
    watcher.bar("nothing")(1, 2)
    watcher.detail("nothing")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
