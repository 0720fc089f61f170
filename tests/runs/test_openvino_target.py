"""`--target openvino`: times, goal, evaluation and report are of that runtime, or one sentence says what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.prune_runs import artifact, report, run_circuit
from vitfx.cli import prune_options
from vitfx.deploy.openvino_runtime import is_installed
from vitfx.pruning import latency_table, target_bench
from vitfx.support.errors import UserError


@pytest.mark.skipif(not is_installed(), reason="needs OpenVINO: pip install 'vitfx[openvino]'")
@pytest.mark.parametrize("target", ["openvino:batch=2", "openvino:int8:batch=2"])
def test_a_goal_is_measured_there(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (target_bench, latency_table):
        monkeypatch.setattr(module, "_ROUNDS", 1)
        monkeypatch.setattr(module, "_SECONDS", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "out"
    # A thousandth is met on any machine, whatever single rounds read.
    options = ["--target-speedup", "1.001", "--target", target, "--samples", "48"]
    assert run_circuit(artifact(tmp_path / "m.pt"), out, *options) in (0, 1)
    found = report(out)
    assert found["runtime"].startswith("OpenVINO 20") and found["settings"]["target"] == target
    assert found["environment"]["openvino"]
    assert (found["precision"] is not None) == ("int8" in target)
    assert found["kl"] < 1
    assert "OpenVINO 20" in (out / "report.md").read_text()
    assert len(list((tmp_path / "cache" / "vitfx").iterdir())) == 1


def test_without_the_package_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise UserError("OpenVINO is not installed here: pip install 'vitfx[openvino]'")

    monkeypatch.setattr(prune_options, "require_openvino", missing)
    options = ["--target-speedup", "1.2", "--target", "openvino:batch=2"]
    assert run_circuit(artifact(tmp_path / "m.pt"), tmp_path / "out", *options) == 2
    assert capsys.readouterr().err == "error: OpenVINO is not installed here: pip install 'vitfx[openvino]'\n"
    assert not (tmp_path / "out").exists()
