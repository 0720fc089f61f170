"""`--help` fits a screen and has examples that can be typed; `--help-all` has every option."""

from __future__ import annotations

import math
import re
from importlib import import_module
from pathlib import Path

import pytest

from tests.support.command_lines import parse
from vitfx.cli.parser import CommandParser

COMMANDS = [f"vitfx.{name}" for name in ("discover", "optimize", "prune", "recover", "report", "show", "train")]
COLUMNS = 100
FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
BENCHMARKS = [f"benchmarks.{path.stem}" for path in sorted(FOLDER.glob("*.py")) if "@entry_point" in path.read_text()]


def help_of(name: str, option: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        import_module(name).main([option])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def _width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))


@pytest.mark.parametrize("name", [*COMMANDS, *BENCHMARKS])
def test_help_fits_a_screen(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = help_of(name, "--help", capsys).splitlines()
    assert sum(max(math.ceil(len(line) / COLUMNS), 1) for line in lines) <= 40


@pytest.mark.parametrize("name", [*COMMANDS, *BENCHMARKS])
def test_examples_can_be_typed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(name, "--help", capsys).replace("\\\n", "")
    lines = re.findall(r"^  ((?:python|torchrun) .*)", text, re.MULTILINE)
    assert any(re.search(rf"-m {name}\b", line) for line in lines)
    for line in lines:
        parse(line)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_full_help_explains_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser: CommandParser = import_module(name).build_parser()
    short, full = help_of(name, "--help", capsys), help_of(name, "--help-all", capsys)
    assert parser.description and "--help-all explains every option" in short
    for action in parser._actions:
        assert action.help, f"{action.dest} is not explained"
        assert all(re.search(rf"^ .*{re.escape(option)}\b", full, re.MULTILINE) for option in action.option_strings)
    assert full.count("\n") > short.count("\n") and all(example in full for example in parser.examples)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_wanted_first_is_the_commands_own(name: str) -> None:
    parser: CommandParser = import_module(name).build_parser()
    first = [option for texts in parser.first.values() for option in texts]
    assert 4 <= len(first) <= 12 and len(set(first)) == len(first)
    required = {action.option_strings[-1] for action in parser._actions if action.required and action.option_strings}
    assert required <= set(first), "what can't be left out comes first"
