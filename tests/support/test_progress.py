"""Progress as a person sees it, and as a log keeps it."""

from __future__ import annotations

import io

from rich.console import Console

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
