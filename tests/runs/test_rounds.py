"""`vitfx.prune --rounds` on a small model of the digits: two rounds, what they leave, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch.fx import GraphModule

from tests.support.prune_runs import DIGITS, GREY, artifact, model, run_circuit
from tests.support.records import json_record
from tests.support.recover_runs import npz
from vitfx.deploy.deployment import NAMES, default_deployment
from vitfx.deploy.runtime import open_session
from vitfx.graph.trace import to_canonical
from vitfx.images.image_set import Images
from vitfx.images.splits import open_data
from vitfx.models.checkpoint import load_model, save_artifact
from vitfx.pruning import target_bench as goal_bench
from vitfx.pruning.goal import PARAMETERS, SPEEDUP, Goal, Target
from vitfx.pruning.latency_table import LatencyTable
from vitfx.pruning.prune_for_goal import compile_for_goal
from vitfx.pruning.target_bench import GoalRequest, ReferenceModel, TargetBench
from vitfx.runs import rounds as rounds_job
from vitfx.runs.recover_job import RecoverJob
from vitfx.runs.rounds_steps import ARTIFACTS, Rounds, Step
from vitfx.support.progress import Silent

CPU = torch.device("cpu")
BASE = ("--target-params", "0.5", "--rounds", "2", "--recover-minutes", "0.04")


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[tuple[str, Any]]]:
    """A cache of the test's own. Yields the jobs that were run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    jobs: list[tuple[str, Any]] = []
    for name in ("run_goal", "run_recover"):
        run = getattr(rounds_job, name)
        monkeypatch.setattr(
            rounds_job, name, lambda job, *more, n=name, run=run: jobs.append((n, job)) or run(job, *more)
        )
    yield jobs


def rounds(path: Path | str, out: Path, *options: str) -> int:
    return run_circuit(path, out, "--samples", "40", "--rewrites", "none", *options)


def record(out: Path) -> dict[str, Any]:
    return json_record(out / "rounds.json")


def original() -> GraphModule:
    """One layer, with neurons enough that a share can be met closely."""
    return to_canonical(model(depth=1, mlp=64), torch.zeros(2, 1, 8, 8)).graph_module


def count(module: torch.nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())


