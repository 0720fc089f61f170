"""Ctrl-C at a suitable moment: pressed at any time, obeyed between two steps. SIGTERM is obeyed like it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from vitfx.support.processes import started_by_torchrun


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


@dataclass
class Termination:
    """Whether SIGTERM came."""

    asked: bool = False


@contextmanager
def termination_as_interrupt() -> Iterator[Termination]:
    """SIGTERM, by which service managers and job schedulers stop a process, is handled within as Ctrl-C is at that
    moment. Not under torchrun, which ends its processes by SIGTERM when one of them has failed."""
    termination = Termination()
    if threading.current_thread() is not threading.main_thread() or started_by_torchrun():
        yield termination
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        termination.asked = True
        handler = signal.getsignal(signal.SIGINT)
        # Ctrl-C is ignored in jobs that a script started in the background.
        (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield termination
    finally:
        signal.signal(signal.SIGTERM, before)
