"""Ctrl-C at a suitable moment: pressed at any time, obeyed between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Whether Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def held_interrupts() -> Iterator[Interrupts]:
    """The first Ctrl-C within is only noted; the second raises KeyboardInterrupt as usual."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        # Python lets only the main thread handle signals.
        yield interrupts
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        interrupts.asked = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
