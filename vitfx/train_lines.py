"""What bars would show, as a line every few minutes, where they are not seen: in a pipe or a log file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from vitfx.support.progress import Report, Watcher, console_watcher

_SECONDS = 300.0


class Lines:
    """A watcher that says by another one what it is told, and a bar's state after `_SECONDS` in which nothing was said.

    A bar that is full says nothing: what comes after it will.
    """

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._detail = ""
        self._said = time.monotonic()

    def say(self, sentence: str) -> None:
        self._watcher.say(sentence)
        self._said = time.monotonic()

    def bar(self, title: str) -> Report:
        self._detail = ""

        def report(done: int, total: int) -> None:
            if done < total and time.monotonic() - self._said >= _SECONDS:
                self.say(f"{title}: {done} of {total}{self._detail}")

        return report

    def detail(self, text: str) -> None:
        self._detail = f", {text}"


@contextmanager
def training_watcher(console: Console) -> Iterator[Watcher]:
    """A watcher while the block runs: with bars on a terminal, with lines elsewhere."""
    with console_watcher(console) as watcher:
        yield watcher if console.is_terminal and not console.is_dumb_terminal else Lines(watcher)
