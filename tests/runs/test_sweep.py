"""`vitfx.prune --sweep` on a small model whose times are its FLOPs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.prune_runs import DIGITS, GREY, artifact, run_circuit
from tests.support.records import json_record
from tests.support.recover_runs import npz
from tests.support.speeds import exactly
from vitfx.graph.verify import tokens_of
from vitfx.images.splits import open_data
from vitfx.prune import main
from vitfx.pruning.cost_model import Price, flops_price
from vitfx.pruning.iterative_pruner import State
from vitfx.pruning.plan_file import PLAN_FILES, read_plan
from vitfx.pruning.target_bench import TargetBench
from vitfx.runs import sweep as pareto_job
from vitfx.support.files import SWEEP, check_output
from vitfx.support.timing import SpeedUp, Timing

PLAIN = 1.1
"""The plain export's time by that of the model after exact rewrites."""


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """FLOPs in place of times. Yields the price of every model that was measured on the way to a speed."""
    seen: list[float] = []
    found: dict[str, Price] = {}

    def price(bench: TargetBench) -> Price:
        image = bench.examples.shape[1:]
        found["price"] = flops_price(bench.original, image, tokens_of(bench.original, bench.examples[:2]))
        bench.plain = PLAIN * found["price"].whole
        return found["price"]

    def measure(bench: TargetBench, state: State) -> SpeedUp:
        assert bench.plain is not None
        seen.append(found["price"].total(state.kept))
        return exactly(bench.plain / seen[-1])

    def timings(bench: TargetBench, plain: Any, pruned: Any) -> tuple[Timing, Timing]:
        assert bench.plain is not None
        last = seen[-1] if seen else found["price"].whole
        return Timing((bench.plain,)), Timing((last,))

    monkeypatch.setattr(TargetBench, "price", price)
    monkeypatch.setattr(TargetBench, "measure", measure)
    monkeypatch.setattr(TargetBench, "timings", timings)
    yield seen


def sweep(model: Path, out: Path, *options: str) -> int:
    sizes = ("--samples", "24", "--eval-samples", "30", "--device", "cpu")
    return main([str(model), "--out", str(out), *sizes, *options])


def record(out: Path) -> dict[str, Any]:
    return json_record(out / "sweep.json")


def test_a_sweep_goes_on_where_it_was_stopped(
    tmp_path: Path, measured: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = artifact(tmp_path / "m.pt"), tmp_path / "out"
    assert sweep(model, out, "--sweep", "1.3:1.6:2") == 0
    found = record(out)
    assert [one["asked"] for one in found["points"]] == [None, 1.3, 1.6]
    speeds = [one["speedup"] for one in found["points"]]
    assert speeds[0] == pytest.approx(PLAIN)
    assert speeds == sorted(speeds) and speeds[1] >= 1.28 and speeds[2] >= 1.57
    assert found["points"][0]["kl"] < 1e-6 < found["points"][1]["kl"] <= found["points"][2]["kl"]
    assert found["points"][0]["plain_accuracy"] == found["points"][0]["accuracy"]
    flops = [one["flops"] for one in found["points"]]
    assert flops[0] == 1 and flops == sorted(flops, reverse=True)
    for one in found["points"]:
        assert all((out / one["folder"] / name).exists() for name in (*PLAN_FILES, "pruned.onnx"))
    assert read_plan(out / "1.6x").deletions
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "| exact rewrites alone | 1.100× |" in (out / "sweep.md").read_text()

    # As if it had been stopped behind its second point: the third comes out the same.
    plan, points = (out / "1.6x" / "plan.json").read_text(), found["points"]
    (out / "sweep.json").write_text(json.dumps(found | {"points": points[:2]}))
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (out / "sweep.png").unlink()
    measured.clear()
    assert sweep(model, out, "--sweep", "1.3:1.6:2") == 0
    assert record(out)["points"] == points
    assert (out / "1.6x" / "plan.json").read_text() == plan
    said = capsys.readouterr().out
    assert "1.3×: 1.3x/ is there already" in said
    assert "needs matplotlib (pip install 'vitfx[plot]'" in said
    assert not (out / "sweep.png").exists() and "There is no picture" in (out / "sweep.md").read_text()

    # Nothing is missing, on another machine: nothing is made, and what was measured for a wider sweep stays.
    further = points[-1] | {"asked": 1.8, "speedup": 1.8}
    (out / "sweep.json").write_text(json.dumps(found | {"points": [*points, further]}))
    monkeypatch.setattr(pareto_job, "environment", lambda: {"cpu": "another"})
    measured.clear()
    assert sweep(model, out, "--sweep", "1.3:1.6:2") == 0
    assert not measured
    assert record(out) == found | {"points": [*points, further]}
    table = (out / "sweep.md").read_text()
    assert "| 1.8× | 1.800× |" in table
    assert f"- cpu: {found['environment']['cpu']}" in table and "another" not in table
    assert sweep(model, out, "--sweep", "1.3:1.6:2", "--seed", "1") == 2
    assert "is of another sweep (its " in capsys.readouterr().err


def test_stopped_at_its_first_point_on_fewer_images_than_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pareto_job, "measure_beside_plain", stop)
    model, images, out = artifact(tmp_path / "m.pt"), str(npz(tmp_path, 40)), tmp_path / "out"
    options = ("--data", images, "--sweep", "1.3:1.6:2")
    assert run_circuit(model, out, *options) == 130
    assert (out / "rewritten" / "pruned.onnx").exists()
    assert record(out)["points"] == [] and record(out)["environment"] == {}
    check_output(out, force=False, unfinished=SWEEP)

    # A number that was asked for is not made smaller.
    there = len(open_data(images, GREY, DIGITS).calibration)
    assert record(out)["settings"]["samples"] == there < 1024
    capsys.readouterr()
    assert run_circuit(model, out, *options, "--samples", "1024") == 2
    assert f"can't sample 1024 of {there} images" in capsys.readouterr().err


