"""Goals by the command and in memory, on a small model of the digits."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import onnx
import pytest
import torch
from torch import nn

from tests.support.prune_runs import DIGITS, GREY, SIZES, artifact, model, picture, report, run_circuit
from tests.support.speeds import exactly
from vitfx.circuits.circuit import Circuit
from vitfx.circuits.summary import layer_rows
from vitfx.cli.prune_options import open_run
from vitfx.deploy.deployment import NAMES, default_deployment, deploy
from vitfx.deploy.export import to_onnx
from vitfx.graph.trace import to_canonical
from vitfx.images.image_set import Images
from vitfx.models.checkpoint import load_model, save_artifact
from vitfx.prune import _parser as parser
from vitfx.prune import main
from vitfx.pruning import goal_search
from vitfx.pruning import prune_for_goal as goal_compiler
from vitfx.pruning import target_bench as goal_bench
from vitfx.pruning.goal import DROP, FLOPS, KL, PARAMETERS, SPEEDUP, Goal, Target
from vitfx.pruning.iterative_pruner import IterativePruner
from vitfx.pruning.latency_table import LatencyTable
from vitfx.pruning.prune_for_goal import compile_for_goal
from vitfx.pruning.target_bench import GoalRequest
from vitfx.runs import prune as job
from vitfx.runs.prune_run import CircuitRun, GoalRun
from vitfx.support.errors import UserError
from vitfx.support.files import UNFINISHED, check_output
from vitfx.support.progress import Silent
from vitfx.support.timing import SpeedUp

CPU = torch.device("cpu")


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(48, 1, 8, 8, generator=generator)
    return Images(pixels, torch.arange(48) % 10, tuple(map(str, range(48))))


@pytest.fixture
def table(monkeypatch, tmp_path):
    """Times that go with the units, in place of measured ones, and a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    points = {
        name: tuple((count, 0.5 * count / units) for count in range(1, units + 1))
        for layer in range(SIZES["depth"])
        for name, units in ((f"a{layer}", SIZES["heads"]), (f"m{layer}", SIZES["mlp"]))
    }
    made = LatencyTable(3.0, 2.5, points)
    calls = []

    def measured(*_):
        calls.append(made)
        return made

    monkeypatch.setattr(goal_bench, "measure_table", measured)
    monkeypatch.setattr(goal_bench, "_ROUNDS", 1)
    monkeypatch.setattr(goal_bench, "_SECONDS", 0.0)
    return calls


def asked(kind, value, **options):
    return GoalRequest(Goal(kind, value), Target("cpu", 2), default_deployment(NAMES, CPU, portable=False), **options)


def compiled(images, one):
    return compile_for_goal(model(), images, one, device=CPU, watcher=Silent())


def test_a_speed_is_reached_and_the_artifact_is_proved(images, table, monkeypatch):
    monkeypatch.setattr(
        goal_bench.TargetBench, "measure", lambda self, state: exactly(3.0 / self.price().total(state.kept))
    )
    found = compiled(images, asked(SPEEDUP, 1.8))
    assert found.verification.passed
    assert found.plan.deletions
    assert found.circuit.details["price"]["speed-up"] == pytest.approx(1.8, rel=0.06)
    assert found.notes[-1].startswith("asked for 1.8× faster: measured 1.")
    assert found.compensation.kl == found.artifact_kl == found.circuit.kl


def bench(images, one):
    original = to_canonical(model(), images.pixels[:2]).graph_module
    return goal_bench.TargetBench(model(), original, images.pixels, one, Silent())


def test_measured_times_are_kept_and_made_anew_when_asked(images, table):
    for _ in range(2):
        bench(images, asked(SPEEDUP, 1.2)).price()
    assert len(table) == 1
    bench(images, asked(SPEEDUP, 1.2, fresh=True)).price()
    assert len(table) == 2


def test_a_real_measurement_is_a_ratio(images, table):
    found = bench(images, asked(KL, 1))
    pruner = IterativePruner(found.original, images.pixels, None, scored=8, seed=0, watcher=Silent())
    assert 0 < found.measure(pruner.start()).value < math.inf


def test_a_damaged_or_unwritable_cache_costs_time_and_nothing_else(images, table, monkeypatch, tmp_path):
    bench(images, asked(SPEEDUP, 1.2)).price()
    (cached,) = (tmp_path / "cache" / "vitfx").iterdir()
    cached.write_text("{}")
    bench(images, asked(SPEEDUP, 1.2)).price()
    assert len(table) == 2
    assert LatencyTable.read(cached) == table[0]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    bench(images, asked(SPEEDUP, 1.2)).price()
    assert len(table) == 3


