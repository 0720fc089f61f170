"""Every command that README, docs/ and the commands' own help print runs, as printed but on fewer images."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch

from tests.support.command_lines import commands
from tests.support.printed_world import FEWER, PrintedWorld
from vitfx.deploy.openvino_runtime import has_bfloat16

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ELSEWHERE = {
    "python -m benchmarks.reference": "writes into docs/; tests/benchmarks/test_reference.py runs it",
    "python -m vitfx.prune …": "says that `vitfx prune …` is the same",
}
"""Commands that do not run here, and why."""
WITHOUT_A_GPU = "PYTHONPATH=. python -m benchmarks.cuda gpu-day/"
NEEDS = {"openvino": "openvino", "benchmarks.peers": "torch_pruning", "benchmarks.circuits": "transformer_lens"}
"""Packages of the extras, by what of a command asks for them."""
NO_BFLOAT16 = "this CPU has no bfloat16 arithmetic"
MISSED = "error: the goal was missed"
"""A random model need not get as fast as a trained one: its nearest is written all the same, with exit code 1."""


def printed() -> list[str]:
    """Without comments."""
    lines = (line for page in PAGES for line in commands(page.read_text(encoding="utf-8")))
    return [line for line in dict.fromkeys(line.partition("  #")[0].strip() for line in lines) if line not in ELSEWHERE]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> PrintedWorld:
    return PrintedWorld(tmp_path_factory.mktemp("world"))


@pytest.mark.slow
@pytest.mark.parametrize("line", printed())
def test_it_runs(line: str, world: PrintedWorld, tmp_path: Path) -> None:
    for word, package in NEEDS.items():
        if word in line:
            pytest.importorskip(package, reason=f"{package} is not installed: see the extras in setup.cfg")
    done = world.run(line, tmp_path)
    if "bf16" in line and not has_bfloat16():
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and NO_BFLOAT16 in done.stderr
        return
    if line == WITHOUT_A_GPU and not torch.cuda.is_available():
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        return
    code = 1 if done.stderr.strip().splitlines()[-1:] and MISSED in done.stderr.strip().splitlines()[-1] else 0
    assert done.returncode == code, done.stderr[-2000:]


def test_help_prints_nothing_that_pages_do_not() -> None:
    """The pages of reference hold every command's help."""
    names = ("discover", "optimize", "prune", "recover", "report", "show", "train")
    examples = [line for name in names for line in import_module(f"vitfx.{name}").build_parser().examples]
    assert len(examples) > 20
    assert {line.partition("  #")[0].strip() for line in examples} <= set(printed())


def test_options_that_make_them_shorter_exist() -> None:
    for module, options in FEWER.items():
        names = {name for action in import_module(module).build_parser()._actions for name in action.option_strings}
        assert set(options.split()[::2]) <= names, module
