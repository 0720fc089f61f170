"""What each stage takes is measured in a process of its own, and what it grows with is found again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import size_stages, sizes
from benchmarks.size_stages import STAGES, Cell, measure
from benchmarks.sizes_table import tables, to_markdown


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ("search", "export")])
def test_a_stage_is_measured(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Search and export, which take longer, have their own tests."""
    monkeypatch.setitem(size_stages.SHAPES, "ti", (32, 2, 2))
    monkeypatch.setattr(size_stages, "_CLASSES", 10)
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng():
            row = measure(Cell("ti", 5, stage, 4, 0))
    finally:
        torch.set_num_threads(threads)
    assert row["peak_mib"] >= row["before_mib"] > 50
    assert row["seconds"] > 0 and row["forward_seconds"] > 0
    assert row["parameters"] == 2 * (12 * 32**2 + 13 * 32) + 5 * 32 + 32 + 769 * 32 + 2 * 32 + 33 * 10


def row(model: str, tokens: int, stage: str = "proof", **changes: Any) -> dict[str, Any]:
    """Of a stage that takes the weights twice and the streams three times, in ten forward passes."""
    width, depth, _ = size_stages.SHAPES[model]
    parameters = 12 * depth * width**2
    peak = 100 + 4 * (2 * parameters + 3 * 16 * tokens * width) / 2**20
    return {
        "model": model, "tokens": tokens, "stage": stage, "images": 16, "seed": 0, "seconds": 20.0,
        "forward_seconds": 2.0, "before_mib": 100.0, "peak_mib": peak, "parameters": parameters, "flops": 3e9,
    } | changes  # fmt: skip


def test_tables() -> None:
    rows = [row(model, tokens) for model in ("ti", "s") for tokens in (197, 577)]
    measured, formulas, paper = tables([*rows, {**row("l", 197), "error": "memory ran out"}])
    assert measured.rows[0] == ("ViT-Ti", "197", "proof", "20.0", "10.0", "147", "47")
    assert measured.rows[-1] == ("ViT-L", "197", "proof", "–", "–", "–", "memory ran out")
    assert formulas.rows == [("proof", "2.00", "3.00", "0.00", "0%")]
    # 10 passes of 16 images of 3 GFLOPs, at 60 TFLOP/s.
    assert paper.rows[0] == ("ViT-Ti", "197", "proof", "0.48", "0.01", "0.01")
    (_, shared) = tables([row("ti", 197, "discovery", flops=3e12)])
    assert shared.rows[0][-3:] == ("480.00", "8.00", "1.00")
    assert [table.title for table in tables([row("ti", 197, "export")])] == ["What each stage takes"]
    text = to_markdown(rows, {"torch": "2.14", "cpu": "a CPU"})
    assert "torch 2.14" in text and "| proof | 2.00 | 3.00 | 0.00 | 0% |" in text


def test_what_was_measured_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def alone(cell: Cell) -> dict[str, Any]:
        asked.append(cell.name)
        return {"error": "memory ran out"} if cell.model == "s" else row(cell.model, cell.tokens, cell.stage)

    monkeypatch.setattr(sizes, "_alone", alone)
    command = ["--stages", "proof", "--images", "16", "--out", str(tmp_path / "sizes.json")]
    assert sizes.main([*command, "--models", "ti", "--tokens", "197,50"]) == 0
    assert sizes.main([*command, "--models", "s,ti", "--tokens", "197", "--markdown", str(tmp_path / "a.md")]) == 0
    assert asked == ["vit-ti/50/proof", "vit-ti/197/proof", "vit-s/197/proof"]
    assert set(json.loads((tmp_path / "sizes.json").read_text())["rows"]) == set(asked)
    assert "memory ran out" in (tmp_path / "a.md").read_text()
    assert sizes.main([*command, "--models", "ti", "--images", "8"]) == 2
    assert "was made with other settings" in capsys.readouterr().err


def test_a_process_that_is_ended_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    code: Any = 3
    monkeypatch.setattr(sizes, "measure", os._exit)
    assert "was ended" in sizes._alone(code)["error"]


@pytest.mark.parametrize("tokens", ["196", "1", "a"])
def test_token_counts_that_no_image_has(tokens: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sizes.main(["--tokens", tokens, "--out", str(tmp_path / "a.json")]) == 2
    assert "give such as 197,577,1025" in capsys.readouterr().err