def test_two_rounds_and_the_same_command_again(
    tmp_path: Path, made: list[tuple[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "m.pt", tmp_path / "out"
    save_artifact(path, original(), GREY, DIGITS, "digits", {})
    assert rounds(path, out, *BASE) == 0
    found = record(out)
    steps = found["steps"]
    assert [one["folder"] for one in steps] == [
        "round-1/pruned", "round-1/recovered", "round-2/pruned", "round-2/recovered",
    ]  # fmt: skip
    assert [one["asked"] for one in steps] == pytest.approx([0.5**0.5] * 2 + [0.5] * 2)
    assert [name for name, _ in made] == ["run_goal", "run_recover"] * 2
    whole = count(original())
    assert found["settings"]["original_params"] == whole
    for one in steps:
        assert one["params_share"] <= one["asked"]
        assert one["params"] == count(load_model(str(out / one["folder"] / "pruned.pt")).module)
        assert one["speedup"] > 0 and one["plain_accuracy"] == steps[0]["plain_accuracy"]

    # Only the first round's run pruned the model that teaches.
    pages = [(out / one["folder"] / "report.html").read_text() for one in steps[1::2]]
    assert ["When it was pruned: what died, and where" in page for page in pages] == [True, False]

    # Of the original's parameters, not of what the round before left of them.
    assert steps[-1]["params_share"] > 0.5 * steps[1]["params_share"]

    final = load_model(str(out / "pruned.pt"))
    assert count(final.module) == steps[-1]["params"] <= 0.5 * whole
    assert (out / "pruned.onnx").read_bytes() == (out / "round-2/recovered/pruned.onnx").read_bytes()
    pixels = torch.randn(3, 1, 8, 8)
    answers = open_session(out / "pruned.onnx", CPU).run(pixels)
    torch.testing.assert_close(answers, final.module(pixels).detach(), rtol=1e-3, atol=1e-3)
    _check_measured_by_hand(out, steps)
    for _, job in made[1::2]:
        assert isinstance(job, RecoverJob)
        assert job.teacher.source == str(path)
        assert job.settings.loss == "kd" and job.settings.minutes == 0.04
    markdown = (out / "rounds.md").read_text()
    assert markdown.startswith(f"# {path}: 50% of the parameters, in 2 rounds")
    assert "| original |  | 1× |" in markdown and markdown.count("| round 2, ") == 2
    assert "## Environment" in markdown and found["environment"]["torch"] == torch.__version__

    # Nothing is missing, on another machine: nothing is made.
    made.clear()
    before = (out / "rounds.json").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds_job, "environment", lambda: {"cpu": "another"})
        assert rounds(path, out, *BASE) == 0
    assert not made and (out / "rounds.json").read_bytes() == before
    assert (out / "rounds.md").read_text() == markdown

    # As if it had been stopped while the second round was retrained: three steps stay.
    (out / "rounds.json").write_text(json.dumps(found | {"steps": steps[:3]}))
    assert rounds(path, out, *BASE) == 0
    assert [(name, str(job.out.relative_to(out))) for name, job in made] == [("run_recover", "round-2/recovered")]
    assert record(out)["steps"][:3] == steps[:3] and len(record(out)["steps"]) == 4

    capsys.readouterr()
    assert rounds(path, out, *BASE, "--seed", "1") == 2
    assert "rounds.json is of another run (its " in capsys.readouterr().err
    assert all((out / name).exists() for name in ARTIFACTS)

    # Nothing of the other run is taken over, finished as it is.
    made.clear()
    once = ("--target-params", "0.6", "--rounds", "1", "--recover-minutes", "0.04", "--seed", "1", "--force")
    assert rounds(path, out, *once) == 0
    assert [name for name, _ in made] == ["run_goal", "run_recover"]
    assert [one["asked"] for one in record(out)["steps"]] == [0.6, 0.6]


def _check_measured_by_hand(out: Path, steps: list[dict[str, Any]]) -> None:
    """Top-1 and KL of the last step, from the original and the artifact."""
    images = open_data("digits", GREY, DIGITS).evaluation.sample(50, 0)
    batch = images.load()
    with torch.no_grad():
        theirs = original()(batch.pixels).log_softmax(1)
        ours = load_model(str(out / "pruned.pt")).module(batch.pixels).log_softmax(1)
    assert batch.labels is not None
    assert steps[-1]["images"] == len(batch) == 50
    assert steps[-1]["accuracy"] == pytest.approx(float((ours.argmax(1) == batch.labels).double().mean()))
    assert steps[-1]["kl"] == pytest.approx(float((theirs.exp() * (theirs - ours)).sum(1).mean()), rel=1e-2, abs=1e-4)


def test_a_speed_up_is_against_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that is half of the original already: the bench exports the original and keeps its times apart."""
    monkeypatch.setattr(
        goal_bench, "measure_table", lambda original, batch, lowered, plain, *_: LatencyTable(plain.marker, 1.0, {})
    )
    images = Images(torch.randn(24, 1, 8, 8), None, tuple(map(str, range(24))))
    small = model()
    whole = to_canonical(small, images.pixels[:2]).graph_module
    first = _asked(PARAMETERS, 0.7)
    left = compile_for_goal(small, images, first, device=CPU, watcher=Silent()).module
    exported: list[int] = []

    class Session:
        marker = 5.0

    def opened(bench: TargetBench, _: Any) -> Any:
        return Session()

    def export(module: torch.nn.Module, *_: Any) -> tuple[onnx.ModelProto, str]:
        exported.append(count(module))
        weight = onnx.TensorProto(dims=[count(module)])
        return onnx.ModelProto(graph=onnx.GraphProto(initializer=[weight])), ""

    monkeypatch.setattr(TargetBench, "open", opened)
    monkeypatch.setattr(goal_bench, "export_plain", export)
    asked = _asked(SPEEDUP, 2.0, reference=ReferenceModel(small, whole))
    bench = TargetBench(left, left, images.pixels, asked, Silent())
    bench.price()
    assert bench.plain == 5.0 and exported == [count(small)] != [count(left)]
    assert bench._key() != TargetBench(left, left, images.pixels, _asked(SPEEDUP, 2.0), Silent())._key()


def test_a_share_that_the_round_before_reached_takes_nothing_more() -> None:
    images = Images(torch.randn(24, 1, 8, 8), None, tuple(map(str, range(24))))
    whole = original()
    left = compile_for_goal(whole, images, _asked(PARAMETERS, 0.6), device=CPU, watcher=Silent()).module
    asked = _asked(PARAMETERS, 0.65, reference=ReferenceModel(whole, whole))
    again = compile_for_goal(left, images, asked, device=CPU, watcher=Silent())
    assert not again.plan.deletions and count(again.module) == count(left)


def _asked(kind: str, value: float, **options: Any) -> GoalRequest:
    return GoalRequest(Goal(kind, value), Target("cpu", 2), default_deployment(NAMES, CPU, portable=False), **options)


def test_fewer_images_than_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds_job, "run_goal", stop)
    images, out = str(npz(tmp_path, 40)), tmp_path / "out"
    assert run_circuit(artifact(tmp_path / "m.pt"), out, "--data", images, *BASE) == 130
    assert record(out)["settings"]["samples"] == len(open_data(images, GREY, DIGITS).calibration)


def test_ctrl_c_with_force_says_what_goes_on(
    tmp_path: Path, made: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    path, out = tmp_path / "m.pt", tmp_path / "out"
    save_artifact(path, original(), GREY, DIGITS, "digits", {})
    once = ("--target-params", "0.6", "--rounds", "1", "--recover-minutes", "0.04")
    with monkeypatch.context() as patch:
        patch.setattr(rounds_job, "run_recover", stop)
        assert rounds(path, out, *once, "--force") == 130
    assert capsys.readouterr().err == "\nstopped; the same command without --force goes on where it stopped\n"
    (first,) = record(out)["steps"]
    made.clear()
    assert rounds(path, out, *once) == 0
    assert [name for name, _ in made] == ["run_recover"]
    assert record(out)["steps"][0] == first
    with monkeypatch.context() as patch:
        patch.setattr(rounds_job, "read_module", stop)
        assert rounds(path, out, *once, "--force") == 130
    assert capsys.readouterr().err == "\nstopped; the same command begins anew\n"


def test_a_share_that_the_last_step_missed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rounds_job._StepMaker, "_measured", heavier(rounds_job._StepMaker._measured))
    once = ("--target-params", "0.6", "--rounds", "1", "--recover-minutes", "0.04")
    path = tmp_path / "m.pt"
    save_artifact(path, original(), GREY, DIGITS, "digits", {})
    assert rounds(path, tmp_path / "out", *once) == 1
    said = "error: the goal was missed (asked for 60% of the parameters, measured 61%): the results are written"
    assert said in capsys.readouterr().err
    assert (tmp_path / "out" / "rounds.md").exists()


def heavier(measured: Callable[..., Step]) -> Callable[..., Step]:
    """As if retraining had added parameters."""
    return lambda *arguments: replace(measured(*arguments), params_share=0.61)


def test_every_round_cuts_by_the_same_factor() -> None:
    assert [one.value for one in Rounds(3, 1).goals(Goal(SPEEDUP, 8.0))] == pytest.approx([2.0, 4.0, 8.0])
    assert [one.value for one in Rounds(2, 1).goals(Goal(PARAMETERS, 0.25))] == pytest.approx([0.5, 0.25])
    assert Rounds(1, 1).goals(Goal(PARAMETERS, 0.3)) == [Goal(PARAMETERS, 0.3)]


def test_a_speed_up_is_divided_from_what_rewrites_reach_alone() -> None:
    def values(goal: float, rewritten: float) -> list[float]:
        return [one.value for one in Rounds(2, 1).goals(Goal(SPEEDUP, goal), rewritten)]

    assert values(1.8, 1.25) == pytest.approx([1.5, 1.8])
    assert values(1.1, 1.25) == pytest.approx([1.1, 1.1])
    assert values(4.0, 0.9) == pytest.approx([2.0, 4.0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--target-speedup", "2", "--rounds", "2"), "--rounds 2 does not say how long to retrain after each"),
        (("--target-speedup", "2", "--recover-minutes", "3"), "--recover-minutes 3 does not say in how many steps"),
        (("--target-speedup", "2", "--rounds", "0", "--recover-minutes", "3"), "--rounds is 0: give 1 or more"),
        (("--target-flops", "0.5", "--rounds", "2", "--recover-minutes", "0"), "--recover-minutes is 0: give a number"),
        (("--target-flops", "0.5", "--rounds", "2", "--recover-minutes", "nan"), "--recover-minutes is nan: give"),
        (
            ("--tau", "0.1", "--rounds", "2", "--recover-minutes", "1"),
            "--rounds 2 needs a goal: give one of --target-speedup, ",
        ),
        (("--max-drop", "1", "--rounds", "2", "--recover-minutes", "1"), "--rounds 2 can't divide --max-"),
        (("--max-kl", "1", "--rounds", "2", "--recover-minutes", "1"), "--rounds 2 can't divide --max-"),
        (("--sweep", "1.2:2:3", "--rounds", "2", "--recover-minutes", "1"), "--rounds 2 is for one goal and --sweep"),
        ((*BASE, "--precision", "int8"), "--rounds measures float32 alone: leave out --precision int8"),
        ((*BASE, "--circuit", "c.json"), "--target-params chooses its own deletions: leave out --circuit"),
        (("--target-params", "0.01", *BASE[2:]), "--target-params 0.01 is out of reach, for even without any"),
    ],
)
def test_what_does_not_go_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    assert rounds("demo", tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}") and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