def test_a_float16_target_runs_both_files_in_float16(images, table, monkeypatch):
    """On a CPU, which is slow at it, but can."""
    opened = []
    real = goal_bench.open_session

    def watched(model, device, **options):
        opened.append(({one.data_type for one in onnx.load_from_string(model).graph.initializer}, options))
        return real(model, device, **options)

    monkeypatch.setattr(goal_bench, "open_session", watched)
    half = replace(asked(KL, 1), target=Target("cpu", 2, "fp16"))
    found = bench(images, half)
    pruner = IterativePruner(found.original, images.pixels, None, scored=8, seed=0, watcher=Silent())
    assert found.measure(pruner.start()).value > 0
    assert len(opened) == 2
    for types, options in opened:
        assert onnx.TensorProto.FLOAT16 in types and onnx.TensorProto.FLOAT not in types
        assert options == {"layouts": False}


def test_an_int8_target_quantizes_the_pruned_file_and_not_the_plain_one(images, table, monkeypatch):
    opened, real = [], goal_bench.open_session

    def watched(model, device, **options):
        opened.append(onnx.load_from_string(model))
        return real(model, device, **options)

    monkeypatch.setattr(goal_bench, "open_session", watched)
    target = Target("cpu", 2, "int8")
    one = bench(images, GoalRequest(Goal(SPEEDUP, 1.5), target, default_deployment(NAMES, CPU, portable=False)))
    exported = deploy(one.original, one.asked.deployment, one.examples, {}).model
    one.open_plain()
    one.open(exported)
    stream = torch.randn(2, 5, 16)
    part = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)).eval()
    one.open(to_onnx(part, stream, {}), stream)
    counts = [sum(node.op_type == "QuantizeLinear" for node in model.graph.node) for model in opened]
    assert counts[0] == 0 and counts[1] > 5 and counts[2] == 2, "of a part, the last map is int8 as well"


@pytest.mark.parametrize(("kind", "limit"), [(KL, 0.05), (DROP, 30.0)])
def test_a_limit_leaves_room_for_what_int8_costs(images, table, monkeypatch, kind, limit):
    """Half of it at most; rounding that costs more is stood in for by answers to other images."""
    one = replace(asked(kind, limit), target=Target("cpu", 2, "int8"))
    with torch.no_grad():
        images = replace(images, labels=model().eval()(images.pixels).argmax(1))
    found = compiled(images, one)
    (note,) = (note for note in found.notes if note.startswith("int8 costs the whole model KL 0.0"))
    assert found.artifact_kl > 0
    if kind == KL:
        cost = float(re.search(r"KL ([\d.]+)", note)[1])
        assert 0 < cost < limit / 2 and found.artifact_kl <= limit - cost + 1e-4
    answers = goal_bench.TargetBench.answers
    monkeypatch.setattr(goal_bench.TargetBench, "answers", lambda self, *given: 50 * answers(self, *given).flip(1))
    (note,) = (note for note in compiled(images, one).notes if note.startswith("int8 costs"))
    assert f"so that pruning alone was allowed at most {limit / 2:g}" in note


def test_a_goal_that_was_missed_is_told_and_not_called_met(tmp_path, capsys, table, monkeypatch):
    monkeypatch.setattr(goal_bench.TargetBench, "measure", lambda self, state: exactly(1.25))
    out = tmp_path / "out"
    options = ["--target-speedup", "1.6", "--target", "cpu:batch=2", "--samples", "60"]
    assert run_circuit(artifact(tmp_path / "model.pt"), out, *options) == 1
    assert "the goal was missed (asked for 1.6× faster, measured 1.25×)" in capsys.readouterr().err
    found = report(out)
    assert found["settings"]["missed"] == "measured 1.25×"
    assert "at 1.6× faster (missed: measured 1.25×)" in (out / "report.md").read_text().splitlines()[0]
    assert list(found["speedup_by_batch"]) == ["1", "2", "64"]
    assert found["speedup"] == found["speedup_by_batch"]["2"]


