"""Ctrl-C at a moment that suits: asked for at any time, obeyed between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """asked: whether Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def held_interrupts() -> Iterator[Interrupts]:
    """The first Ctrl-C within is only noted; the second raises KeyboardInterrupt as ever."""
    found = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        # Python lets the main thread alone handle signals.
        yield found
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        found.asked = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield found
    finally:
        signal.signal(signal.SIGINT, before)
