"""`vitfx`, or `python -m vitfx`: lists the commands, and runs one by its name."""

from __future__ import annotations

import ast
import shutil
import sys
import textwrap
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from vitfx.support.console import entry_point
from vitfx.version import VERSION

_COMMANDS = ("discover", "optimize", "prune", "recover", "report", "show", "train")


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ("--help",)
    if name in ("-h", "--help"):
        print(_help())
    elif name == "--version":
        print(f"vitfx {VERSION}")
    elif name in _COMMANDS:
        code: int = import_module(f"vitfx.{name}").main(rest)
        return code
    else:
        print(f"error: vitfx has no command {name!r}: give one of {', '.join(_COMMANDS)}", file=sys.stderr)
        return 2
    return 0


def _help() -> str:
    width = max(shutil.get_terminal_size().columns, 30)
    commands = (
        textwrap.fill(_first_line(name), width, initial_indent=f"  {name:10}", subsequent_indent=12 * " ")
        for name in _COMMANDS
    )
    return "\n".join(
        [
            textwrap.fill("vitfx makes trained Vision Transformers smaller and faster.", width),
            "",
            "usage: vitfx COMMAND ...",
            "",
            *commands,
            "",
            textwrap.fill(
                "`vitfx COMMAND --help` shows a command's main options, with examples, and --help-all explains every "
                "option. `vitfx COMMAND` and `python -m vitfx.COMMAND` are the same.",
                width,
            ),
        ]
    )


def _first_line(name: str) -> str:
    """The command's summary, read from its source: importing it would take seconds, for torch."""
    source = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
