"""Consoles as they come: of any width and encoding, and with a reader that may leave before the command ends."""

from __future__ import annotations

import argparse
import codecs
import errno
import os
import select
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from functools import wraps
from io import TextIOWrapper
from itertools import groupby
from typing import ParamSpec, TextIO

CLOSED_PIPE = 141
"""The exit code when the reader of a stream has left: what shells report of a command that SIGPIPE ended."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Of disks without room, of users who have used up their share, and of limits to a file's size."""
_SPELLED = {
    "→": "->",
    "‖": "||",
    "×": "x",
    "÷": "/",
    "⁄": "/",
    "·": "*",
    "–": "-",
    "—": "-",
    "−": "-",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "°": " degrees",
    "±": "+-",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
}

_P = ParamSpec("_P")


def entry_point(main: Callable[_P, int]) -> Callable[_P, int]:
    """Wraps the `main` of a command: what a stream can't encode is spelled out, a closed pipe ends it quietly, and a
    full disk, where output goes to a file, with a sentence.

    The exit code is that of `main`, or `CLOSED_PIPE`, or 2.
    """

    @wraps(main)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> int:
        _spell_out()
        try:
            try:
                code = main(*args, **kwargs)
            except SystemExit:
                _flush()
                raise
            _flush()
            return code
        except BrokenPipeError:
            if not _discard_unread():
                raise
        except SystemExit as end:
            # rich raises it for a closed pipe, after it has sent what is left nowhere.
            if not isinstance(end.__context__, BrokenPipeError):
                raise
        except OSError as error:
            # What has a name is written by code that says so itself; standard streams and temporary files have none.
            if error.errno not in _FULL or error.filename is not None:
                raise
            _discard_unwritten()
            print(
                f"error: standard output, or a temporary file, can't be written ({error.strerror}): make room, or send "
                "the output elsewhere",
                file=sys.stderr,
            )
            return 2
        return CLOSED_PIPE

    return run


def _streams() -> list[TextIOWrapper]:
    """The standard streams that are open on a file; notebooks put others in their place."""
    return [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, TextIOWrapper) and not stream.closed]


def _flush() -> None:
    """Now rather than when Python ends, which would complain of a closed pipe."""
    for stream in _streams():
        stream.flush()


def _spell_out() -> None:
    codecs.register_error("vitfx.spell_out", _spelled)
    for stream in _streams():
        stream.reconfigure(errors="vitfx.spell_out")


def _spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    """Plain ASCII for the first character that can't be encoded: "tau" for "τ", "?" where nothing is like it."""
    assert isinstance(error, UnicodeEncodeError)
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":
        # A byte of a file's name that is not UTF-8: it goes out as it came in.
        return bytes([ord(character) - 0xDC00]), error.start + 1
    words = unicodedata.name(character, "").split()
    if words[:1] == ["GREEK"] and "LETTER" in words:
        letter = words[words.index("LETTER") + 1]
        return letter.capitalize() if "CAPITAL" in words else letter.lower(), error.start + 1
    parts = unicodedata.normalize("NFKD", character)
    plain = "".join(_SPELLED.get(part, part if part.isascii() else "") for part in parts)
    return plain or "?", error.start + 1


def _discard_unread() -> bool:
    """Discards what streams without a reader still hold; whether there are such streams."""
    return _discard([stream for stream in _streams() if _has_no_reader(stream)])


def _discard_unwritten() -> None:
    """Discards what streams still hold that can't be written: Python would try again at its end, and complain."""
    _discard([stream for stream in _streams() if _is_stuck(stream)])


def _discard(streams: Sequence[TextIO]) -> bool:
    """Whether there are any."""
    for stream in streams:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    return bool(streams)


def _is_stuck(stream: TextIO) -> bool:
    try:
        stream.flush()
    except OSError:
        return True
    return False


def _has_no_reader(stream: TextIO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))
    except (AttributeError, OSError):
        # Windows has no poll, and reports a closed pipe as another error.
        return False


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Fits descriptions and epilogs to the console; lines that are indented, such as commands, stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = groupby(text.splitlines(), lambda line: line[:1].strip() == "")
        return "\n".join(
            "\n".join(lines) if as_is else textwrap.fill(" ".join(lines), max(width, 30), break_on_hyphens=False)
            for as_is, lines in blocks
        )
