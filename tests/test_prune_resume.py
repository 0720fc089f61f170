"""A run that was broken off goes on where it stopped and ends with the same circuit, to the byte."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import vitfx.discovery.methods.acdc
from tests.support.prune_runs import EDGES, Stopped, artifact, discover, run, run_circuit
from vitfx.circuits.circuit import Decision
from vitfx.discovery.basis.journal import FileJournal
from vitfx.support.files import JOURNAL

_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.support.prune_runs import run
from vitfx.discovery.basis.journal import FileJournal

record, count = FileJournal.record, 0

def killed(self, decision):
    global count
    record(self, decision)
    count += 1
    if count == 4:
        with self.path.open("a") as file:
            file.write('{"edge": "m0.p')
        os.kill(os.getpid(), signal.SIGKILL)

FileJournal.record = killed
run(sys.argv[1], Path(sys.argv[2]), "--tau", "0.01")
"""


@dataclass
class Whole:
    """A model, and the circuit.json of a run that nothing broke off."""

    model: Path
    circuit: bytes


@dataclass
class Evaluations:
    """Counts how many edges the search decides."""

    monkeypatch: pytest.MonkeyPatch
    count: int = field(default=0)

    def __post_init__(self) -> None:
        decide = vitfx.discovery.methods.acdc._decide

        def counted(*arguments: Any) -> Decision:
            self.count += 1
            return decide(*arguments)

        self.monkeypatch.setattr(vitfx.discovery.methods.acdc, "_decide", counted)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    path = artifact(folder / "model.pt")
    return Whole(path, discover(path, folder / "out", "--tau", "0.01"))


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> Evaluations:
    return Evaluations(monkeypatch)


def interrupted(whole: Whole, out: Path, after: int, *options: str) -> int:
    """The exit code of a run with Ctrl-C once `after` decisions are recorded."""
    record = FileJournal.record
    recorded = 0

    def interrupting(journal: FileJournal, decisions: Sequence[Decision]) -> None:
        nonlocal recorded
        record(journal, decisions)
        recorded += 1
        if recorded == after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileJournal, "record", interrupting)
        return run(whole.model, out, "--tau", "0.01", *options)


@pytest.mark.parametrize("after", [1, EDGES - 1])
def test_ctrl_c(
    whole: Whole, tmp_path: Path, evaluations: Evaluations, capsys: pytest.CaptureFixture[str], after: int
) -> None:
    assert interrupted(whole, tmp_path / "out", after) == 130
    assert capsys.readouterr().err == "\nstopped; the same command goes on where it stopped\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [JOURNAL]
    assert evaluations.count == after
    assert discover(whole.model, tmp_path / "out", "--tau", "0.01") == whole.circuit
    assert f"going on after {after} decisions of an earlier run" in capsys.readouterr().out
    assert evaluations.count == EDGES


def test_ctrl_c_with_force_loses_no_decision(
    whole: Whole, tmp_path: Path, evaluations: Evaluations, capsys: pytest.CaptureFixture[str]
) -> None:
    assert interrupted(whole, tmp_path / "out", 5, "--force") == 130
    assert capsys.readouterr().err == "\nstopped; the same command goes on where it stopped\n"
    assert discover(whole.model, tmp_path / "out", "--tau", "0.01", "--force") == whole.circuit
    assert evaluations.count == EDGES


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("kind", ["circuit", "goal", "ranking"])
def test_what_keeps_nothing_begins_anew(
    kind: str, force: tuple[str, ...], whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "c.json").write_bytes(whole.circuit)
    options = {
        "circuit": ("--circuit", str(tmp_path / "c.json")),
        "goal": ("--target-flops", "0.8", "--samples", "24"),
        "ranking": ("--method", "eap", "--remove", "0.2", "--samples", "16", "--paths", "4"),
    }[kind]
    monkeypatch.setattr("vitfx.runs.prune.write_files", stop)
    for _ in range(2):
        assert run_circuit(whole.model, tmp_path / "out", *options, *force) == 130
        assert capsys.readouterr().err == "\nstopped; the same command begins anew\n"


def test_two_interruptions(whole: Whole, tmp_path: Path, evaluations: Evaluations) -> None:
    assert interrupted(whole, tmp_path / "out", after=3) == 130
    assert interrupted(whole, tmp_path / "out", after=4) == 130
    assert evaluations.count == 7
    assert discover(whole.model, tmp_path / "out", "--tau", "0.01") == whole.circuit
    assert evaluations.count == EDGES


def test_a_crash_in_the_export(
    whole: Whole, tmp_path: Path, evaluations: Evaluations, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr("vitfx.runs.prune_files.export_checked", crash)
        with pytest.raises(Stopped):
            run(whole.model, tmp_path / "out", "--tau", "0.01")
    assert evaluations.count == EDGES
    assert discover(whole.model, tmp_path / "out", "--tau", "0.01") == whole.circuit
    assert evaluations.count == EDGES


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_process(whole: Whole, tmp_path: Path, evaluations: Evaluations) -> None:
    """It dies in the middle of a line."""
    command = [sys.executable, "-c", _KILLED, str(whole.model), str(tmp_path / "out")]
    root = Path(__file__).parents[1]
    died = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert (tmp_path / "out" / JOURNAL).read_text().endswith('\n{"edge": "m0.p')
    assert discover(whole.model, tmp_path / "out", "--tau", "0.01") == whole.circuit
    assert evaluations.count == EDGES - 4


def test_other_settings_do_not_go_on(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str], evaluations: Evaluations
) -> None:
    out = tmp_path / "out"
    assert interrupted(whole, out, after=5) == 130
    journal = (out / JOURNAL).read_text()
    capsys.readouterr()
    assert run(whole.model, out, "--tau", "0.02") == 2
    assert capsys.readouterr().err == (
        f"error: {out / JOURNAL} belongs to an interrupted run of 5 decisions with other settings, another model or "
        "other images: give those to resume it, another place with --out, or --force to begin anew\n"
    )
    assert (out / JOURNAL).read_text() == journal
    assert evaluations.count == 5
    discover(whole.model, out, "--tau", "0.011", "--force")
    assert evaluations.count == 5 + EDGES


def test_earlier_results_stay_until_there_are_new_ones(whole: Whole, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.md").write_text("of an earlier run")
    (out / "notes.txt").write_text("mine")
    assert interrupted(whole, out, 5, "--force") == 130
    assert (out / "report.md").read_text() == "of an earlier run"
    discover(whole.model, out, "--tau", "0.01")
    assert not (out / "report.md").exists()
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("there", [True, False])
def test_a_tau_that_removes_everything_leaves_the_folder_as_it_was(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str], there: bool
) -> None:
    """The decisions are worth nothing, and the user's next try has another τ, perhaps with the same --out."""
    out = tmp_path / "out"
    if there:
        out.mkdir()
    assert run(whole.model, out, "--tau", "1e9") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: at τ = 1000000000.0 nothing of the image reaches the logits any more")
    assert said.endswith("choose a smaller --tau or set --max-kl\n")
    assert out.exists() == there
    assert not there or list(out.iterdir()) == []


def test_a_full_disk_keeps_the_decisions(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, appended = Path.open, 0

    def full(path: Path, mode: str = "r", *arguments: Any, **settings: Any) -> Any:
        nonlocal appended
        appended += path.name == JOURNAL and mode == "a"
        if appended == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, mode, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        assert run(whole.model, tmp_path / "out", "--tau", "0.01") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / 'out' / JOURNAL} can't be written (No space left on device)")
    discover(whole.model, tmp_path / "out", "--tau", "0.01")
    assert "going on after 3 decisions" in capsys.readouterr().out
