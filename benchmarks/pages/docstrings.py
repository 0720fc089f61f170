"""Docstrings as Markdown."""

from __future__ import annotations

import inspect
import re
from typing import Any

_PARAMETER = re.compile(r"([a-z_]+(?:, [a-z_]+)*): (.*)")


def summary_of(value: Any) -> str:
    """The first paragraph, in one line; empty where there is none, as where a dataclass writes its own."""
    text = inspect.cleandoc(value.__doc__ or "").partition("\n\n")[0]
    return "" if text.startswith(f"{value.__name__}(") else " ".join(text.split())


def markdown_of(value: Any) -> list[str]:
    """Lines: paragraphs, and an item for each "name: what it is"."""
    lines: list[str] = []
    for line in inspect.cleandoc(value.__doc__ or "").splitlines():
        if parameter := _PARAMETER.fullmatch(line):
            if lines and lines[-1] and not lines[-1].startswith(("- ", "  ")):
                lines.append("")
            names = ", ".join(f"`{name}`" for name in parameter[1].split(", "))
            lines.append(f"- {names}: {parameter[2]}")
        elif line and lines and lines[-1].startswith(("- ", "  ")):
            # What is indented goes on with the parameter; what is not is a paragraph again.
            lines += [f"  {line.strip()}"] if line.startswith(" ") else ["", line]
        else:
            lines.append(line)
    return lines
