"""Errors name parameters; commands say options in their place."""

from __future__ import annotations

import re
import tokenize
from pathlib import Path

import pytest

import vitfx
from vitfx.support.errors import as_options

LIBRARY = ("support", "images", "graph", "models", "deploy", "circuits", "discovery", "pruning")


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("`tau` -1 is not a threshold", "--tau -1 is not a threshold"),
        ("give `max_kl` instead, or `device` cpu", "give --max-kl instead, or --device cpu"),
        ("the class 'A`B' and `Other`", "the class 'A`B' and `Other`"),
        ("nothing to say", "nothing to say"),
    ],
)
def test_commands_say_options(sentence: str, said: str) -> None:
    assert as_options(sentence) == said


def test_no_error_of_the_library_names_an_option() -> None:
    """Sentences of the wings that Python calls: `--name` belongs to the commands."""
    named = []
    for wing in LIBRARY:
        for path in (Path(vitfx.__file__).parent / wing).rglob("*.py"):
            with path.open("rb") as file:
                strings = [token for token in tokenize.tokenize(file.readline) if token.type == tokenize.STRING]
            named += [
                f"{path.name}:{token.start[0]}"
                for token in strings
                if '"""' not in token.string and re.search(r"--[a-z{]", token.string)
            ]
    # What is said of torchrun's own option, and by `vitfx.discover` of the file beside its circuit.
    assert [place for place in named if not place.startswith(("processes.py", "memory.py"))] == []
