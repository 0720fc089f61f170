"""`python -m vitfx.report`: runs held against each other, and one sentence for a folder that is none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.reports.test_prune_text import made
from tests.support.circuits import made_up
from tests.support.pages import Page, read
from vitfx.report import ends, main
from vitfx.reports.points import KNEE_RULE
from vitfx.reports.records import OPTIMIZE_REPORT, PRUNE_REPORT, ROUNDS_RECORD, SWEEP_RECORD
from vitfx.runs.rounds_steps import PRUNED, RECOVERED, Step
from vitfx.runs.sweep_points import Point, write_points


def folder(path: Path, found: Mapping[str, Any] | None = None, **files: Any) -> Path:
    """A run's folder with these records."""
    path.mkdir()
    if found is not None:
        (path / "report.json").write_text(json.dumps({"format": PRUNE_REPORT, **found}))
    for name, record in files.items():
        (path / f"{name}.json").write_text(record if isinstance(record, str) else json.dumps(record))
    return path


BESIDE: dict[str, Any] = {
    "ms": 9.0, "plain_ms": 10.0, "agreement": 0.9, "accuracy": 0.7, "plain_accuracy": 0.75, "images": 90, "folder": "x",
}  # fmt: skip
TARGET = {"target": "cpu:batch=8"}


def points(*costs: float) -> list[Point]:
    """A sweep's, of these KL divergences."""
    return [
        Point(asked=asked, speedup=asked or 1.1, kl=kl, params=0.8, flops=0.6, rounds=1, **BESIDE)
        for asked, kl in zip((None, 1.5, 2.0), costs, strict=True)
    ]


def sweep() -> dict[str, Any]:
    found = [one.to_json() for one in points(0.1, 0.1, 0.1)]
    return {
        "format": SWEEP_RECORD, "settings": TARGET, "environment": {"cpu": "slow"}, "knee": {"found": False},
        "points": found,
    }  # fmt: skip


def rounds() -> dict[str, Any]:
    """One round; retraining wins points back."""
    steps = [
        Step(
            round=1, kind=kind, asked=2.0, speedup=2.0, kl=kl, params=60, flops=50, params_share=0.6, flops_share=0.5,
            said=None, **BESIDE | {"accuracy": accuracy},
        )
        for kind, accuracy, kl in ((PRUNED, 0.5, 0.4), (RECOVERED, 0.7, 0.1))
    ]  # fmt: skip
    return {
        "format": ROUNDS_RECORD, "settings": TARGET, "environment": {"cpu": "slow"},
        "steps": [one.to_json() for one in steps],
    }  # fmt: skip


def compared(tmp_path: Path, *folders: Path) -> Page:
    assert main([*map(str, folders), "--out", str(tmp_path / "compare.html")]) == 0
    return read((tmp_path / "compare.html").read_text())


def test_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = folder(tmp_path / "one <1>", made(), circuit=made_up("head").to_json())
    second = folder(tmp_path / "two", made(labelled=False))
    page = compared(tmp_path, first, second)
    assert page.headings[0][1] == "2 runs of vitfx"
    first_has = ["baseline and pruned", "what died, and where", "sensitivity by layer", "how it was made"]
    names = [
        "Accuracy against time",
        "KL against time",
        "All models",
        "Time",
        *(f"{first.name}: {one}" for one in first_has),
    ]
    names += [f"{second.name}: baseline and pruned", f"{second.name}: how it was made"]
    assert page.sections == names
    assert [
        first.name, "2", "pruned", "70.00%", "90.00%", "0.2500", "0.750", "0.600", "1.100", "0.91×", "batch 64, CPU",
    ] in page.cells  # fmt: skip
    assert "agreement with the original, %" in page.told, "one run has no labels"
    assert f"{tmp_path / 'compare.html'} has the comparison" in capsys.readouterr().out


def test_runs_of_one_task_are_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several = made()
    several["settings"] = {**several["settings"], "task": "labels"}
    runs = [folder(tmp_path / "classes", made()), folder(tmp_path / "labels", several)]
    page = compared(tmp_path, *runs, Path("--task"), Path("labels"))
    assert {row[0] for row in page.cells if row[2:3] == ["pruned"]} - {""} == {"labels"}
    assert main([*map(str, runs), "--task", "dense", "--out", str(tmp_path / "no.html")]) == 2
    assert "--task dense is of none of these runs, which are of classes and labels" in capsys.readouterr().err


def test_a_sweep_gives_all_its_points(tmp_path: Path) -> None:
    path = folder(tmp_path / "sweep", sweep=sweep())
    page = compared(tmp_path, path)
    assert page.sections == ["Accuracy against time", "KL against time", "All models", f"{path.name}: how it was made"]
    assert [row[2] for row in page.cells[1:]] == [
        "plain export", "exact rewrites", "asked for 1.5×", "asked for 2×",
    ]  # fmt: skip
    assert [row[8] for row in page.cells[1:]] == ["1.000", "0.909", "0.667", "0.500"]


def test_the_knee_of_a_sweep_is_ringed(tmp_path: Path) -> None:
    path = folder(tmp_path / "sweep")
    write_points(path, points(0.01, 0.02, 0.5), TARGET, {})
    page = compared(tmp_path, folder(tmp_path / "run", made()), path)
    assert [row[2] for row in page.cells if row[0] == path.name] == [
        "plain export", "exact rewrites", "asked for 1.5×, the knee", "asked for 2×",
    ]  # fmt: skip
    drawn = (tmp_path / "compare.html").read_text()
    assert drawn.count('stroke="var(--ink)"') == 2, "in both pictures"
    numbers = [one for one in re.findall(r">([\d, ]+)</text>", drawn) if one in ("1, 3", "4", "5", "6")]
    assert numbers == ["1, 3", "5", "6"] * 2, "of a sweep its ends and its knee"
    assert page.told.count(f"Ringed: the knee of a sweep, {KNEE_RULE}.") == 2
    (label,) = (one for one in page.labels if one.startswith("KL from the original over time"))
    assert f"{path.name}: asked for 1.5×, the knee 0.667 of the time, 0.02 nats an image" in label


