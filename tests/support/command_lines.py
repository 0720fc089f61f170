"""Command lines as help and pages print them, read by the commands' own parsers."""

from __future__ import annotations

import shlex
from argparse import Namespace
from importlib import import_module


def module_and_arguments(line: str) -> tuple[str, list[str]]:
    """Of `python -m vitfx.prune demo  # a comment`, also behind torchrun and with variables in front."""
    words = shlex.split(line, comments=True)
    start = words.index("-m") + 1
    return words[start], words[start + 1 :]


def parse(line: str) -> Namespace:
    """Raises AssertionError, with what the parser says, for a line that the command does not take."""
    name, arguments = module_and_arguments(line)
    parser = import_module(name).build_parser()

    def refuse(message: str) -> None:
        raise AssertionError(f"{line}: {message}")

    parser.error = refuse
    options: Namespace = parser.parse_args(arguments)
    return options
