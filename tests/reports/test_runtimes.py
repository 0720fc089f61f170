"""`python -m vitfx.report` on results of benchmarks.runtimes: bars for every batch and runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import runtimes
from tests.reports.test_peers import written
from tests.reports.test_prune_text import made
from tests.support.pages import read
from tests.support.prune_runs import artifact
from tests.test_report import folder
from vitfx.report import main
from vitfx.reports.records import RUNTIMES_RECORD


def row(model: str, runtime: str, batch: int, ms: float | None, unavailable: str | None = None) -> dict[str, Any]:
    """As benchmarks.measure writes it."""
    timing = {} if ms is None else {"median_ms": ms, "p10_ms": ms, "p90_ms": ms, "rounds": 5}
    return {"model": model, "runtime": runtime, "batch": batch, **timing, "ratio": None, "unavailable": unavailable}


def record(*more: dict[str, Any]) -> dict[str, Any]:
    """Two models on two runtimes, of which the second does not take one of them."""
    rows = [
        row("baseline", "torch", 1, 20.0),
        row("<b>", "torch", 1, 10.0),
        row("baseline", "onnxruntime", 8, 12.34),
        row("<b>", "onnxruntime", 8, None, "it has no file"),
        *more,
    ]
    models = [{"name": name, "source": f"{name}.pt"} for name in ("baseline", "<b>")]
    return {
        "format": RUNTIMES_RECORD, "settings": {"seed": 3}, "environment": {"cpu": "slow"}, "data": "digits",
        "models": models, "latency": rows,
        "evaluation": {},
    }  # fmt: skip


def test_bars_beside_a_run(tmp_path: Path) -> None:
    path, out = written(tmp_path / "runtimes.json", record()), tmp_path / "compare.html"
    assert main([str(folder(tmp_path / "run", made())), str(path), "--out", str(out)]) == 0
    page = read(out.read_text())
    assert page.headings[0][1] == "2 runs of vitfx"
    assert {row[0] for row in page.cells[1:3]} == {"run"}
    for told in ("runtimes.json, batch 1, torch", "runtimes.json, batch 8, onnxruntime", "20 ms", "10 ms", "12.3 ms"):
        assert told in page.told
    assert "<b> was not timed at batch 8 on onnxruntime: it has no file." in page.told
    assert "runtimes.json: how it was made" in page.sections
    assert "slow" in page.told


def test_alone(tmp_path: Path) -> None:
    path, out = written(tmp_path / "runtimes.json", record()), tmp_path / "compare.html"
    assert main([str(path), "--out", str(out)]) == 0
    assert read(out.read_text()).sections == [
        "Time", "runtimes.json: what is left out", "runtimes.json: how it was made",
    ]  # fmt: skip


def test_what_a_command_writes_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured, out = tmp_path / "runtimes.json", tmp_path / "compare.html"
    options = ["--batches", "1,2", "--rounds", "2", "--samples", "4", "--device", "cpu", "--runtimes", "torch"]
    assert runtimes.main(["demo", str(artifact(tmp_path / "m.pt")), *options, "--out", str(measured)]) == 0
    assert main([str(measured), "--out", str(out)]) == 0
    told = read(out.read_text()).told
    for found in json.loads(measured.read_text())["latency"]:
        assert f"batch {found['batch']}, {found['runtime']}" in told


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (record(row("new", "torch", 1, 1.0)), "(ValueError(\"'new' is not in list\")): give"),
        (record(row("baseline", "torch", 1, float("nan"))), "(ValueError('median_ms is nan')): give"),
        (record(row("baseline", "torch", 1, None)), "(KeyError('median_ms')): give"),
        (record() | {"latency": []}, "(ValueError('no model was timed')): give"),
        (record() | {"latency": [1]}, "(TypeError("),
    ],
)
def test_what_is_damaged(found: Any, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = written(tmp_path / "other.json", found), tmp_path / "compare.html"
    assert main([str(path), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path} is a damaged result of benchmarks.runtimes ") and sentence in said
    assert not out.exists()
