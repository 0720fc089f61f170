"""`vitfx.prune --precision`: a third file beside pruned.onnx, with figures of its own."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch

from tests.support.prune_runs import artifact, report, run
from vitfx.deploy.precision_file import check_precision, slower
from vitfx.support.devices import GPU
from vitfx.support.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    assert run(artifact(folder / "model.pt"), folder / "out", "--tau", "0.01", "--precision", "int8") == 0
    return folder


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_int8_is_beside_the_artifact_and_in_the_report(folder: Path) -> None:
    out = folder / "out"
    told = metadata(out / "pruned-int8.onnx")
    assert told["precision"] == "int8"
    assert json.loads(told.pop("float32")) == report(out)["precision"]["kept"]
    whole = metadata(out / "pruned.onnx")
    assert told.pop("digest") != whole.pop("digest")
    assert told | {"precision": "fp32"} == whole
    assert metadata(out / "baseline.onnx")["precision"] == "fp32"
    found = report(out)["precision"]
    assert (found["name"], found["file"]) == ("int8", "pruned-int8.onnx")
    assert found["quantized"] > 0 and found["images"] == 16
    assert found["latency_ms"].keys() == found["speedup_by_batch"].keys() == {"1", "64"}
    assert 0 < found["kl"] < 0.5
    # Against the pruned model's own: what int8 itself costs is small.
    assert abs(found["agreement"] - report(out)["agreement"]) <= 0.2
    assert found["kl"] != report(out)["kl"]


def test_the_report_tells_a_person(folder: Path) -> None:
    said = (folder / "out" / "report.md").read_text()
    found = report(folder / "out")["precision"]
    assert f"| int8: top-1 | {report(folder / 'out')['baseline']['accuracy']:.2%} | {found['accuracy']:.2%} |" in said
    assert "| int8: ms at batch 64 |" in said
    assert f"- pruned-int8.onnx is pruned.onnx in int8: {found['quantized']} linear maps quantized" in said


def test_a_file_that_is_slower_than_float32_is_told(folder: Path) -> None:
    found = report(folder / "out")["precision"]
    assert set(found["time_of_fp32"]) == {"1", "64"}
    assert slower(None) == slower(found | {"time_of_fp32": {"1": 0.9, "64": 1.0}}) == []
    (warning,) = slower(found | {"time_of_fp32": {"1": 1.2, "64": 0.5}})
    expected = (
        "pruned-int8.onnx is slower here than the float32 file at batch 1 (1.20 of its time): deploy that one there"
    )
    assert warning == expected


def test_a_run_in_float32_leaves_no_stale_int8(folder: Path) -> None:
    out = folder / "out"
    assert run(folder / "model.pt", out, "--tau", "0.01", "--force") == 0
    assert not (out / "pruned-int8.onnx").exists()
    assert report(out)["precision"] is None
    assert "pruned-int8" not in (out / "report.md").read_text()


def test_float16_is_refused_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(artifact(tmp_path / "m.pt"), tmp_path / "out", "--precision", "fp16") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: fp16 is slow on cpu") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_bf16_is_refused_where_nothing_computes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(artifact(tmp_path / "m.pt"), tmp_path / "out", "--precision", "bf16") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: bf16 is computed by OpenVINO") and said.count("\n") == 1
    assert "--target openvino:bf16:batch=8" in said
    monkeypatch.setattr("vitfx.deploy.precision_file.has_bfloat16", lambda: False)
    with pytest.raises(UserError, match="this CPU has no bfloat16 arithmetic: leave out bf16"):
        check_precision("bf16", torch.device("cpu"), "openvino")


def test_int8_is_refused_on_a_gpu() -> None:
    with pytest.raises(UserError, match=f"int8 is slow on {GPU}:0"):
        check_precision("int8", torch.device(GPU, 0))
    check_precision("fp16", torch.device(GPU, 0))
