"""Every command's arguments, from its parser."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib import import_module

from vitfx.cli.parser import CommandParser

COMMANDS = ("prune", "optimize", "discover", "show", "recover", "train", "report")
_HEAD = """# Commands

Each is run as `python -m vitfx.prune` or, once installed, as `vitfx prune`. `--help` shows the main options on one
screen, `--help-all` what is here. Exit codes: 0 for success, 1 where a goal was missed or a proof failed, 2 for what
you can change, with one sentence that says how, 130 after Ctrl-C, 143 after SIGTERM.
"""


def page() -> str:
    parsers = {name: import_module(f"vitfx.{name}").build_parser() for name in COMMANDS}
    links = " · ".join(f"[{name}](#{name})" for name in COMMANDS)
    return "\n".join([_HEAD, links, "", *(line for name in COMMANDS for line in _command(name, parsers[name]))])


def _command(name: str, parser: CommandParser) -> Iterator[str]:
    yield from (f"## {name}", "", str(parser.description), "")
    yield from (f"    {line}" for line in parser.examples)
    yield ""
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest not in ("help", "help_all")]
        if not actions:
            continue
        heading = "arguments" if group.title == "positional arguments" else str(group.title)
        yield from (f"**{heading}**" + (f": {group.description}" if group.description else ""), "")
        yield from (f"- {_signature(action)}: {action.help}" for action in actions)
        yield ""
    if parser.notes:
        yield from (*parser.notes.splitlines(), "")


def _signature(action: argparse.Action) -> str:
    """`--tau TAU`, with every name that the option has."""
    value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if action.choices is not None and action.metavar is None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        return f"`{value}`"
    return ", ".join(f"`{name}`" if action.nargs == 0 else f"`{name} {value}`" for name in action.option_strings)
