"""What leaves the house is checked on its way out."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch

import vitfx.runs.prune_files
from tests.support.prune_runs import GREY, artifact, run
from vitfx.deploy.export import export_onnx
from vitfx.images.splits import open_data
from vitfx.models.checkpoint import load_model
from vitfx.runs.prune_files import Written, measure
from vitfx.runs.prune_run import BATCHES
from vitfx.support.files import JOURNAL
from vitfx.support.progress import Silent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ONNX files, of which "pruned" is the baseline with all logits turned round."""
    folder = tmp_path_factory.mktemp("onnx")
    module = load_model(str(artifact(folder / "model.pt"))).module
    export_onnx(module, folder / "baseline.onnx", torch.zeros(2, 1, 8, 8), {})
    for parameter in module.get_submodule("head").parameters():
        parameter.data.neg_()
    export_onnx(module, folder / "pruned.onnx", torch.zeros(2, 1, 8, 8), {})
    return folder


def test_what_is_measured_is_what_lies_in_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitfx.runs.prune_files, "_ROUNDS", 3)
    evaluation = open_data("digits", GREY).evaluation.sample(20, seed=0)
    found = measure(folder, evaluation, torch.device("cpu"), Written(1e-7, 0.0), Silent())
    assert found.provider == "CPUExecutionProvider"
    assert found.onnx_error == 1e-7
    assert found.scores["baseline"].agreement == 1
    assert found.scores["pruned"].agreement == 0
    assert found.scores["pruned"].images == 20
    assert set(found.timings) == set(BATCHES) == set(found.ratios)
    for timings in found.timings.values():
        assert {name: timing.rounds for name, timing in timings.items()} == {"baseline": 3, "pruned": 3}


def test_an_onnx_file_that_is_not_the_artifact_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    """The run ends with a sentence and exit code 1, without a report, and can go on."""

    def other(*_: object) -> onnx.ModelProto:
        return onnx.load(folder / "pruned.onnx")

    monkeypatch.setattr(vitfx.runs.prune_files, "to_onnx", other)
    assert run(folder / "model.pt", tmp_path / "out", "--tau", "0.01") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: the exported file failed its check and was removed: ")
    assert "differs from torch by" in said
    assert "Traceback" not in said
    assert (tmp_path / "out" / JOURNAL).exists()
    assert not [path for path in (tmp_path / "out").iterdir() if path.name == "pruned.onnx" or path.stem == "report"]
    assert json.loads((tmp_path / "out" / "circuit.json").read_text())["format"] == "vitfx-circuit/2"
