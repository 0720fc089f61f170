"""The optimize command, from its arguments to its files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import vitfx.runs.inputs
import vitfx.runs.optimize_bench
from tests.support.prune_runs import GREY, SIZES, artifact, checkpoint, model
from vitfx.deploy.export import ExportMismatch
from vitfx.deploy.openvino_runtime import has_bfloat16, is_installed
from vitfx.graph.verify import VerificationError
from vitfx.images.preprocess import Preprocess
from vitfx.models.checkpoint import save_checkpoint
from vitfx.optimize import _open, build_parser, main
from vitfx.runs.optimize import BF16_FILE, INT8_FILE, RESULTS
from vitfx.runs.optimize_bench import fastest
from vitfx.runs.optimize_text import to_markdown
from vitfx.support.progress import Silent
from vitfx.support.timing import Ratio


def logits(path: Path, pixels: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixels": pixels})[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run: several rewrites, all forms, each rewrite alone."""
    folder = tmp_path_factory.mktemp("optimized")
    command = [str(checkpoint(folder / "vit.pt")), "--out", str(folder / "out"), "--batch", "1,3"]
    assert main([*command, "--rewrites", "narrow_to_cls,pack_qkv,gemm"]) == 0
    return folder / "out"


def test_the_files_and_the_same_logits(folder: Path) -> None:
    assert {one.name for one in folder.iterdir()} == set(RESULTS)
    pixels = np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype("float32")
    plain, fast = (logits(folder / name, pixels) for name in ("baseline.onnx", "optimized.onnx"))
    with torch.no_grad():
        expected = model()(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(plain, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(fast, expected, rtol=1e-4, atol=1e-4)


def test_the_report_says_what_was_done_and_measured(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    assert set(report["time_left"]) == {"1", "3"}
    assert set(report["forms"]) == {"standard", "standard-packed", "multihead", "multihead-packed", "packed"}
    assert report["form"] in report["forms"]
    assert report["verify"]["float64"] < 1e-10
    assert report["verify"]["onnx"] < 1e-4
    steps = {one["name"]: one for one in report["rewrites"]}
    assert {"narrow_to_cls", "gemm", f"form {report['form']}"} <= set(steps)
    for one in steps.values():
        assert set(one["alone"]) == ({"3"} if one["changed"] else set())
    assert {"torch", "onnxruntime", "cpu", "device"} <= set(report["environment"])
    text = (folder / "report.md").read_text()
    assert "| narrow_to_cls alone | – | " in text
    assert "torch.onnx.export of the module" in text
    slow = {"8": {"baseline": {"median_ms": 1234.4}, "optimized": {"median_ms": 987.6}}}
    assert "Medians in milliseconds: 1234 → 988 at batch 8." in to_markdown(report | {"latency_ms": slow})


def test_int8_is_a_third_file_in_the_form_that_suits_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = checkpoint(tmp_path / "vit.pt"), tmp_path / "out"
    assert main([str(path), "--out", str(out), "--batch", "2", "--quick", "--precision", "int8", "--plain-pixels"]) == 0
    assert {one.name for one in out.iterdir()} == {*RESULTS, INT8_FILE}
    report = json.loads((out / "report.json").read_text())
    found = report["precision"]
    assert set(report["forms"]) >= {"standard", "packed"} and report["form"] in report["forms"]
    assert found["quantized"] > 0 and (found["images"], found["held_out"]) == (128, 42)
    assert 0 < found["divergence"] < 0.5
    assert set(found["time_left"]) == set(found["time_of_fp32"]) == {"2"}
    model = onnx.load(out / INT8_FILE)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert told["precision"] == "int8" and json.loads(told["float32"]) == found["kept"]
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    plain = np.random.default_rng(0).uniform(size=(3, 1, 8, 8)).astype("float32")
    exact, rounded = (logits(out / name, plain) for name in ("optimized.onnx", INT8_FILE))
    assert 0 < np.linalg.norm(rounded - exact) < 0.2 * np.linalg.norm(exact)
    assert f"- {INT8_FILE}: {found['quantized']} linear maps in int8" in (out / "report.md").read_text()
    printed = capsys.readouterr().out
    assert "all, form standard in int8" in printed
    assert printed.splitlines()[-1] == f"next: python -m vitfx.prune {path}"
    slow = report | {"precision": found | {"time_of_fp32": {"1": 0.5, "8": 1.25}}}
    assert f"{INT8_FILE} is slower here than the float32 file at batch 8 (1.25 of its time)" in to_markdown(slow)


@pytest.mark.skipif(not is_installed() or not has_bfloat16(), reason="needs OpenVINO and a CPU with bfloat16")
def test_bf16_is_a_third_file_for_openvino(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = checkpoint(tmp_path / "vit.pt"), tmp_path / "out"
    command = [str(path), "--batch", "2", "--quick", "--precision", "bf16"]
    assert main([*command, "--out", str(tmp_path / "none")]) == 2
    assert "bf16 is computed by OpenVINO" in capsys.readouterr().err and not (tmp_path / "none").exists()
    assert main([*command, "--runtime", "openvino", "--out", str(out)]) == 0
    assert {one.name for one in out.iterdir()} == {*RESULTS, BF16_FILE}
    report = json.loads((out / "report.json").read_text())
    made = report["precision"]
    assert (made["name"], made["file"]) == ("bf16", BF16_FILE) and 0 < made["divergence"] < 0.01
    assert set(made["time_left"]) == {"2"}
    assert f"- {BF16_FILE}: matrices in bfloat16, in which OpenVINO computes." in (out / "report.md").read_text()
    printed = capsys.readouterr().out
    assert f"{BF16_FILE}, measured again" in printed and "in int8" not in printed
    assert (out / BF16_FILE).stat().st_size < 0.8 * (out / "optimized.onnx").stat().st_size


def test_int8_is_judged_by_the_task_and_the_model_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reads: list[str] = []
    load = vitfx.runs.inputs.load_model
    monkeypatch.setattr("vitfx.runs.inputs.load_model", lambda *of, **more: reads.append(*of) or load(*of, **more))
    path, out = checkpoint(tmp_path / "vit.pt"), tmp_path / "out"
    command = [str(path), "--out", str(out), "--batch", "1", "--quick", "--precision", "int8", "--form", "standard"]
    assert main([*command, "--task", "embedding"]) == 0
    assert reads == [str(path)]
    report = json.loads((out / "report.json").read_text())
    assert report["precision"]["task"] == "embedding" and 0 < report["precision"]["divergence"] < 0.5
    assert "cosine distance from optimized.onnx" in (out / "report.md").read_text()
    assert "task embedding" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["classes", "labels", "values", None])
def test_the_task_comes_from_the_command(tmp_path: Path, task: str | None) -> None:
    path = checkpoint(tmp_path / "vit.pt")
    given = [str(path), "--out", str(tmp_path / "out"), *(() if task is None else ("--task", task))]
    job = _open(build_parser().parse_args(given), Silent())
    assert job.task is None if task is None else job.task is not None and job.task.name == task


def test_plain_pixels(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "vit.pt")
    out = tmp_path / "out"
    command = [str(path), "--out", str(out), "--batch", "2", "--quick", "--plain-pixels", "--form", "standard"]
    assert main(command) == 0
    plain = np.random.default_rng(0).uniform(size=(3, 1, 8, 8)).astype("float32")
    normalised = ((plain - GREY.mean[0]) / GREY.std[0]).astype("float32")
    np.testing.assert_allclose(
        logits(out / "optimized.onnx", plain), logits(out / "baseline.onnx", normalised), rtol=1e-4, atol=1e-4
    )
    told = {name: _preprocess(out / name) for name in ("baseline.onnx", "optimized.onnx")}
    assert told["baseline.onnx"] == GREY
    assert told["optimized.onnx"].mean == (0.0,)
    assert told["optimized.onnx"].std == (1.0,)


def _preprocess(path: Path) -> Preprocess:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return Preprocess.from_json(json.loads(session.get_modelmeta().custom_metadata_map["preprocess"]))


def test_nothing_rewritten_an_artifact_and_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "vit.pt"
    save_checkpoint(
        path, factory="vitfx.models:ViT", kwargs=SIZES, state_dict=model().state_dict(), preprocess=GREY, data=None
    )
    out = tmp_path / "none"
    assert main([str(path), "--out", str(out), "--batch", "2", "--rewrites", "none"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["form"] == "exported"
    assert report["rewrites"] == []
    assert report["images"] == {"count": 16, "of": "noise"}
    # Pruning needs images, and none are known.
    assert capsys.readouterr().out.splitlines()[-1] == f"{out}/ has optimized.onnx, optimized.pt2 and the report"
    assert main([str(path), "--out", str(tmp_path / "int8"), "--precision", "int8"]) == 2
    said = "error: int8 takes its ranges from images, and none are given: give --data, or leave out --precision\n"
    assert capsys.readouterr().err.endswith(said)
    elsewhere = tmp_path / "elsewhere.pt"
    names = {"factory": "vitfx.models:ViT", "kwargs": SIZES, "state_dict": model().state_dict(), "preprocess": GREY}
    save_checkpoint(elsewhere, **names, data="not-on-this-machine")
    unnamed = [str(elsewhere), "--out", str(tmp_path / "unnamed"), "--batch", "2", "--rewrites", "none"]
    assert main(unnamed) == 0
    assert json.loads((tmp_path / "unnamed" / "report.json").read_text())["images"]["of"] == "noise"
    again = [str(artifact(tmp_path / "artifact.pt")), "--out", str(out), "--batch", "2", "--quick"]
    again += ["--rewrites", "gemm", "--form", "standard"]
    assert main(again) == 2
    assert main([*again, "--force"]) == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--rewrites", "fold_everything"], "--rewrites fold_everything is not a rewrite: give all, none, or some of"),
        (["--form", "packed", "--portable"], "--form packed has operators of ONNX Runtime's own"),
        (["--form", "packed", "--rewrites", "gemm"], "--form packed needs the rewrite pack_qkv"),
        (["--passes", "gemm"], "--passes gemm is not a pass on graphs: give some of fold_patches,"),
        (["--passes", "fold_norms", "--print-after", "pack_qkv"], "--print-after pack_qkv is not among --passes fold"),
        (["--passes", "fold_norms"], "--out is for a run that writes files, and --passes writes none"),
        (["--print-after", "all"], "--print-after prints what --passes names, and none are given: leave it out"),
        (["--batch", "8;64"], "--batch 8;64 is not a list of batch sizes"),
        (["--batch", "0"], "--batch 0 is not a list of batch sizes"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path / "out"), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {sentence}")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_passes_one_by_one_and_the_graph_after_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    path = str(checkpoint(tmp_path / "vit.pt", data=None))
    assert main([path, "--passes", "narrow_to_cls,fold_norms,pack_qkv", "--print-after", "fold_norms"]) == 2
    assert "error: fold_norms: node" in capsys.readouterr().err
    assert main([path, "--passes", "fold_norms,absorb_keys,narrow_to_cls", "--print-after", "all"]) == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("after ")] == [
        "after fold_norms:",
        "after absorb_keys:",
        "after narrow_to_cls:",
    ]
    assert "LayerNorm(plain) → NarrowedAttention(2 heads, scale 0.3536, queries: first 1) of m0" in printed
    rows = {cells[1]: cells[2:] for line in printed.splitlines() if len(cells := re.split(r"\s*│\s*", line)) > 5}
    assert [rows[name][0] for name in ("fold_norms", "absorb_keys", "narrow_to_cls")] == ["yes", "no", "yes"]
    before, after = map(int, rows["narrow_to_cls"][1].split(" → "))
    assert after == before + 1
    assert rows["narrow_to_cls"][3] == "behind a1 1 of 5 tokens"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["vit.pt"]


def test_plain_pixels_is_a_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(checkpoint(tmp_path / "vit.pt", data=None))
    assert main([path, "--passes", "plain_pixels"]) == 2
    assert "plain_pixels: the embedding is not one linear map" in capsys.readouterr().err
    assert main([path, "--passes", "fold_patches,plain_pixels", "--print-after", "plain_pixels"]) == 0
    assert capsys.readouterr().out.count("after ") == 1


@pytest.mark.parametrize("error", [VerificationError("fold_norms is wrong"), ExportMismatch("it is off")])
def test_a_failed_proof_is_exit_code_1(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("vitfx.optimize.run_optimize", fail)
    assert main([str(checkpoint(tmp_path / "vit.pt")), "--out", str(tmp_path / "out")]) == 1
    assert str(error) in capsys.readouterr().err


def test_the_fastest_form_is_so_over_all_batches() -> None:
    slow, fast, mixed = Ratio(0.9, 0.9), Ratio(0.8, 0.8), Ratio(0.7, 0.7)
    assert fastest({"a": {1: slow, 8: fast}, "b": {1: slow, 8: mixed}, "c": {1: slow, 8: slow}}) == "b"
