"""`python -m vitfx.discover --tau-sweep`: a circuit for each threshold, and their table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.discover_runs import read, run
from tests.support.prune_runs import artifact
from vitfx.runs.discover import Discoveries
from vitfx.runs.tau_sweep import read_sweep

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact(tmp_path_factory.mktemp("sweep") / "model.pt")


def test_a_sweep(path: Path, tmp_path: Path, capsys: Captured) -> None:
    sweep = ("--tau-sweep", "1e-3:1e-1:3")
    assert run(path, tmp_path / "c.json", *sweep) == 0
    names = ["c-sweep.json", "c-tau0.001.json", "c-tau0.01.json", "c-tau0.1.json"]
    assert sorted(one.name for one in tmp_path.iterdir()) == names
    rows = json.loads((tmp_path / "c-sweep.json").read_text())["sweep"]
    for row, name in zip(rows, names[1:], strict=True):
        found = read(tmp_path / name)
        assert (row["file"], row["tau"], row["kl"]) == (name, found.settings["tau"], found.kl)
        assert row["removed"] == len(found.removed) == row["dead_heads"] + row["dead_paths"]
    assert rows[0]["removed"] < rows[1]["removed"] < rows[2]["removed"]
    assert run(path, tmp_path / "one.json", "--tau", "0.01") == 0
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "c-tau0.01.json").read_bytes()

    # What is there is not discovered again; what is missing is.
    (tmp_path / "c-tau0.01.json").unlink()
    before = (tmp_path / "c-tau0.1.json").stat().st_mtime_ns
    capsys.readouterr()
    assert run(path, tmp_path / "c.json", *sweep) == 0
    said = capsys.readouterr().out
    assert "c-tau0.001.json is there already" in said
    assert said.count("the head graph has") == 1
    assert (tmp_path / "c-tau0.1.json").stat().st_mtime_ns == before
    again = json.loads((tmp_path / "c-sweep.json").read_text())["sweep"]
    assert [one["fingerprint"] for one in again] == [one["fingerprint"] for one in rows]
    assert run(path, tmp_path / "c.json", *sweep, "--seed", "1") == 2
    assert "c-sweep.json is of another sweep (its seed is 0, not 1): give another name" in capsys.readouterr().err

    # Another range leaves what is there in the record, and its circuits are known again afterwards.
    assert run(path, tmp_path / "c.json", "--tau-sweep", "1e-2:1:3") == 0
    merged = json.loads((tmp_path / "c-sweep.json").read_text())["sweep"]
    assert [one["tau"] for one in merged] == [0.001, 0.01, 0.1, 1.0]
    capsys.readouterr()
    assert run(path, tmp_path / "c.json", *sweep) == 0
    assert capsys.readouterr().out.count("is there already") == 3
    assert run(path, tmp_path / "c.json", *sweep, "--eval-samples", "7") == 2
    assert "(its eval_samples is 40, not 7)" in capsys.readouterr().err


def test_a_sweep_leaves_the_table_of_another(path: Path, tmp_path: Path, capsys: Captured) -> None:
    sweep = ("--tau-sweep", "1e-2:1e-1:2")
    assert run(path, tmp_path / "c.json", *sweep) == 0
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    other = ("--tau-sweep", "2e-2:2e-1:2", "--seed", "1")
    assert run(path, tmp_path / "c.json", *other) == 2
    assert "c-sweep.json is of another sweep (its seed is 0, not 1)" in capsys.readouterr().err
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before
    (tmp_path / "c-sweep.json").write_text("notes")
    assert run(path, tmp_path / "c.json", *sweep) == 2
    assert "c-sweep.json is not JSON (" in capsys.readouterr().err
    # The circuits have no row then, and are the same when they are found again.
    (tmp_path / "c-sweep.json").unlink()
    assert run(path, tmp_path / "c.json", *sweep, "--seed", "1") == 2
    assert "c-tau0.01.json is there already, of other settings, model or images" in capsys.readouterr().err
    assert run(path, tmp_path / "c.json", *sweep) == 0
    assert "c-tau0.01.json has no row in the table, and is discovered again" in capsys.readouterr().out
    for name in ("c-tau0.01.json", "c-tau0.1.json"):
        assert (tmp_path / name).read_bytes() == before[name]
    assert run(path, tmp_path / "c.json", *other, "--force") == 0
    record = json.loads((tmp_path / "c-sweep.json").read_text())
    assert record["format"] == "vitfx-tau-sweep/1" and record["settings"]["seed"] == 1
    assert [row["seconds"] > 0 for row in record["sweep"]] == [True, True]


def test_a_threshold_that_was_broken_off_has_no_seconds(
    path: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyboardInterrupt

    sweep = ("--tau-sweep", "1e-2:1e-1:2")
    with monkeypatch.context() as patch:
        patch.setattr(Discoveries, "_evaluation", broken)
        assert run(path, tmp_path / "c.json", *sweep) == 130
    assert run(path, tmp_path / "c.json", *sweep) == 0
    first, second = json.loads((tmp_path / "c-sweep.json").read_text())["sweep"]
    assert first["seconds"] is None and second["seconds"] > 0


def test_thresholds_of_a_sweep() -> None:
    assert read_sweep("1e-5:1e-1:9")[::2] == (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    assert read_sweep("1e-5:1e-1:9")[1] == 3.162e-5
