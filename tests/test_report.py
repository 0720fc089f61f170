"""`python -m vitfx.report`: runs held against each other, and one sentence for a folder that is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.circuits import made_up
from tests.pages import Page, read
from tests.test_prune_report import made
from vitfx.pareto import Point
from vitfx.report import main


def folder(path: Path, found: dict[str, Any] | None = None, **files: Any) -> Path:
    """A run's folder with these records."""
    path.mkdir()
    if found is not None:
        (path / "report.json").write_text(json.dumps(found))
    for name, record in files.items():
        (path / f"{name}.json").write_text(record if isinstance(record, str) else json.dumps(record))
    return path


def sweep() -> dict[str, Any]:
    speeds = (None, 1.5, 2.0)
    points = [
        Point(
            asked=asked,
            speedup=asked or 1.1,
            ms=9.0,
            plain_ms=10.0,
            kl=0.1,
            agreement=0.9,
            accuracy=0.7,
            plain_accuracy=0.75,
            images=90,
            params=0.8,
            flops=0.6,
            rounds=1,
            folder="x",
        ).to_json()
        for asked in speeds
    ]
    return {"settings": {"target": "cpu:batch=8"}, "environment": {}, "knee": {}, "points": points}


def compared(tmp_path: Path, *folders: Path) -> Page:
    assert main([*map(str, folders), "--out", str(tmp_path / "compare.html")]) == 0
    return read((tmp_path / "compare.html").read_text())


def test_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = folder(tmp_path / "one <1>", made(), circuit=made_up("head").to_json())
    second = folder(tmp_path / "two", made(labelled=False))
    page = compared(tmp_path, first, second)
    assert page.headings[0][1] == "2 runs of vitfx"
    first_has = ["baseline and pruned", "what died, and where", "sensitivity by layer", "how it was made"]
    names = ["Accuracy against time", "All models", "Time", *(f"{first}: {one}" for one in first_has)]
    names += [f"{second}: baseline and pruned", f"{second}: how it was made"]
    assert page.sections == names
    assert [
        str(first), "2", "pruned", "70.00%", "90.00%", "0.2500", "0.750", "0.600", "1.100", "0.91×", "batch 64, CPU",
    ] in page.cells  # fmt: skip
    assert "agreement with the original, %" in page.told, "one run has no labels"
    assert f"{tmp_path / 'compare.html'} has the comparison" in capsys.readouterr().out


def test_a_sweep_gives_all_its_points(tmp_path: Path) -> None:
    page = compared(tmp_path, folder(tmp_path / "sweep", sweep=sweep()))
    assert page.sections == ["Accuracy against time", "All models"]
    assert [row[2] for row in page.cells[1:]] == [
        "plain export", "exact rewrites", "asked for 1.5×", "asked for 2×",
    ]  # fmt: skip
    assert [row[8] for row in page.cells[1:]] == ["1.000", "0.909", "0.667", "0.500"]


def test_mistakes_are_told_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = folder(tmp_path / "good", made())
    damaged = made()
    del damaged["pruned"]["flops"]
    hidden = made()
    del hidden["verify"]["onnx"]
    cases = {
        tmp_path / "nowhere": "is no folder: give folders that",
        folder(tmp_path / "empty"): "has neither report.json nor sweep.json: give",
        folder(tmp_path / "list", report=[1]): "is no report of vitfx: give",
        folder(tmp_path / "other", {"rewrites": []}): "is a report of neither vitfx.prune nor vitfx.recover: give",
        folder(tmp_path / "text", report="{"): "can't be read (Expecting",
        folder(tmp_path / "damaged", damaged): "has a damaged report (KeyError('flops')): give",
        folder(tmp_path / "hidden", hidden): "has a damaged report (KeyError('onnx')): give",
    }
    out = tmp_path / "compare.html"
    for path, sentence in cases.items():
        assert main([str(good), str(path), "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {path}")
        assert sentence in said
        assert said.count("\n") == 1
        assert not out.exists()
    for name, sentence in (("page.md", "is no .html"), ("no/page.html", "does not exist"), ("d.html", "is a folder")):
        (tmp_path / "d.html").mkdir(exist_ok=True)
        assert main([str(good), "--out", str(tmp_path / name)]) == 2
        assert sentence in capsys.readouterr().err
    out.write_text("mine")
    assert main([str(good), "--out", str(out)]) == 2
    assert "is there already: give another name with --out, or --force" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main([str(good), "--out", str(out), "--force"]) == 0
    read(out.read_text())
