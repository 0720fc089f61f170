"""`python -m vitfx.prune` with a goal, on a small model of the digits."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tests.support.goals import times_by_units, without_biases
from tests.support.prune_runs import DIGITS, GREY, artifact, picture, report, run_circuit
from tests.support.speeds import exactly
from vitfx.cli.prune_options import open_run
from vitfx.models.checkpoint import load_model, save_artifact
from vitfx.prune import build_parser as parser
from vitfx.prune import main
from vitfx.pruning import goal_search
from vitfx.pruning import target_bench as goal_bench
from vitfx.pruning.goal import DROP, KL, Goal
from vitfx.runs import prune as job
from vitfx.runs.prune_run import CircuitRun, GoalRun
from vitfx.support.files import UNFINISHED, check_output
from vitfx.support.progress import Silent


@pytest.fixture
def table(monkeypatch, tmp_path):
    return times_by_units(monkeypatch, tmp_path / "cache")


def test_a_goal_that_was_missed_is_told_and_not_called_met(tmp_path, capsys, table, monkeypatch):
    monkeypatch.setattr(goal_bench.TargetBench, "measure", lambda self, state: exactly(1.25))
    out = tmp_path / "out"
    options = ["--target-speedup", "1.6", "--target", "cpu:batch=2", "--samples", "60"]
    assert run_circuit(artifact(tmp_path / "model.pt"), out, *options) == 1
    assert "the goal was missed (asked for 1.6× faster, measured 1.25×)" in capsys.readouterr().err
    found = report(out)
    assert found["settings"]["missed"] == "measured 1.25×"
    assert "pruned by vitfx: 1.6× faster (missed: measured 1.25×)" in (out / "report.md").read_text().splitlines()[0]
    assert list(found["speedup_by_batch"]) == ["1", "2", "64"]
    assert found["speedup"] == found["speedup_by_batch"]["2"]


def test_a_share_that_was_missed_is_told(tmp_path, capsys, monkeypatch):
    """The biases are never made up for."""
    monkeypatch.setattr(goal_search, "CORRECTIONS", 0)
    save_artifact(tmp_path / "model.pt", without_biases(), GREY, DIGITS, "digits", {})
    out = tmp_path / "out"
    assert run_circuit(tmp_path / "model.pt", out, "--target-params", "0.7", "--samples", "60") == 1
    found = report(out)
    measured = f"measured {100 * found['pruned']['params'] / found['baseline']['params']:.6g}%"
    goal = "70% of the parameters"
    error = capsys.readouterr().err
    assert error == f"error: the goal was missed (asked for {goal}, {measured}): the results are written all the same\n"
    assert found["settings"]["missed"] == measured
    assert any(note.startswith(f"asked for {goal} and missed: {measured}, KL ") for note in found["notes"])
    assert f"{goal} (missed: {measured})" in (out / "report.md").read_text().splitlines()[0]
    assert json.loads((out / "circuit.json").read_text())["details"]["price"]["met"] is False


def test_a_run_that_is_broken_off_can_be_repeated(tmp_path, capsys, monkeypatch):
    out, model_file = tmp_path / "out", artifact(tmp_path / "model.pt")
    options = ["--target-flops", "0.7", "--samples", "60"]

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job, "measure", interrupted)
        assert run_circuit(model_file, out, *options) == 130
    assert "stopped; the same command begins anew" in capsys.readouterr().err
    assert (out / UNFINISHED).exists()
    check_output(out, force=False)


def test_the_command_writes_all_that_a_run_with_tau_writes(tmp_path):
    out = tmp_path / "out"
    assert run_circuit(artifact(tmp_path / "model.pt"), out, "--target-flops", "0.7", "--samples", "60") == 0
    found = report(out)
    assert found["pruned"]["flops"] <= 0.7 * found["baseline"]["flops"]
    assert found["settings"]["goal"] == "70% of the FLOPs"
    assert "tau" not in found["settings"]
    assert found["compensation"]["kl"] < found["compensation"]["kl_mean"]
    assert "pruned by vitfx: 70% of the FLOPs" in (out / "report.md").read_text()
    assert json.loads((out / "circuit.json").read_text())["settings"]["method"] == "goal"
    again = load_model(str(out / "pruned.pt"))
    assert sum(one.numel() for one in again.module.parameters()) == found["pruned"]["params"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target-flops", "0.5", "--tau", "0.1"], "--target-flops replaces discovery: leave out --tau"),
        (["--target-flops", "0.5", "--max-kl", "0.1"], "--target-flops and --max-kl are all goals: give one"),
        (["--target-flops", "0.5", "--target-speedup", "2"], "are all goals: give one"),
        (["--target-speedup", "0.5"], "--target-speedup 0.5 is not faster"),
        (
            ["--tau", "1", "--target", "cpu:batch=1"],
            "--target cpu:batch=1 is for a goal: give one, such as --target-speedup 1.5",
        ),
        (["--target-speedup", "2", "--target", "fast"], None),
        (
            ["--target-flops", "0.5", "--compensate", "mean"],
            "refits survivors by ridge regression: leave out --compensate",
        ),
        (
            ["--target-speedup", "2", "--target", "cpu:fp16"],
            "fp16 is slow on cpu, for which ONNX Runtime has no float16",
        ),
        (["--sweep", "1.2:1.5:2", "--target", "cpu:fp16"], "leave out fp16 in --target cpu:fp16:batch=8"),
        (["--target-params", "0.5", "--circuit", "c.json"], "chooses its own deletions: leave out --circuit"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, capsys, options, said):
    assert main(["demo", "--out", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert said is None or said in error
    assert not (tmp_path / "out").exists()


def test_fewer_images_than_the_default_are_no_error(tmp_path):
    """The digits have 1,438 for calibration; a folder of 40 has no 1,024."""
    for index in range(40):
        picture(tmp_path / "photos" / "train" / str(index % 10) / f"{index}.png", index)
        picture(tmp_path / "photos" / "val" / str(index % 10) / f"{index}.png", index)
    options = [str(artifact(tmp_path / "model.pt")), "--target-flops", "0.9", "--data", str(tmp_path / "photos")]
    options += ["--out", str(tmp_path / "out")]
    for more, samples in (([], 40), (["--samples", "41"], 41)):
        run = open_run(parser().parse_args([*options, *more]), "prune")
        assert isinstance(run, GoalRun) and run.samples == samples
        assert run.further is (not more)


def test_further_images_are_behind_those_of_the_search(tmp_path):
    for index in range(40):
        picture(tmp_path / "photos" / str(index % 10) / f"{index}.png", index)
    options = [str(artifact(tmp_path / "model.pt")), "--target-flops", "0.9", "--data", str(tmp_path / "photos")]
    run = open_run(parser().parse_args([*options, "--samples", "20", "--out", str(tmp_path / "out")]), "prune")
    assert isinstance(run, GoalRun)
    every = len(run.inputs.splits.calibration)
    for count in (5, every):
        further = job.further_images(run, Silent(), count)
        both = run.inputs.calibration(min(20 + count, every), run.seed)
        assert len(further) and torch.equal(further.pixels, both.pixels[20:])
        assert torch.equal(further.labels, both.labels[20:])
    assert len(job.further_images(replace(run, samples=every), Silent(), 5)) == 0


def test_who_asks_for_nothing_gets_little_lost(tmp_path):
    for index in range(12):
        picture(tmp_path / "photos" / f"{index}.png", index)
    options = [str(artifact(tmp_path / "model.pt")), "--out", str(tmp_path / "out")]
    unlabelled = ["--data", str(tmp_path / "photos")]
    for more, goal in (([], Goal(DROP, 1)), (["--seed", "1"], Goal(DROP, 1)), (unlabelled, Goal(KL, 0.02))):
        run = open_run(parser().parse_args([*options, *more]), "prune")
        assert isinstance(run, GoalRun) and run.goal == goal
        assert any("neither --tau nor a goal was given" in line for line in run.inputs.first_lines)
    for more in (["--tau", "0.05"], ["--paths", "4"], ["--compensate", "mean"]):
        run = open_run(parser().parse_args([*options, *more]), "prune")
        assert isinstance(run, CircuitRun) and run.settings.tau == 0.05
        assert not any("neither" in line for line in run.inputs.first_lines)
