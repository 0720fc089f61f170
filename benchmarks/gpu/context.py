"""What a step is given: the device, sizes, models that are built once, its time, and a place for its figures."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu.sizes import LARGE, TINY
from benchmarks.gpu.timing import TimeUp
from vitfx.support.devices import is_gpu

if TYPE_CHECKING:
    from benchmarks.gpu.models import Subject

Figures = dict[str, Any]
"""What a step found, ready for JSON."""
_REASON = 240


class Context:
    """Shared by the steps of one process."""

    def __init__(self, device: torch.device, seed: int, folder: Path, keep: Callable[[], None] | None = None) -> None:
        """folder: for files that nobody needs afterwards. keep: is called whenever a step has new figures."""
        self.device, self.seed, self.folder = device, seed, folder
        self.sizes = LARGE if is_gpu(device) else TINY
        self.keep = keep or (lambda: None)
        self.deadline = float("inf")  #: of the step that is running, by time.monotonic()
        self.failures = 0  #: rows of the running step that could not be made
        self.left_out = 0  #: rows for which no time was left
        self.peak_mib = 0.0  #: of the running step, where it reset torch's own count
        self._subjects: dict[str, Subject] = {}

    def left(self) -> float:
        """Seconds until the step has to end."""
        return self.deadline - time.monotonic()

    def subject(self, name: str) -> Subject:
        # Imported here: what is broken in it fails the steps that need it, and not the record of them.
        from benchmarks.gpu.models import build_subject

        if name not in self._subjects:
            self._subjects[name] = build_subject(name, self.sizes, self.seed)
        return self._subjects[name]

    def attempt(self, rows: list[Figures], facts: Mapping[str, Any], work: Callable[[Figures], None]) -> bool:
        """Adds a row with these facts and what `work` puts into it; whether that went well.

        A failure is part of the row, and the step goes on with the next. So is that no time was left for it.
        """
        row: Figures = dict(facts)
        rows.append(row)
        if self.left() <= 0:
            row["left_out"] = "no time was left for it"
            self.left_out += 1
            return False
        try:
            work(row)
        except TimeUp as error:
            row["error"] = reason(error)
            self.failures += 1
            if self.left() <= 0:
                raise
        except Exception as error:
            row |= failure(error)
            self.failures += 1
        self.keep()
        return "error" not in row

    @contextmanager
    def within(self, share: float) -> Iterator[None]:
        """A part of a step that ends when this share of the time left is over."""
        whole = self.deadline
        self.deadline = time.monotonic() + share * self.left()
        try:
            yield
        finally:
            self.deadline = whole


def failure(error: BaseException) -> Figures:
    return {"error": reason(error), "traceback": "".join(traceback.format_exception(error))}


def reason(error: BaseException) -> str:
    """The exception in one line."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _REASON else text[: _REASON - 1] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
