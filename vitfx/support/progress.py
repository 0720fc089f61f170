"""Progress bars with what is going on and the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Report = Callable[[int, int], None]
"""Called with how much is done, and how much there is."""


class Watcher(Protocol):
    """Is told what a long run is doing."""

    def say(self, sentence: str) -> None: ...

    def bar(self, title: str) -> Report: ...

    def detail(self, text: str) -> None:
        """Shown beside the bar that moved last, or a newer one."""


class Silent:
    """Watches nothing."""

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
        # Lines are left whole, so that what a log holds can be searched and copied.
        self._progress.console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def bar(self, title: str) -> Report:
        task = self._task = self._progress.add_task(title, total=None, detail="")

        def report(done: int, total: int) -> None:
            self._task = task
            self._progress.update(task, completed=done, total=total, visible=done < total)

        return report

    def detail(self, text: str) -> None:
        self._progress.update(self._task, detail=text)


@contextmanager
def console_watcher(console: Console) -> Iterator[ConsoleWatcher]:
    """A watcher while the block runs; bars go away when they are full."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield ConsoleWatcher(progress)
