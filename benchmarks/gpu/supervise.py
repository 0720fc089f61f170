"""Starts the process that does the work, reads what it finds, and starts another where that one dies.

A kernel that reads where it must not, or a runtime that ends the process, costs one step and not the rest of the day.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.ledger import Ledger
from benchmarks.gpu.steps import Event

ROOT = Path(__file__).resolve().parents[2]
_MARGIN = 0.04
"""Of the time, for this process's own beginning, and for the table."""
_STDERR = 2
_TO_END = 3.0
"""Seconds that a process has between being asked to end and being made to."""


@dataclass(frozen=True)
class Asked:
    """What was asked for."""

    steps: tuple[str, ...]  #: in their order
    minutes: float
    seed: int
    device: str  #: by torch's name

    def command(self, pipe: int, steps: Sequence[str], seconds: float) -> list[str]:
        record = {"pipe": pipe, "steps": list(steps), "seconds": seconds, "seed": self.seed, "device": self.device}
        return [sys.executable, "-X", "faulthandler", "-m", "benchmarks.gpu.worker", json.dumps(record)]


def supervise(asked: Asked, ledger: Ledger) -> None:
    """Until every step has its record or the time is over. KeyboardInterrupt comes through, with no process left."""
    deadline = time.monotonic() + (1 - _MARGIN) * 60 * asked.minutes
    while steps := ledger.unended(asked.steps):
        left = deadline - time.monotonic()
        if left <= 0:
            ledger.leave_out(steps, f"the {asked.minutes:g} minutes were over")
            return
        code = _work(asked, steps, deadline, ledger)
        if (rest := ledger.unended(asked.steps)) and time.monotonic() < deadline:
            # Where it died before any step began, it is the first that can't be done: so this comes to an end.
            lost = ledger.running() or (rest[0] if rest == steps else None)
            if lost is not None:
                ledger.fail(lost, f"the process that did it {_ended(code)}")
        elif (lost := ledger.running()) is not None:
            ledger.fail(lost, f"stopped, because the {asked.minutes:g} minutes were over")


def _work(asked: Asked, steps: Sequence[str], deadline: float, ledger: Ledger) -> int:
    """One process, to its end or the deadline; its exit code, negative for a signal."""
    reading, writing = os.pipe()
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        asked.command(writing, steps, max(1.0, deadline - time.monotonic() - _TO_END)),
        pass_fds=[writing],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        # The table has stdout for itself.
        stdout=_STDERR,
        start_new_session=True,
    )
    os.close(writing)
    try:
        _read(reading, process, deadline, ledger.take)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(min(_TO_END, max(0.0, deadline - time.monotonic())))
    finally:
        os.close(reading)
        _end(process)
    return process.returncode


def _read(pipe: int, process: subprocess.Popen[bytes], deadline: float, take: Callable[[Event], None]) -> None:
    """Events as they come, until the process has ended or the time is over."""
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(min(left, 1.0)):
                # What it started may hold the pipe open after its end.
                if process.poll() is not None:
                    return
                continue
            if not (part := os.read(pipe, 2**16)):
                return
            *lines, pending = (pending + part).split(b"\n")
            for line in lines:
                # What a step's end broke off is no JSON; the next line says the same and more.
                with contextlib.suppress(ValueError):
                    take(json.loads(line))


def _end(process: subprocess.Popen[bytes]) -> None:
    """With all that it started: torchrun, which ends its own, and the compiler's workers."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + _TO_END
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
            while time.monotonic() < until:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.05)
    process.wait()


def _ended(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with the exit code {code}"
