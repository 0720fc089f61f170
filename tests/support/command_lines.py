"""Command lines as help and pages print them, read by the commands' own parsers."""

from __future__ import annotations

import re
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


def commands(text: str) -> list[str]:
    """Every call of vitfx and benchmarks in indented lines and in backticks; an ellipsis stands for a model."""
    blocks = re.sub(r"\\\n\s+", "", text)
    indented = [part for line in re.findall(r"^    (.*)", blocks, re.MULTILINE) for part in line.split("&&")]
    quoted = re.findall(r"`((?:python -m )?(?:vitfx|benchmarks)\.[a-z0-9_]+ [^-`][^`]*)`", text.replace("\n", " "))
    lines = [line.strip() for line in indented + quoted]
    calls = [
        line if "-m " in line else f"python -m {line}" for line in lines if re.search(r"\b(vitfx|benchmarks)\.", line)
    ]
    pattern = re.compile(r"^(\S*python|torchrun|PYTHONPATH=\. python)( \S+)* ?-m (vitfx|benchmarks)\.[a-z0-9_]+\b")
    return [re.sub(r" …(?= )", " MODEL", line) for line in calls if pattern.match(line)]