@pytest.fixture
def without_biases():
    """A model whose sublayers write without a bias, so that every refit adds one."""
    bare = model()
    for block in bare.blocks:
        block.attention.out[0].bias = block.mlp[3].bias = None
    return to_canonical(bare, torch.zeros(2, 1, 8, 8)).graph_module


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_biases_of_refits_count(without_biases, images):
    found = compile_for_goal(without_biases, images, asked(PARAMETERS, 0.7), device=CPU, watcher=Silent())
    share = parameters(found.module) / parameters(without_biases)
    assert found.plan.refits and 0.6 < share <= 0.7
    assert found.missed is None
    assert found.notes[-1].startswith(f"asked for 70% of the parameters: measured {100 * share:.6g}%, KL ")


def test_a_share_that_was_missed_is_told(tmp_path, capsys, without_biases, monkeypatch):
    """The biases are never made up for."""
    monkeypatch.setattr(goal_search, "CORRECTIONS", 0)
    save_artifact(tmp_path / "model.pt", without_biases, GREY, DIGITS, "digits", {})
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


def test_without_deletions_no_refit_is_claimed(images, table, monkeypatch):
    monkeypatch.setattr(goal_bench.TargetBench, "measure", lambda self, state: exactly(1.2))
    found = compiled(images, asked(SPEEDUP, 1.05))
    assert not found.plan.deletions
    assert found.compensation.kind == "none" and found.compensation.kl is None
    assert found.notes[-1] == "nothing had to be deleted for that"


def test_a_noisy_machine_promises_nothing(images, table, monkeypatch):
    monkeypatch.setattr(goal_bench.TargetBench, "measure", lambda self, state: SpeedUp(1.5, 1.3, 1.6))
    found = compiled(images, asked(SPEEDUP, 1.5))
    assert found.notes[-1] == (
        "this machine is too noisy to promise a speed: it measured anything from 1.30× to 1.60×, so measure again "
        "while nothing else runs"
    )
    assert found.circuit.details["price"]["interval"] == [1.3, 1.6]
    within = compiled(images, asked(KL, 1e-12))
    assert not within.plan.deletions
    assert within.notes[-1] == "nothing could be deleted within that"


def test_a_goal_wants_three_images(images, table):
    few = replace(images, pixels=images.pixels[:2], labels=None, names=images.names[:2])
    with pytest.raises(UserError, match="2 images are too few: for a goal give 3 or more"):
        compiled(few, asked(FLOPS, 0.5))
    assert compiled(replace(few, pixels=images.pixels[:3], names=images.names[:3]), asked(FLOPS, 0.9)).plan.deletions


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


def test_a_circuit_says_what_is_kept_and_what_is_gone(images, table):
    found = compiled(images, asked(KL, 0.02))
    circuit = Circuit.from_json(found.circuit.to_json())
    assert circuit == found.circuit
    gone = {(edge.writer.sublayer, unit) for edge in circuit.removed for unit in edge.writer.units}
    assert gone == {(one.name, unit) for one in found.plan.deletions for unit in one.units}
    assert layer_rows(circuit)[-1].layer == "total"


def test_a_limit_on_accuracy_needs_labels(images, table):
    bare = Images(images.pixels, None, images.names)
    with pytest.raises(UserError, match="`max_drop` needs labelled images"):
        compiled(bare, asked(DROP, 1.0))


def test_the_command_writes_all_that_a_run_with_tau_writes(tmp_path):
    out = tmp_path / "out"
    assert run_circuit(artifact(tmp_path / "model.pt"), out, "--target-flops", "0.7", "--samples", "60") == 0
    found = report(out)
    assert found["pruned"]["flops"] <= 0.7 * found["baseline"]["flops"]
    assert found["settings"]["goal"] == "70% of the FLOPs"
    assert "tau" not in found["settings"]
    assert found["compensation"]["kl"] < found["compensation"]["kl_mean"]
    assert "at 70% of the FLOPs" in (out / "report.md").read_text()
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


def test_survivors_are_fitted_and_judged_on_further_images(images, table, monkeypatch):
    monkeypatch.setattr(goal_compiler, "MOST_IMAGES", 60)
    calls = []

    def more(count):
        calls.append(count)
        return Images(images.pixels[:8], images.labels[:8], images.names[:8])

    found = compile_for_goal(model(), images, asked(FLOPS, 0.9), device=CPU, watcher=Silent(), more=more)
    assert calls == [60 - 48]
    assert (found.compensation.images, found.compensation.held_out) == (40, 16)
    monkeypatch.setattr(goal_compiler, "_MOST_FLOPS", 1.0)
    found = compile_for_goal(model(), images, asked(FLOPS, 0.9), device=CPU, watcher=Silent(), more=more)
    assert len(calls) == 1 and found.compensation.images == 36


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
