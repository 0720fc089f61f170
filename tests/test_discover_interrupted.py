"""`python -m vitfx.discover` stopped on its way: nothing that was decided is lost."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.discover_runs import QKV, qkv_circuit, read, run
from tests.support.prune_runs import artifact
from vitfx.circuits.circuit import Decision
from vitfx.discovery.basis.journal import FileJournal
from vitfx.runs.discover import Discoveries
from vitfx.runs.tau_sweep import circuit_path
from vitfx.support.errors import UserError

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact(tmp_path_factory.mktemp("discover") / "model.pt")


@pytest.fixture(scope="module")
def circuit(path: Path) -> Path:
    return qkv_circuit(path)


def _stop(*_: Any) -> Any:
    raise KeyboardInterrupt


def _stop_at_second() -> Any:
    """`circuit_path`, until the second threshold is to be discovered."""
    asked: list[float] = []

    def path(out: Path, tau: float) -> Path:
        asked.append(tau)
        if asked.count(0.1) == 2:
            raise KeyboardInterrupt
        return circuit_path(out, tau)

    return path


def test_ctrl_c_and_on(path: Path, circuit: Path, tmp_path: Path, capsys: Captured) -> None:
    record, recorded = FileJournal.record, 0

    def interrupting(journal: FileJournal, decisions: Sequence[Decision]) -> None:
        nonlocal recorded
        record(journal, decisions)
        recorded += 1
        if recorded == 30:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileJournal, "record", interrupting)
        assert run(path, tmp_path / "out.json", *QKV) == 130
    assert capsys.readouterr().err == "\nstopped; the same command goes on where it stopped\n"
    assert [one.name for one in tmp_path.iterdir()] == [".out.json.journal"]
    assert run(path, tmp_path / "out.json", "--tau", "0.1") == 2
    assert ".out.json.journal belongs to an interrupted run of 30 decisions" in capsys.readouterr().err
    assert run(path, tmp_path / "out.json", *QKV) == 0
    assert "going on after 30 decisions" in capsys.readouterr().out
    assert [one.name for one in tmp_path.iterdir()] == ["out.json"]
    assert (tmp_path / "out.json").read_bytes() == circuit.read_bytes()


def test_ctrl_c_with_force_loses_no_decision(path: Path, circuit: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "out.json"
    out.write_text("of an earlier run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Discoveries, "_evaluation", _stop)
        assert run(path, out, *QKV, "--force") == 130
    assert capsys.readouterr().err == "\nstopped; the same command goes on where it stopped\n"
    assert run(path, out, *QKV, "--force") == 0
    assert f"going on after {len(read(circuit).decisions)} decisions" in capsys.readouterr().out
    assert out.read_bytes() == circuit.read_bytes()


def test_ctrl_c_in_a_forced_sweep_loses_no_threshold(path: Path, tmp_path: Path, capsys: Captured) -> None:
    out, thresholds = tmp_path / "out.json", ("--tau-sweep", "1e-2:1e-1:2")
    assert run(path, out, *thresholds, "--seed", "1") == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitfx.runs.tau_sweep.circuit_path", _stop_at_second())
        assert run(path, out, *thresholds, "--force") == 130
    assert capsys.readouterr().err == "\nstopped; the same command goes on where it stopped\n"
    assert run(path, out, *thresholds, "--force") == 0
    assert "out-tau0.01.json is there already" in capsys.readouterr().out


def test_ctrl_c_in_a_ranking_is_not_gone_on_from(
    path: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Discoveries, "_evaluation", broken)
    for options, said in (
        (("--method", "eap"), "begins anew"),
        (("--method", "acdc"), "goes on where it stopped"),
        (("--method", "eap", "--tau-sweep", "1e-2:1e-1:2"), "goes on where it stopped"),
    ):
        assert run(path, tmp_path / f"{len(options)}{options[1]}.json", *options) == 130
        assert capsys.readouterr().err == f"\nstopped; the same command {said}\n"


def test_what_fails_behind_a_discovery_costs_no_decision(
    path: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise UserError("the evaluation images are corrupt")

    with monkeypatch.context() as patch:
        patch.setattr(Discoveries, "_evaluation", broken)
        assert run(path, tmp_path / "out.json", *QKV) == 2
    assert [one.name for one in tmp_path.iterdir()] == [".out.json.journal"]
    assert run(path, tmp_path / "out.json", *QKV) == 0
    assert "going on after" in capsys.readouterr().out


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "every"])
def test_kill_9_at_a_write_of_the_journal(path: Path, tmp_path: Path, capsys: Captured, step: int) -> None:
    """What is on the disk then is what was written before, and perhaps a part of the line: a run goes on from either,
    to the same circuit."""
    journal, written = tmp_path / ".out.json.journal", [""]
    record = FileJournal.record

    def watched(of: FileJournal, decisions: Sequence[Decision]) -> None:
        written[-1] = written[-1] or journal.read_text()
        record(of, decisions)
        written.append(journal.read_text())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileJournal, "record", watched)
        assert run(path, tmp_path / "out.json", "--tau", "0.1") == 0
    unbroken = (tmp_path / "out.json").read_bytes()
    assert len(written) > 12
    (tmp_path / "out.json").unlink()
    for before, after in list(itertools.pairwise(written))[::step]:
        for left in (before, before + after[len(before) :][: (len(after) - len(before)) // 2]):
            journal.write_text(left)
            assert run(path, tmp_path / "out.json", "--tau", "0.1") == 0
            assert (tmp_path / "out.json").read_bytes() == unbroken
            assert [file.name for file in tmp_path.iterdir()] == ["out.json"]
            (tmp_path / "out.json").unlink()
    assert capsys.readouterr().err == ""
