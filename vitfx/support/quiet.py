"""Silence around calls of torch that report what goes wrong twice: in a log or on a stream, and by an exception."""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TextIO


@contextmanager
def quietly() -> Iterator[None]:
    """Without log lines, warnings and what this thread prints on standard error, such as tracebacks and graphs: what
    counts of them is in the exception."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(_OthersAlone(sys.stderr)):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


class _OthersAlone(io.TextIOBase):
    """A stream that takes what other threads write, such as progress bars, and drops what the one that made it does."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._dropped = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._dropped else self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()
