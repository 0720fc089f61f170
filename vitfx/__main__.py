"""`python -m vitfx`: lists the commands, and runs one by its name."""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from pathlib import Path

_COMMANDS = ("discover", "optimize", "prune", "recover", "report", "show", "train")


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help"):
        print(_help())
        return 0
    command, *rest = given
    if command not in _COMMANDS:
        print(f"error: {command!r} is no command of vitfx: give one of {', '.join(_COMMANDS)}", file=sys.stderr)
        return 2
    return import_module(f"vitfx.{command}").main(rest)


def _help() -> str:
    lines = [f"  {command:10}{_first_line(command)}" for command in _COMMANDS]
    return "\n".join(
        [
            "vitfx makes trained Vision Transformers smaller and faster.",
            "",
            "usage: python -m vitfx COMMAND ...",
            "",
            *lines,
            "",
            "`python -m vitfx COMMAND --help` says what each takes, with an example.",
        ]
    )


def _first_line(command: str) -> str:
    """The command's summary, read from its source: importing it would take seconds, for torch."""
    source = (Path(__file__).parent / f"{command}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
