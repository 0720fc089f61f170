"""Progress bars with the current state and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from vitfx.support.text import time_left

_WIDE = 110
"""Columns of a terminal that has room for a bar beside its title and numbers."""

Report = Callable[[int, int], None]
"""Called with how much is done and how much there is in all."""


class Watcher(Protocol):
    """Shows what a long run is doing."""

    def say(self, sentence: str) -> None: ...

    def bar(self, title: str) -> Report: ...

    def detail(self, text: str) -> None:
        """Text beside the bar that moved last or was opened since."""


class Silent:
    """Shows nothing."""

    def say(self, sentence: str) -> None:
        pass

    def bar(self, title: str) -> Report:
        return lambda done, total: None

    def detail(self, text: str) -> None:
        pass


class ConsoleWatcher:
    """Prints sentences and draws bars on a console."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", visible=False)

    def say(self, sentence: str) -> None:
        _print(self._progress.console, sentence)

    def bar(self, title: str) -> Report:
        task = self._task = self._progress.add_task(title, total=None, detail="")

        def report(done: int, total: int) -> None:
            self._task = task
            self._progress.update(task, completed=done, total=total, visible=done < total)

        return report

    def detail(self, text: str) -> None:
        self._progress.update(self._task, detail=text)


@contextmanager
def console_watcher(console: Console) -> Iterator[Watcher]:
    """A watcher while the block runs: bars on a terminal, where full ones disappear, and lines elsewhere."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield Lines(console)
        return
    # On a narrow terminal titles and details wrap, but numbers stay whole.
    columns = (
        TextColumn("{task.description}", table_column=Column()),
        *((BarColumn(bar_width=24),) if console.width >= _WIDE else ()),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[detail]}", table_column=Column()),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield ConsoleWatcher(progress)


_SECONDS = 60.0


class Lines:
    """Prints sentences, and, when there was none for `_SECONDS`, the state of a bar with the time left.

    A full bar is silent: a message follows it anyway. The first step alone, which may set things up, foretells nothing.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._detail = ""
        self._last_message = time.monotonic()

    def say(self, sentence: str) -> None:
        _print(self._console, sentence)
        self._last_message = time.monotonic()

    def bar(self, title: str) -> Report:
        self._detail = ""
        first: tuple[float, int] | None = None

        def report(done: int, total: int) -> None:
            nonlocal first
            now = time.monotonic()
            first = first or (now, done)
            if done < total and now - self._last_message >= _SECONDS:
                began, before = first
                left = time_left((now - began) / (done - before) * (total - done)) if done - before > 1 else ""
                self.say(f"{title}: {done:,} of {total:,}{self._detail}{left}")

        return report

    def detail(self, text: str) -> None:
        self._detail = f", {text}"


def _print(console: Console, sentence: str) -> None:
    # Lines are not broken, so that a log can be searched and copied from.
    console.print(sentence, highlight=False, markup=False, soft_wrap=True)
