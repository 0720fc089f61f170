"""The benchmark of training: what is timed is what it says, and where it can't be."""

import json

import pytest

from benchmarks import training
from benchmarks.training import main

FEW = [
    "--data",
    "digits",
    "--config",
    "digits",
    "--device",
    "cpu",
    "--set",
    "training.batch=16",
    "--set",
    "model.depth=1",
]


def test_the_figures_are_of_the_steps_that_were_run(tmp_path, monkeypatch, capsys):
    calls = []
    for name in ("_whole_steps", "_model_alone", "_input_alone"):
        run = getattr(training, name)
        monkeypatch.setattr(
            training, name, lambda *given, name=name, run=run: (calls.append((name, given[-1])), run(*given))
        )
    out = tmp_path / "speed.json"
    assert main([*FEW, "--steps", "3", "--rounds", "2", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert sorted(calls) == sorted(
        (name, 3) for name in ("_whole_steps", "_model_alone", "_input_alone") for _ in range(3)
    )
    for name, timing in found["times"].items():
        assert found["images_per_second"][name] == pytest.approx(48e3 / timing["median_ms"])
    assert found["share_of_medians"] == pytest.approx(
        found["times"]["model"]["median_ms"] / found["times"]["step"]["median_ms"]
    )
    assert found["precision"] == "fp32"
    assert "of the model's own speed" in capsys.readouterr().out


def test_what_can_not_be_timed_is_told(capsys):
    for option, value, sentence in (
        ("--steps", "0", "--steps is 0: give 1 or more"),
        ("--rounds", "0", "--rounds is 0: give 1 or more"),
        ("--workers", "-1", "--workers -1 is negative: give a number of processes, 0 for none"),
        ("--out", "nowhere/x.json", "--out nowhere/x.json can't be written: name a file in a folder that exists"),
    ):
        assert main([*FEW, option, value]) == 2
        said = capsys.readouterr()
        assert said.err.startswith(f"error: {sentence}") and said.err.count("\n") == 1
        # Nothing was decoded for it.
        assert said.out.strip() == ""
