"""Every command that writes a folder or goes on from a file keeps others out of it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from tests.support.locks import another_command, names


@pytest.mark.parametrize(
    ("command", "out"),
    [
        ("prune demo", "out"),
        ("prune demo --sweep 1.2:2:3", "out"),
        ("prune demo --target-speedup 2 --rounds 2 --recover-minutes 1", "out"),
        ("recover demo --teacher demo --epochs 1", "out"),
        ("optimize demo", "out"),
        ("train --data digits", "out"),
        ("discover demo", "circuit.json"),
        ("discover demo --tau-sweep 1e-3:1e-1:3", "circuits.json"),
    ],
)
@pytest.mark.parametrize("force", [True, False])
def test_a_place_that_another_command_writes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, out: str, force: bool
) -> None:
    name, *arguments = command.split()
    path = tmp_path / out
    with another_command(path) as process:
        before = names(tmp_path)
        more = ["--device", "cpu", "--out", str(path), *(["--force"] if force else [])]
        assert import_module(f"vitfx.{name}").main([*arguments, *more]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: another command has been writing {path} since ")
        assert f"process {process.pid} on" in error and error.count("\n") == 1
        assert names(tmp_path) == before
