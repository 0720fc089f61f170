"""`benchmarks.classes`: which draws are made and resumed, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import classes
from benchmarks.classes_table import draw, markdown, table
from tests.support.goals import times_by_units
from tests.support.prune_runs import checkpoint
from vitfx.runs.prune import PruneResult
from vitfx.runs.prune_run import GoalRun
from vitfx.support.pictures import png_bytes


def side(**changes: float) -> dict[str, float]:
    return {"flops": 100, "params": 200, "accuracy": 0.9} | changes


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[GoalRun]:
    """The runs that were asked for, whose results are made up."""
    asked: list[GoalRun] = []

    def run_goal(run: GoalRun, _: object) -> PruneResult:
        asked.append(run)
        count = len(run.inputs.model.classes or ())
        report: Any = {
            "baseline": side(),
            "pruned": side(flops=40 + count, params=100, accuracy=0.9 - 0.001 * run.seed),
            "kl": 0.01 * count,
            "speedup": 2.0,
            "speedup_by_batch": {"8": 2.0},
            "images": {"calibration": 9, "evaluation": len(run.evaluation), "skipped": 0},
            "settings": {"tokens": "r=2"},
        }
        return PruneResult(report)

    monkeypatch.setattr(classes, "run_goal", run_goal)
    return asked


def measure(folder: Path, *more: str) -> int:
    path = folder / "vit.pt"
    if not path.exists():
        checkpoint(path)
    return classes.main([str(path), "--out", str(folder / "out.json"), "--counts", "3,2,10", "--device", "cpu", *more])


def test_draws_are_made_once(tmp_path: Path, runs: list[GoalRun]) -> None:
    assert measure(tmp_path, "--draws", "2", "--tokens", "off") == 0
    chosen = [run.inputs.model.classes or () for run in runs]
    assert [len(names) for names in chosen] == [2, 2, 3, 3, 10, 10]
    assert chosen[0] != chosen[1] and [run.seed for run in runs] == [0, 1] * 3
    for run, names in zip(runs, chosen, strict=True):
        assert run.inputs.splits.classes == names and run.tokens == "off" and run.further and not run.heal_minutes
        assert run.evaluation.labels is not None and set(run.evaluation.labels) == set(range(len(names)))
    record = json.loads((tmp_path / "out.json").read_text())
    assert [row["classes"] for row in record["rows"].values()][:4] == [list(names) for names in chosen[:4]]
    assert measure(tmp_path, "--draws", "3", "--tokens", "off") == 0
    assert len(runs) == 9 and [run.seed for run in runs[6:]] == [2, 2, 2]
    assert measure(tmp_path, "--draws", "2", "--tokens", "auto") == 2
    assert len(runs) == 9


def test_table_markdown_and_picture(tmp_path: Path, runs: list[GoalRun]) -> None:
    plot = tmp_path / "plot.png"
    assert measure(tmp_path, "--draws", "2", "--markdown", str(tmp_path / "out.md"), "--plot", str(plot)) == 0
    record = json.loads((tmp_path / "out.json").read_text())
    rows = table(record).rows
    assert [row[:2] for row in rows] == [["2", "2"], ["3", "2"], ["10", "2"]]
    assert rows[0][2:8] == [
        "42.0 ± 0.0 %",
        "50.0 ± 0.0 %",
        "90.0 ± 0.0 %",
        "0.05 ± 0.07",
        "0.020 ± 0.000",
        "2.00 ± 0.00×",
    ]
    assert (tmp_path / "out.md").read_text() == markdown(record) and "at most 0.5 points" in markdown(record)
    assert plot.read_bytes() == png_bytes(lambda: draw(record))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--counts", "1,5"), "--counts is [1, 5]: give numbers of 2 or more"),
        (("--counts", "two"), "--counts is 'two': give numbers such as"),
        (("--counts", "2,11"), "--counts has 11, and the model 10 classes: give fewer"),
        (("--draws", "0"), "--draws is 0: give 1 or more"),
        (("--max-drop", "0"), "--max-drop 0 allows nothing"),
    ],
)
def test_one_sentence(more: tuple[str, ...], sentence: str, tmp_path: Path, runs: list[GoalRun], capsys: Any) -> None:
    assert measure(tmp_path, *more) == 2
    assert sentence in capsys.readouterr().err and not runs


def test_a_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times_by_units(monkeypatch, tmp_path / "cache")
    more = ("--counts", "3", "--draws", "1", "--max-drop", "30", "--samples", "24", "--tokens", "off")
    assert measure(tmp_path, *more) == 0
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"].values()
    assert 0 < row["flops"] <= 1 and 0 < row["parameters"] <= 1 and row["speedup"] > 0
    assert row["images"]["calibration"] == 24 and len(row["classes"]) == 3