def test_ctrl_c_with_force_says_what_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = artifact(tmp_path / "m.pt"), tmp_path / "out"
    options = ("--sweep", "1.3:1.6:2")
    measured = pareto_job.measure_beside_plain

    def stop(*arguments: Any) -> Any:
        if record(out)["points"]:
            raise KeyboardInterrupt
        return measured(*arguments)

    monkeypatch.setattr(pareto_job, "measure_beside_plain", stop)
    assert sweep(model, out, *options, "--force") == 130
    assert capsys.readouterr().err == "\nstopped; the same command without --force goes on where it stopped\n"
    (first,) = record(out)["points"]
    monkeypatch.setattr(pareto_job, "measure_beside_plain", measured)
    assert sweep(model, out, *options) == 0
    assert "exact rewrites alone: rewritten/ is there already" in capsys.readouterr().out
    assert record(out)["points"][0] == first

    # Before anything is replaced there is nothing to go on from, and the same command does no harm.
    before = (out / SWEEP).read_bytes()
    monkeypatch.setattr(pareto_job, "read_module", _stop)
    assert sweep(model, out, *options, "--force") == 130
    assert capsys.readouterr().err == "\nstopped; the same command begins anew\n"
    assert (out / SWEEP).read_bytes() == before


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sweep", "1.2:2"), "--sweep 1.2:2 is not LOW:HIGH:COUNT"),
        (("--sweep", "1.2:2:3", "--target-speedup", "1.5"), "--sweep and --target-speedup are both goals"),
        (("--sweep", "1.2:2:3", "--max-kl", "0.1"), "--sweep and --max-kl are both goals"),
        (("--sweep", "1.2:2:3", "--tau", "0.1"), "--sweep replaces discovery: leave out --tau"),
        (("--sweep", "1.2:2:3", "--circuit", "c.json"), "--sweep chooses its own deletions: leave out --circuit"),
        (("--sweep", "1.2:2:3", "--precision", "int8"), "--sweep measures float32 alone: leave out --precision int8"),
        (("--sweep", "1.2:99:3"), "--sweep asks for up to 99× and even without any attention and MLP the model is"),
    ],
)
def test_what_does_not_go_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    assert sweep(artifact(tmp_path / "m.pt"), tmp_path / "out", *options) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert not (tmp_path / "out").exists()
