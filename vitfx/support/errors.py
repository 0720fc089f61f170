"""Errors that a user can fix, as opposed to defects."""

from __future__ import annotations

import re

_PARAMETER = re.compile(r"`([a-z][a-z_]*)`")


class UserError(Exception):
    """Something the user can fix: one sentence with what was wrong, its value, and what to do.

    It names parameters as Python has them, in backticks: `max_kl`. Commands print it without a traceback, with their
    options in place of parameters (see `as_options`), and exit with code 2.
    """


class NothingPrunable(UserError):
    """A graph without sublayers, such as an artifact from which all were deleted."""

    def __init__(self) -> None:
        super().__init__("the model has no attention and no MLP left: give one that has something to prune")


def as_options(sentence: str) -> str:
    """A sentence as a command says it: each parameter in backticks becomes its option, `max_kl` --max-kl."""
    return _PARAMETER.sub(lambda found: "--" + found[1].replace("_", "-"), sentence)


def in_a_line(value: object) -> str:
    """A library's error, or a value out of a file, as part of a sentence: without line breaks, 300 letters at most."""
    return " ".join(str(value).split())[:300] or type(value).__name__
