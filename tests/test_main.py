"""`python -m vitfx` lists the commands and runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vitfx.__main__ import main


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_commands_are_listed(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "\n  discover  Discover a ViT's circuit" in said
    assert "\n  optimize  Make a trained ViT faster" in said
    assert "\n  prune     Prune a trained ViT" in said
    assert "\n  report    Compare runs" in said
    assert "\n  train     Train a Vision Transformer on images" in said


def test_listing_does_not_wait_for_torch() -> None:
    code = "import sys, vitfx.__main__ as m; m.main([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prnue"]) == 2
    said = capsys.readouterr().err
    commands = "discover, optimize, prune, recover, report, show, train"
    assert said == f"error: vitfx has no command 'prnue': give one of {commands}\n"


@pytest.mark.parametrize("command", ["discover", "optimize", "prune", "recover", "report", "show", "train"])
def test_a_command_is_run_under_its_own_name(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: python -m vitfx.{command}" in said
    assert "example" in said


def test_a_commands_exit_code_is_passed_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vitfx", "train", "--data", "letters", "--out", str(tmp_path / "model.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --data letters does not exist: give a folder")
