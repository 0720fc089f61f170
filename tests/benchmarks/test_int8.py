"""benchmarks.int8: a row for each thing that is left out, and a record that says what it was measured on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.int8 import FORMAT, main
from vitfx.deploy.quantize import TUNINGS


def test_each_row_leaves_one_thing_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "int8.json"
    assert main(["demo", "--samples", "32", "--eval-samples", "64", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["format"] == FORMAT and record["counts"] == {"calibration": 32, "evaluation": 64}
    assert list(record["rows"]) == ["nothing", "maps in float32", *TUNINGS]
    assert all(row["kl"] >= 0 and row["quantized"] > 20 for row in record["rows"].values())
    assert str(out) in capsys.readouterr().out


def test_too_few_images_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--samples", "1"]) == 2
    assert "--samples is 1: give 2 or more" in capsys.readouterr().err
