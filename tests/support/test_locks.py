"""A place that one command writes to is closed to others, until that command ends in whatever way."""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.locks import another_command, names
from vitfx.support.errors import UserError
from vitfx.support.files import LOCK, UNFINISHED, WriteError
from vitfx.support.locks import hold_file, hold_folder


@pytest.fixture
def no_system_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)


def leave_lock(lock: Path, **changes: Any) -> None:
    record = {"host": platform.node(), "pid": os.getpid(), "command": "python -m vitfx.prune demo", "since": "today"}
    lock.write_text(json.dumps(record | changes))


@pytest.fixture
def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


@pytest.mark.parametrize("name", ["out", "circuit.json"])
def test_a_held_place_is_refused_by_name_and_free_afterwards(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    hold = hold_file(path) if path.suffix else hold_folder(path, force=True)
    with another_command(path) as process:
        pattern = rf"another command has been writing {path} since 20.* \(process {process.pid} on .*{path}\): wait"
        with pytest.raises(UserError, match=pattern) as refusal, hold:
            raise AssertionError
        assert "\n" not in str(refusal.value)
        process.communicate()
    assert names(tmp_path) == []
    with hold_file(path) if path.suffix else hold_folder(path, force=False):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_holder_that_is_stopped_lets_go(tmp_path: Path, number: signal.Signals) -> None:
    with another_command(tmp_path / "out") as process:
        process.send_signal(number)
        process.wait()
        with hold_folder(tmp_path / "out", force=False):
            record = json.loads((tmp_path / "out" / LOCK).read_text())
            assert record["pid"] == os.getpid()
    assert names(tmp_path) in ([], ["out"])
    if number is signal.SIGINT:
        assert names(tmp_path) == []


def test_folders_that_were_made_for_nothing_go(tmp_path: Path) -> None:
    with hold_folder(tmp_path / "a" / "b", force=False):
        assert names(tmp_path / "a" / "b") == [LOCK]
    assert names(tmp_path) == []
    (tmp_path / "mine").mkdir()
    with hold_folder(tmp_path / "mine" / "b", force=False):
        (tmp_path / "mine" / "b" / "result").write_text("")
    assert names(tmp_path / "mine" / "b") == ["result"]


def test_interrupts_and_errors_let_go(tmp_path: Path) -> None:
    for error in (KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(error), hold_folder(tmp_path / "out", force=False):
            raise error
        assert names(tmp_path) == []


def test_results_that_came_before_the_lock_are_not_replaced(tmp_path: Path) -> None:
    """Another command finished there between the check of the arguments and the lock."""
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(UserError, match="is not empty"), hold_folder(tmp_path, force=False):
        raise AssertionError
    with hold_folder(tmp_path, force=True):
        pass
    assert names(tmp_path) == ["report.json"]


def test_leftovers_of_killed_writers_go(tmp_path: Path) -> None:
    for name in (".plan.json.0123abcd.partial", ".notes.partial", UNFINISHED):
        (tmp_path / name).write_text("")
    with hold_folder(tmp_path, force=False):
        assert names(tmp_path) == [LOCK, ".notes.partial", UNFINISHED]


@pytest.mark.usefixtures("no_system_locks")
def test_without_system_locks_a_living_holder_is_refused(tmp_path: Path) -> None:
    leave_lock(tmp_path / LOCK, pid=os.getppid())
    pattern = rf"\(process {os.getppid()} on {platform.node()}: python -m vitfx.prune demo\): .*delete {tmp_path}/.lock"
    with pytest.raises(UserError, match=pattern), hold_folder(tmp_path, force=True):
        raise AssertionError
    leave_lock(tmp_path / LOCK, host="another-machine")
    with pytest.raises(UserError, match="on another-machine"), hold_folder(tmp_path, force=True):
        raise AssertionError


@pytest.mark.usefixtures("no_system_locks")
def test_without_system_locks_a_dead_holder_is_taken_over(tmp_path: Path, dead_pid: int) -> None:
    for changes in ({"pid": dead_pid}, {"pid": os.getpid()}):
        leave_lock(tmp_path / LOCK, **changes)
        with hold_folder(tmp_path, force=True):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        assert names(tmp_path) == []


@pytest.mark.usefixtures("no_system_locks")
@pytest.mark.parametrize("contents", ["", "{", "[]", '{"pid": 1}'])
def test_without_system_locks_a_lock_that_names_nobody_is_taken_over(tmp_path: Path, contents: str) -> None:
    (tmp_path / LOCK).write_text(contents)
    with hold_folder(tmp_path, force=True):
        pass
    assert names(tmp_path) == []


def test_a_lock_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with (
        pytest.raises(WriteError, match=r".lock can't be written \(Is a directory\)"),
        hold_folder(tmp_path, force=True),
    ):
        raise AssertionError
