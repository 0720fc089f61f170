"""python -m vitfx.recover: files, the four rows, an artifact to go on with, one sentence for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.support.prune_runs import checkpoint
from tests.support.recover_runs import npz, pruned_file, student
from vitfx.deploy.runtime import open_session
from vitfx.graph.trace import to_canonical
from vitfx.models.checkpoint import load_model
from vitfx.recover import main
from vitfx.recovery.course import Course
from vitfx.runs.recover import STATE
from vitfx.support.files import check_output

FILES = {
    "pruned.pt", "pruned.pt2", "pruned.onnx", "baseline.onnx", "recovery.png", "report.json", "report.md", "report.html"
}  # fmt: skip


def run(folder: Path, *options: str, labelled: bool = True) -> int:
    pruned, whole = pruned_file(folder / "pruned.pt"), checkpoint(folder / "model.pt")
    images = npz(folder, 64, labelled=labelled)
    return main(
        [
            str(pruned), "--teacher", str(whole), "--data", str(images), "--out", str(folder / "out"),
            "--device", "cpu", "--precision", "fp32", "--batch", "16", "--cache", str(folder / "cache"), *options,
        ]
    )  # fmt: skip


def test_the_four_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--epochs", "2", "--also-baseline", "--loss", "both", "--lr", "1e-3") == 0
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == FILES | {"baseline-retrained.pt", "baseline-retrained.onnx"}
    report = json.loads((out / "report.json").read_text())
    rows = {one["name"]: one for one in report["models"]}
    assert list(rows) == ["baseline", "pruned", "baseline retrained", "pruned retrained"]
    assert rows["pruned"]["flops"] == rows["pruned retrained"]["flops"] < rows["baseline"]["flops"]
    assert rows["baseline"]["kl"] == 0 < rows["pruned"]["kl"]
    assert all(one["runtimes"]["CPUExecutionProvider"]["evaluation_seconds"] > 0 for one in rows.values())
    assert report["images"]["evaluation"] == 16
    assert report["recovery"]["steps"] == report["baseline_recovery"]["steps"] == 6
    markdown = (out / "report.md").read_text()
    assert markdown.count("| pruned retrained | ") == markdown.count("| baseline retrained | ") == 1
    assert "checks" in report["recovery"]["sentence"] or "no check came closer" in report["recovery"]["sentence"]
    loaded = load_model(str(out / "pruned.pt"))
    assert loaded.module.state_dict().keys() == student().state_dict().keys()
    to_canonical(loaded.module, torch.zeros(2, 1, 8, 8))
    pixels = torch.randn(3, 1, 8, 8)
    onnx = open_session(out / "pruned.onnx", torch.device("cpu")).run(pixels)
    torch.testing.assert_close(onnx, loaded.module(pixels).detach(), rtol=1e-3, atol=1e-3)
    record = torch.load(out / "pruned.pt", weights_only=True)["provenance"]
    assert record["circuit_fingerprint"] == "abc"
    assert record["recovered"]["steps"] == 6
    other = torch.load(out / "baseline-retrained.pt", weights_only=True)["provenance"]
    assert "circuit_fingerprint" not in other
    assert other["recovered"]["from"] == str(tmp_path / "model.pt")
    assert {name: other["recovered"]["settings"][name] for name in ("loss", "lr")} == {"loss": "ce", "lr": 1e-3}
    *_, contents, following = capsys.readouterr().out.splitlines()
    assert contents == f"{out}/ has the retrained model and the report"
    assert following == f"next: python -m vitfx.report {out}"


def test_unlabelled_images_and_an_artifact_of_an_earlier_run(tmp_path: Path) -> None:
    assert run(tmp_path, "--epochs", "1", "--only", "lora", labelled=False) == 0
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == FILES
    report = json.loads((out / "report.json").read_text())
    assert [one["name"] for one in report["models"]] == ["baseline", "pruned", "pruned retrained"]
    assert report["models"][0]["accuracy"] is None
    assert report["won_back"] is None
    again = [str(out / "pruned.pt"), "--teacher", str(tmp_path / "model.pt"), "--epochs", "1", "--device", "cpu"]
    again += ["--data", str(npz(tmp_path, 64, labelled=False)), "--cache", str(tmp_path), "--precision", "fp32"]
    assert main([*again, "--out", str(tmp_path / "more")]) == 0
    record = torch.load(tmp_path / "more" / "pruned.pt", weights_only=True)["provenance"]
    assert record["recovered"]["from"] == str(out / "pruned.pt")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "say how long to retrain: give either --epochs or --minutes"),
        (["--epochs", "1", "--minutes", "1"], "give either --epochs or --minutes"),
        (["--epochs", "1", "--teacher", "none.pt"], "none.pt does not exist"),
        (["--epochs", "1", "--eval-samples", "-1"], "--eval-samples is -1: give 0 or more"),
        (["--epochs", "1", "--rewrites", "magic"], "--rewrites magic is not a rewrite"),
        (["--epochs", "1", "--device", "tpu"], "device 'tpu' is not one of"),
        (["--epochs", "1", "--data", "letters"], "letters"),
    ],
)
def test_one_sentence(options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, *options) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_ends_before_its_first_state_can_be_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Course, "run", stopped)
        assert run(tmp_path, "--epochs", "1", "--hidden", "0") == 130
    assert (tmp_path / "out" / "recovery.answers").exists()
    assert capsys.readouterr().err == "\nstopped; the same command goes on where it stopped\n"
    check_output(tmp_path / "out", force=False, unfinished=STATE)


def test_ctrl_c_with_force_says_what_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    command = ("--epochs", "1", "--hidden", "0")
    with monkeypatch.context() as patch:
        patch.setattr(Course, "run", stopped)
        assert run(tmp_path, *command, "--force") == 130
    assert capsys.readouterr().err == "\nstopped; the same command begins anew\n"
    with monkeypatch.context() as patch:
        patch.setattr("vitfx.runs.recover.measure", stopped)
        assert run(tmp_path, *command, "--force") == 130
    assert capsys.readouterr().err == "\nstopped; the same command without --force goes on where it stopped\n"
    with monkeypatch.context() as patch:
        patch.setattr(Course, "_step", stopped)
        assert run(tmp_path, *command) == 0, "no step is made again"


def test_labels_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--epochs", "1", "--also-baseline", labelled=False) == 2
    assert "--also-baseline needs labels" in capsys.readouterr().err
    assert run(tmp_path, "--epochs", "1", "--loss", "both", labelled=False) == 2
    assert "--loss both needs labels" in capsys.readouterr().err
