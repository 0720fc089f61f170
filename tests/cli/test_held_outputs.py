"""Every command that writes a folder or goes on from a file keeps others out of it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from tests.support.locks import another_command, names
from vitfx.support.files import JOURNAL, RECOVERY_STATE, TRAINING_STATE, UNFINISHED


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


GOES_ON_FROM = {
    "prune demo --tau 0.01": JOURNAL,
    "prune demo --target-flops 0.8": None,
    "prune demo --method eap --remove 0.2": JOURNAL,
    "prune demo --sweep 1.2:2:3": None,
    "recover demo --teacher demo --epochs 1": RECOVERY_STATE,
    "optimize demo": None,
    "train --data digits": TRAINING_STATE,
}
STATES = (JOURNAL, RECOVERY_STATE, TRAINING_STATE)


@pytest.mark.parametrize(
    ("command", "state"),
    [(command, state) for command, own in GOES_ON_FROM.items() for state in STATES if state != own],
)
def test_what_another_run_goes_on_from_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, state: str
) -> None:
    for name in (UNFINISHED, state):
        (tmp_path / name).write_text("of another run")
    name, *arguments = command.split()
    assert import_module(f"vitfx.{name}").main([*arguments, "--device", "cpu", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path} has {state}, from which an interrupted run goes on" in error and error.count("\n") == 1
    assert names(tmp_path) == sorted((UNFINISHED, state)) and (tmp_path / state).read_text() == "of another run"