def test_rounds_give_a_point_a_step(tmp_path: Path) -> None:
    path = folder(tmp_path / "rounds", rounds=rounds())
    page = compared(tmp_path, path)
    assert page.sections == ["Accuracy against time", "KL against time", "All models", f"{path.name}: how it was made"]
    assert [row[2:] for row in page.cells[1:]] == [
        ["plain export", "75.00%", "100.00%", "0.0000", "1.000", "1.000", "1.000", "1.00×", "cpu:batch=8"],
        ["round 1, pruned", "50.00%", "90.00%", "0.4000", "0.600", "0.500", "0.500", "2.00×", "cpu:batch=8"],
        ["round 1, recovered", "70.00%", "90.00%", "0.1000", "0.600", "0.500", "0.500", "2.00×", "cpu:batch=8"],
    ]
    drawn = (tmp_path / "compare.html").read_text()
    assert drawn.count("<polyline") == 2
    assert drawn.count(">round 1, pruned</text>") == 2
    assert "Ringed" not in page.told


def test_the_time_is_that_of_the_batch_which_the_speed_up_is_of(tmp_path: Path) -> None:
    page = compared(tmp_path, folder(tmp_path / "run", {**made(), "batch": 1}))
    assert [row[9:] for row in page.cells if row[1:3] == ["2", "pruned"]] == [["2.00×", "batch 1, CPU"]]


def test_a_circuit_of_an_earlier_version_is_not_shown(tmp_path: Path) -> None:
    first = folder(tmp_path / "old", made(), circuit={"format": "vitfx-circuit/1", "decisions": []})
    second = folder(tmp_path / "new", made(), circuit=made_up("head").to_json())
    page = compared(tmp_path, first, second)
    own = [one.removeprefix(f"{first.name}: ") for one in page.sections if one.startswith(f"{first.name}: ")]
    assert own == ["baseline and pruned", "what is left out", "how it was made"]
    said = f"What died is not shown: {first / 'circuit.json'}: format 'vitfx-circuit/1' is not vitfx-circuit/2"
    assert said in page.told
    assert "of the head graph removed by acdc" in page.told
    assert f"{second.name}: what died, and where" in page.sections


def test_a_damaged_plan_stops_no_comparison(tmp_path: Path) -> None:
    path = folder(tmp_path / "run", made(), circuit=made_up("head").to_json(), plan={})
    page = compared(tmp_path, path)
    assert f"{path.name}: what died, and where" not in page.sections
    assert "What died is not shown: " in page.told


def test_mistakes_are_told_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = folder(tmp_path / "good", made())
    damaged: Any = made()
    del damaged["pruned"]["flops"]
    hidden: Any = made()
    del hidden["verify"]["onnx"]
    known = "not a vitfx-prune-report/1 or a vitfx-recover-report/1: give folders that"
    cases = {
        tmp_path / "nowhere": "is not there: give folders of",
        folder(tmp_path / "empty"): "has none of report.json, sweep.json and rounds.json: give",
        folder(tmp_path / "begun", sweep=sweep() | {"points": []}): "has no model yet: give",
        folder(tmp_path / "steps", rounds=rounds() | {"steps": [{}]}): "has a damaged report (KeyError(",
        folder(tmp_path / "list", report=[1]): f"is of no format, {known}",
        folder(tmp_path / "old", report=made()): f"is of no format, {known}",
        folder(tmp_path / "other", {"format": OPTIMIZE_REPORT}): f"is a vitfx-optimize-report/1, {known}",
        folder(tmp_path / "front", sweep=rounds()): "is a vitfx-rounds/1, not a vitfx-sweep/1: give",
        folder(tmp_path / "text", report="{"): "is not JSON (Expecting",
        folder(tmp_path / "damaged", damaged): "has a damaged report (KeyError('flops')): give",
        folder(tmp_path / "hidden", hidden): "has a damaged report (KeyError('onnx')): give",
    }
    out = tmp_path / "compare.html"
    for path, sentence in cases.items():
        assert main([str(good), str(path), "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert said.startswith((f"error: {path}", f"error: {path.name} "))
        assert sentence in said
        assert said.count("\n") == 1
        assert not out.exists()
    for name, sentence in (
        ("page.md", "is not an .html file"),
        ("no/page.html", "does not exist"),
        ("d.html", "is a folder"),
    ):
        (tmp_path / "d.html").mkdir(exist_ok=True)
        assert main([str(good), "--out", str(tmp_path / name)]) == 2
        assert sentence in capsys.readouterr().err
    out.write_text("mine")
    assert main([str(good), "--out", str(out)]) == 2
    assert "already exists: give another name with --out, or --force" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main([str(good), "--out", str(out), "--force"]) == 0
    read(out.read_text())


def test_runs_are_named_as_shortly_as_they_differ(tmp_path: Path) -> None:
    assert ends([tmp_path / "a", tmp_path / "b/"]) == ["a", "b"]
    assert ends([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == ["x/run", "y/run"]
    assert ends([tmp_path / "a", tmp_path / "a"]) == ["a", "a"]
    assert ends([Path("/")]) == ["/"]
