"""`--target openvino`: times, goal, evaluation and report are of that runtime, or one sentence says what is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.prune_runs import artifact, checkpoint, report, run_circuit
from tests.support.recover_runs import npz, pruned_file
from tests.support.slow import slow_but
from vitfx.deploy import runtimes
from vitfx.deploy.openvino_runtime import is_installed
from vitfx.optimize import main as optimize
from vitfx.pruning import target_bench
from vitfx.pruning.latency_table import LatencyTable
from vitfx.recover import main as recover
from vitfx.support.devices import GPU
from vitfx.support.errors import UserError

needs_openvino = pytest.mark.skipif(not is_installed(), reason="needs OpenVINO: pip install 'vitfx[openvino]'")


@needs_openvino
@pytest.mark.parametrize("target", slow_but(("openvino:batch=2",), ["openvino:batch=2", "openvino:int8:batch=2"]))
def test_a_goal_is_measured_there(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    measure_table = target_bench.measure_table

    def within_reach(*given: Any) -> LatencyTable:
        """On a busy machine single rounds of so small a model may read anything."""
        table = measure_table(*given)
        return replace(table, plain=2 * table.whole)

    monkeypatch.setattr(target_bench, "measure_table", within_reach)
    out = tmp_path / "out"
    options = ["--target-speedup", "1.001", "--target", target, "--samples", "48"]
    assert run_circuit(artifact(tmp_path / "m.pt"), out, *options) in (0, 1)
    found = report(out)
    assert found["runtime"].startswith("OpenVINO 20") and found["settings"]["target"] == target
    assert found["environment"]["openvino"]
    assert (found["precision"] is not None) == ("int8" in target)
    assert found["kl"] < 1
    assert "OpenVINO 20" in (out / "report.md").read_text()
    assert len(list((tmp_path / "cache" / "vitfx").iterdir())) == 1


@needs_openvino
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_exact_rewrites_are_timed_there(precision: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--runtime", "openvino", "--precision", precision, "--batch", "2", "--quick", "--out", str(out)]
    assert optimize([str(checkpoint(tmp_path / "m.pt")), *options]) == 0
    found = report(out)
    assert set(found["forms"]) == {"standard", "standard-packed"} and found["portable"]
    assert found["settings"]["runtime"] == "openvino" and found["environment"]["openvino"]
    assert (found["precision"] is None) == (precision == "fp32")


@needs_openvino
def test_retrained_models_are_timed_there(tmp_path: Path) -> None:
    given = [str(pruned_file(tmp_path / "pruned.pt")), "--teacher", str(checkpoint(tmp_path / "model.pt"))]
    given += ["--data", str(npz(tmp_path, 64)), "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    options = ["--device", "cpu", "--precision", "fp32", "--batch", "16", "--epochs", "1", "--runtime", "openvino"]
    assert recover([*given, *options]) == 0
    for model in report(tmp_path / "out")["models"]:
        (provider,) = model["runtimes"]
        assert provider.startswith("OpenVINO 20")


def test_it_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "require_openvino", lambda: None)
    with pytest.raises(UserError, match=f"OpenVINO runs on the CPU, not on {GPU}:0: give `device` cpu, or `runtime`"):
        runtimes.check_runtime("openvino", torch.device(GPU, 0))
    runtimes.check_runtime("onnxruntime", torch.device(GPU, 0))
    runtimes.check_runtime("openvino", torch.device("cpu"))


def test_without_the_package_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise UserError("OpenVINO is not installed here: pip install 'vitfx[openvino]'")

    monkeypatch.setattr(runtimes, "require_openvino", missing)
    options = ["--target-speedup", "1.2", "--target", "openvino:batch=2"]
    assert run_circuit(artifact(tmp_path / "m.pt"), tmp_path / "out", *options) == 2
    assert capsys.readouterr().err == "error: OpenVINO is not installed here: pip install 'vitfx[openvino]'\n"
    assert not (tmp_path / "out").exists()
