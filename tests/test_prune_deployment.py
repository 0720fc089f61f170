"""What prune exports has gone through the exact rewrites; what it saves for torch has not."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from passes.stream import is_canonical
from tests.support.prune_runs import artifact, report, run
from vitfx.models.checkpoint import load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing is below a τ of 0: an unpruned model, rewritten."""
    folder = tmp_path_factory.mktemp("pruned")
    assert run(artifact(folder / "model.pt"), folder / "out", "--tau", "0") == 0
    return folder


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_tau_0_rewrites_and_deletes_nothing(folder: Path) -> None:
    out = folder / "out"
    found = report(out)
    assert found["pruned"]["params"] == found["baseline"]["params"]
    made = found["deployment"]
    assert made["form"] == "standard"
    assert {"fold_patches", "fold_norms", "narrow_to_cls"} <= set(made["applied"])
    assert made["float64"] < 1e-10
    assert found["agreement"] == 1
    assert "exact rewrites (fold_patches, " in (out / "report.md").read_text()
    assert "Expand" in operators(out / "baseline.onnx")
    assert not {"Expand", "Shape", "Split"} & set(operators(out / "pruned.onnx"))
    told = {entry.key: entry.value for entry in onnx.load(out / "pruned.onnx").metadata_props}
    assert json.loads(told["deployment"])["rewrites"] == made["rewrites"]
    assert told["role"] == "pruned"


def test_the_artifact_for_torch_stays_canonical(folder: Path) -> None:
    is_canonical(load_model(str(folder / "out" / "pruned.pt")).module)


def test_without_rewrites_it_is_as_torch_exports_it(folder: Path) -> None:
    out = folder / "none"
    assert run(folder / "model.pt", out, "--tau", "0", "--rewrites", "none") == 0
    assert report(out)["deployment"]["applied"] == []
    assert sorted(operators(out / "pruned.onnx")) == sorted(operators(out / "baseline.onnx"))
    assert "exact rewrites" not in (out / "report.md").read_text()


def test_an_unknown_rewrite_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder / "model.pt", folder / "other", "--rewrites", "fold_everything") == 2
    assert capsys.readouterr().err.startswith("error: --rewrites fold_everything is not a rewrite")
    assert not (folder / "other").exists()
