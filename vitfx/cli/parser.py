"""The parser of a command: `--help` fits a screen, `--help-all` explains every option."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from typing import Any

from vitfx.support.console import HelpFormatter

_COLUMN = 30
"""Where the text beside an option begins in the short help, at most."""


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser with two helps: what people want first, and everything."""

    def __init__(
        self,
        command: str,
        doc: str | None,
        *,
        usage: str,
        first: Mapping[str, Mapping[str, str]],
        examples: Sequence[str],
        notes: str = "",
    ) -> None:
        """command: its name. doc: of its module, the first line is the description.
        usage: the arguments that can't be left out, and "[options]".
        first: of the short help, by heading, the options with a line on each; their full help is given with
            `add_argument`, as ever.
        examples: command lines that can be typed as they stand, in both helps.
        notes: what only the full help has beneath them.
        """
        super().__init__(
            prog=f"python -m vitfx.{command}",
            usage=f"%(prog)s {usage}",
            description=(doc or "").partition("\n")[0],
            epilog="\n".join(["examples:", *(f"  {line}" for line in examples), "", notes]).rstrip(),
            formatter_class=HelpFormatter,
        )
        self.first = first
        self.examples, self.notes = tuple(examples), notes
        self.add_argument("--help-all", action=_FullHelp, help="explain every option")

    def format_help(self) -> str:
        """What `--help` prints."""
        formatter = HelpFormatter(self.prog, max_help_position=_COLUMN)
        formatter.add_usage(self.usage, [], [])
        formatter.add_text(self.description)
        arguments = {name: action for action in self._actions for name in action.option_strings or [action.dest]}
        for heading, texts in self.first.items():
            formatter.start_section(heading)
            formatter.add_arguments([_with_text(arguments[name], text) for name, text in texts.items()])
            formatter.end_section()
        formatter.add_text("\n".join(["examples:", *(f"  {line}" for line in self.examples)]))
        formatter.add_text("--help-all explains every option.")
        return formatter.format_help()

    def format_full_help(self) -> str:
        """What `--help-all` prints."""
        return super().format_help()


class _FullHelp(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        assert isinstance(parser, CommandParser)
        print(parser.format_full_help(), end="")
        parser.exit()


def _with_text(action: argparse.Action, text: str) -> argparse.Action:
    """The same argument with another help, and by its long name alone."""
    short = copy.copy(action)
    short.help = text
    return short
